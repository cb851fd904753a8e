"""Reliability row 9: a bad batch is refused by module and column, and the state is unchanged to the last bit.

One learner over several modules, whose columns are of every kind there is; thousands of batches are made from one
good one by a change of one column.
"""

from __future__ import annotations

import copy
import functools
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete

import learner_core as lc
from learner_core.errors import BatchError
from learner_core.learning.rl_module import MultiRLModuleSpec, RLModule, RLModuleSpec

from support.learners import ToyConfig, states_differ

GENERATED = int(os.environ.get("LC_BAD_BATCHES", "3000"))
ROWS = 6

SPACES = {
    "start": (
        Dict({"x": Box(-1, 1, (2,), np.float32), "image": Box(0, 255, (2, 2, 1), np.uint8)}),
        Discrete(3, start=-1),
    ),
    "several": (Box(-1, 1, (2,), np.float32), MultiDiscrete([2, 3])),
    "bits": (Box(-1, 1, (2,), np.float32), MultiBinary(3)),
    "bounded": (MultiDiscrete([4, 2]), Box(np.array([-1.0, 0.0]), np.array([1.0, 2.0]), dtype=np.float64)),
}


class AnyModule(RLModule):
    actions_in_space = True

    def init(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"w": np.ones((1,), np.float32)}

    def forward_train(self, params: Any, batch: Any) -> dict[str, Any]:
        return {"w": params["w"]}


class ReadsAll(lc.Learner):
    """A loss that reads every kind of column."""

    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: Any, fwd_out: Any) -> Any:
        xp = self.xp
        total = fwd_out["w"][0] * 0.0
        obs = batch["obs"]
        for column in (*(obs.values() if isinstance(obs, dict) else [obs]), batch["actions"], batch["terminateds"]):
            total = total + xp.mean(xp.astype(column, total.dtype))
        return self.mean(fwd_out["w"][0] * batch["rewards"]) + total


@pytest.fixture(scope="module")
def learner(backend: str) -> Any:
    specs = {name: RLModuleSpec(AnyModule, *spaces) for name, spaces in SPACES.items()}
    config = ToyConfig().framework(backend, compile=False).training(minibatch_size=8, train_batch_size=8, num_epochs=1)
    return ReadsAll(config.freeze(), module_spec=MultiRLModuleSpec(specs))


def good(rows: int = ROWS, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    common = {"rewards": rng.normal(size=rows), "terminateds": rng.uniform(size=rows) < 0.5}
    vector = rng.uniform(-1, 1, (rows, 2)).astype(np.float32)
    return {
        "start": {
            "obs": {"x": vector, "image": rng.integers(0, 256, (rows, 2, 2, 1), np.uint8)},
            "actions": rng.integers(-1, 2, rows),
            **common,
        },
        "several": {"obs": vector, "actions": rng.integers(0, [2, 3], (rows, 2)), **common},
        "bits": {"obs": vector, "actions": rng.integers(0, 2, (rows, 3), np.int8), **common},
        "bounded": {
            "obs": rng.integers(0, [4, 2], (rows, 2)),
            "actions": rng.uniform([-1.0, 0.0], [1.0, 2.0], (rows, 2)),
            **common,
        },
    }


def columns_of(module_id: str) -> list[str]:
    return [*(["obs/x", "obs/image"] if module_id == "start" else ["obs"]), "actions", "rewards", "terminateds"]


def get(batch: dict[str, Any], module_id: str, column: str) -> Any:
    node = batch[module_id]
    for part in column.split("/"):
        node = node[part]
    return node


def put(batch: dict[str, Any], module_id: str, column: str, value: Any) -> None:
    *parents, leaf = column.split("/")
    node = batch[module_id]
    for part in parents:
        node = node[part]
    if value is KeyError:
        del node[leaf]
    else:
        node[leaf] = value


def one_entry(array: np.ndarray, rng: np.random.Generator, value: Any, dtype: Any = None) -> np.ndarray:
    out = np.array(array, dtype or array.dtype)
    out[tuple(rng.integers(0, size) for size in out.shape)] = value
    return out


def foreign(array: np.ndarray) -> Any:
    """What frameworks call an array."""
    import sys

    if sys.modules.get("torch"):
        return sys.modules["torch"].from_numpy(np.ascontiguousarray(array))
    return sys.modules["tensorflow"].constant(array)


class Hostile:
    """Becomes an array when asked to, which nobody does."""

    def __array__(self, *arguments: Any, **options: Any) -> Any:
        raise AssertionError("asked for an array")

    __len__ = __float__ = __getitem__ = __array__  # type: ignore[assignment]


def endless(array: np.ndarray) -> list[Any]:
    """A small list that says it has 10^24 elements."""
    out: list[Any] = [0.0] * 1000
    for _ in range(7):
        out = [out] * 1000
    return out


# name -> change(array, rng) -> what is refused in any column
ANYWHERE: dict[str, Callable[[np.ndarray, np.random.Generator], Any]] = {
    "missing": lambda a, rng: KeyError,
    "none": lambda a, rng: None,
    "scalar": lambda a, rng: 3.0,
    "0-d": lambda a, rng: np.zeros(()),
    "extra axis": lambda a, rng: a[..., None],
    "axis too few": lambda a, rng: a.reshape(-1) if a.ndim > 1 else a.reshape(1, -1),
    "one column more": lambda a, rng: np.zeros((*a.shape, 2)) if a.ndim == 1 else np.repeat(a, 2, -1),
    "a row less": lambda a, rng: a[:-1],
    "a row more": lambda a, rng: np.concatenate([a, a[:1]]),
    "no rows": lambda a, rng: a[:0],
    "object": lambda a, rng: a.astype(object),
    "string": lambda a, rng: a.astype("U8"),
    "bytes": lambda a, rng: a.astype("S8"),
    "complex": lambda a, rng: a.astype(complex),
    "datetime": lambda a, rng: np.zeros(a.shape, "datetime64[s]"),
    "record": lambda a, rng: np.zeros(a.shape, [("x", "f4")]),
    "nan": lambda a, rng: one_entry(a, rng, np.nan, np.float64),
    "inf": lambda a, rng: one_entry(a, rng, np.inf, np.float32),
    "-inf": lambda a, rng: one_entry(a, rng, -np.inf, np.float16),
    "ragged": lambda a, rng: [list(range(1 + i % 2)) for i in range(len(a))],
    "list of strings": lambda a, rng: ["a"] * len(a),
    "dict": lambda a, rng: {"x": a},
    "set": lambda a, rng: {1, 2},
    "foreign": lambda a, rng: foreign(a),
    "masked": lambda a, rng: np.ma.masked_array(a, np.zeros(a.shape, bool)),
    "list of masked": lambda a, rng: [np.ma.masked_array(row) for row in a],
    "hostile": lambda a, rng: Hostile(),
    "list of hostile": lambda a, rng: [Hostile()] * len(a),
    "endless list": lambda a, rng: endless(a),
    "huge": lambda a, rng: np.broadcast_to(a[:1], (2**40, *a.shape[1:])),
    "wide": lambda a, rng: np.broadcast_to(np.zeros((), a.dtype), (len(a), *a.shape[1:], 2**40)),
}
# Only where the column is of the kind.
INTEGERS: dict[str, Callable[[np.ndarray, np.random.Generator], Any]] = {
    "fraction": lambda a, rng: one_entry(a, rng, 0.5, np.float64),
    "too large": lambda a, rng: one_entry(a, rng, 2**63, np.uint64) if (a >= 0).all() else one_entry(a, rng, 300),
    "too small": lambda a, rng: one_entry(a, rng, -7, np.int64),
}
FLOATS: dict[str, Callable[[np.ndarray, np.random.Generator], Any]] = {
    "overflow": lambda a, rng: one_entry(a, rng, 1e300, np.float64),
}
BOOLS: dict[str, Callable[[np.ndarray, np.random.Generator], Any]] = {
    "two": lambda a, rng: one_entry(a, rng, 2, np.int64),
    "half": lambda a, rng: one_entry(a, rng, 0.5, np.float32),
}
ACTIONS: dict[str, Callable[[np.ndarray, np.random.Generator], Any]] = {
    "above": lambda a, rng: one_entry(a, rng, 3, None if a.dtype.kind == "f" else np.int64),
    "below": lambda a, rng: one_entry(a, rng, -2, None if a.dtype.kind == "f" else np.int64),
}


def changes(module_id: str, column: str, array: np.ndarray) -> dict[str, Any]:
    out = dict(ANYWHERE)
    if column == "actions":
        out.update(ACTIONS)
    if column == "terminateds":
        out.update(BOOLS)
    elif array.dtype.kind in "iu" and (column == "actions" or array.dtype == np.uint8):
        out.update(INTEGERS)
    elif array.dtype.kind == "f":
        out.update(FLOATS)
    return out


@functools.cache
def combinations() -> list[tuple[str, str, str]]:
    """(module, column, name of the change)."""
    return [
        (mid, column, name)
        for mid in SPACES
        for column in columns_of(mid)
        for name in changes(mid, column, np.asarray(get(good(), mid, column)))
    ]


def case_of(number: int) -> tuple[dict[str, Any], str, str, str]:
    """(batch, module, column, name of the change); every combination in turn, then again on other numbers."""
    every = combinations()
    mid, column, name = every[number % len(every)]
    rng = np.random.default_rng(number)
    batch = good(int(rng.integers(2, 12)), number)
    array = np.asarray(get(batch, mid, column))
    put(batch, mid, column, changes(mid, column, array)[name](array, rng))
    return batch, mid, column, name


@pytest.mark.fast_on_torch
def test_generated_bad_batches(learner: Any) -> None:
    learner.update_from_batch(batch=good())
    before, timesteps = learner.get_state(), {"num_env_steps_sampled_lifetime": 77}
    accepted: list[str] = []
    for number in range(GENERATED):
        batch, mid, column, name = case_of(number)
        what = f"{number}: {name} in {mid}/{column}"
        try:
            learner.update_from_batch(batch=batch, timesteps=timesteps)
        except BatchError as error:
            assert error.module_id == mid and error.column == column, f"{what}: {error}"
            assert mid in str(error) and error.column in str(error), what
        else:
            accepted.append(what)
        if number % 100 == 0:
            assert not states_differ(before, learner.get_state()), what
    assert not accepted, accepted[:10]
    assert not states_differ(before, learner.get_state())


def mapped(array: np.ndarray) -> np.ndarray:
    with tempfile.NamedTemporaryFile() as file:
        out: np.ndarray = np.memmap(file, array.dtype, "w+", shape=array.shape)
        out[:] = array
    return out


ACCEPTED: dict[str, Callable[[np.ndarray], Any]] = {
    "float64": lambda a: a.astype(np.float64),
    "float16": lambda a: a.astype(np.float16),
    "fortran": np.asfortranarray,
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "negative strides": lambda a: a[::-1].copy()[::-1],
    "non-contiguous": lambda a: np.repeat(a, 2, 0)[::2],
    "list": lambda a: a.tolist(),
    "list of arrays": list,
    "broadcast": lambda a: np.broadcast_to(a[:1], a.shape) if (a == a[:1]).all() else a,
    "matrix": lambda a: a.view(np.matrix) if a.ndim == 2 else a,
    "memory map": mapped,
    "subclass": lambda a: a.view(np.recarray) if a.ndim == 0 else a.view(type("Sub", (np.ndarray,), {})),
}


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("name", [*ACCEPTED, "read-only"])
def test_other_representations_are_converted(learner: Any, name: str) -> None:
    """They train as the plain columns do, to the last bit, and are not written to."""
    change = {**ACCEPTED, "read-only": read_only}[name]
    state, batch = learner.get_state(), good(seed=3)
    batch["bounded"]["actions"] = np.round(batch["bounded"]["actions"], 1).astype(np.float16).astype(np.float64)
    for mid in SPACES:
        for column in ("rewards", *[c for c in columns_of(mid) if c in ("obs", "obs/x")]):
            array = get(batch, mid, column)
            if array.dtype.kind == "f":
                put(batch, mid, column, array.astype(np.float16).astype(np.float32))
    learner.update_from_batch(batch=batch)
    expected = learner.get_state()
    learner.set_state(state)
    other = copy.deepcopy(batch)
    originals = []
    for mid in SPACES:
        for column in columns_of(mid):
            array = change(get(batch, mid, column))
            put(other, mid, column, array)
            originals.append((array, np.array(array)))
    learner.update_from_batch(batch=other)
    assert not states_differ(expected, learner.get_state())
    for array, kept in originals:
        assert np.array_equal(np.asarray(array), kept)
    learner.set_state(state)


def test_extra_columns_are_left_alone(learner: Any) -> None:
    """A rollout may hold more than the loss reads, whatever is in it."""
    state = learner.get_state()
    learner.update_from_batch(batch=good())
    expected = learner.get_state()
    learner.set_state(state)
    batch = good()
    for columns in batch.values():
        columns["infos"] = np.array([{}] * ROWS, object)
        columns["value_targets"] = np.full(ROWS, np.nan)
    learner.update_from_batch(batch=batch)
    assert not states_differ(expected, learner.get_state())
    learner.set_state(state)


@pytest.mark.parametrize("mask", [np.full(ROWS, 0.5), np.full(ROWS, 2), np.ones(ROWS + 1), np.ones((ROWS, 1))])
def test_loss_mask_is_checked_where_there_is_one(learner: Any, mask: np.ndarray) -> None:
    batch = good()
    batch["bits"]["loss_mask"] = mask
    with pytest.raises(BatchError, match="module 'bits': column 'loss_mask'"):
        learner.update_from_batch(batch=batch)


def test_column_names_that_are_no_strings(learner: Any) -> None:
    batch = good()
    batch["bits"][3] = np.zeros(ROWS)
    with pytest.raises(BatchError, match="column names are strings, got 3"):
        learner.update_from_batch(batch=batch)


@pytest.mark.slow
def test_twenty_thousand(learner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "GENERATED", 20_000)
    test_generated_bad_batches(learner)


def huge(batch: dict[str, Any]) -> dict[str, Any]:
    """Every column in 2^40 rows, out of one row of memory."""
    return {
        name: huge(value) if isinstance(value, dict) else np.broadcast_to(value[:1], (2**40, *value.shape[1:]))
        for name, value in batch.items()
    }


def itself() -> dict[str, Any]:
    out: dict[str, Any] = {}
    out["x"] = out
    return out


def sparse(folder: Any) -> np.ndarray:
    return np.memmap(folder / "hole", np.float32, "w+", shape=(2**38,))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda bits, folder: huge(bits), "module 'bits': column 'actions': is an array of shape .* over only 3 bytes"),
        (lambda bits, folder: {**bits, "obs": itself()}, "nested more than 32 deep"),
        (
            lambda bits, folder: {**bits, "obs/x": bits["obs"], "obs": {"x": bits["obs"]}},
            "column 'obs/x': is there twice",
        ),
        (lambda bits, folder: {**bits, "rewards": sparse(folder)}, "has 274877906944 rows where column"),
    ],
)
def test_what_says_it_is_huge_is_refused_untouched(learner: Any, change: Any, text: str, tmp_path: Any) -> None:
    """By shapes, numbers of rows and memory, before any value is looked at."""
    before, start = learner.get_state(), time.process_time()
    with pytest.raises(BatchError, match=text):
        learner.update_from_batch(batch={"bits": change(good()["bits"], tmp_path)})
    assert time.process_time() - start < 5
    assert not states_differ(before, learner.get_state())


def test_more_than_the_machine_has(learner: Any, tmp_path: Any) -> None:
    holes = {"obs": (2**40, 2), "actions": (2**40, 3), "rewards": (2**40,), "terminateds": (2**40,)}
    try:
        columns = {name: np.memmap(tmp_path / name, np.uint8, "w+", shape=shape) for name, shape in holes.items()}
    except OSError as error:
        pytest.skip(f"no files with holes of terabytes here: {error}")
    with pytest.raises(BatchError, match=r"column '(obs|actions)': takes \d+ bytes; .* this machine has"):
        learner.update_from_batch(batch={"bits": columns})
