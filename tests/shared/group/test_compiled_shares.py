"""Several learners, compiled, with rows of their own or the whole batch each: the numbers of one learner."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from learner_core.learning.rl_module import RLModuleSpec
from learner_core_algorithms import APPOConfig, BCConfig, IMPALAConfig, PPOConfig, SACConfig

from support.learners import (
    OBS,
    LinearModule,
    ToyConfig,
    ToyLearner,
    assert_states_equal,
    bc_batch,
    ppo_batch,
    regression_batch,
    sac_batch,
    tiny,
    two_modules,
)
from support.rings import ThreadRing
from support.sequences import recurrent_config, sequence_batch as recurrent_batch
from support.static_loops import StaticLoops
from support.vtrace_learners import sequence_batch, tiny_sequences

TOLERANCE = 1e-10
TWO = Discrete(2)
BOX = Box(-1.0, 1.0, (2,), np.float32)
Rows = list[list[int]]
BACKEND = os.environ.get("LC_BACKEND", "numpy")
SLOW = pytest.mark.slow


#: What stands in for a compiled loop is eager, and eager TensorFlow takes 30 ms a step.
FAST_ON_TORCH = pytest.mark.fast_on_torch


@pytest.fixture
def loops(training_backend_name: str, monkeypatch: pytest.MonkeyPatch) -> StaticLoops:
    config = tiny(PPOConfig(), training_backend_name).environment(observation_space=OBS, action_space=TWO)
    return StaticLoops(monkeypatch, type(config.build_learner().backend))


def _part(batch: Any, start: int, stop: int) -> Any:
    if isinstance(batch, dict):
        return {name: _part(column, start, stop) for name, column in batch.items()}
    return batch[start:stop]


class Trial:
    """One uncompiled learner with all rows, and learners that have a part each.

    Args:
        config: with its spaces, without compile and shards.
        size: number of learners.
        shards: data shards of all learners together.
        compile: of the learners in the ring.
        spec: of their modules.
        sharded: each has rows of its own; else all of them have all.
    """

    def __init__(
        self,
        config: Any,
        size: int,
        *,
        shards: int | None = None,
        compile: bool | None = None,
        spec: Any = None,
        sharded: bool = True,
    ) -> None:
        config.learners(data_shards=shards or size)
        learner_class = config.get_learner_class()
        alone, framework = config.copy(), config.framework_name
        config.framework(framework, compile=compile, precision=config.precision)
        frozen = config.freeze()
        alone.framework(framework, compile=False, precision=config.precision)
        self.one = learner_class(alone.freeze(), module_spec=spec)
        self.ring = ThreadRing(
            size, lambda place: learner_class(frozen, module_spec=spec, ranks=place), sharded=sharded
        )
        self.sharded, self.each = sharded, (shards or size) // size

    def update(self, batch: dict[str, Any], rows: list[int], **arguments: Any) -> list[Any]:
        """One module's batch, with so many rows of every shard; the states are one learner's afterwards."""
        ends = np.concatenate([[0], np.cumsum(rows)])

        def own(learner: Any) -> Any:
            if not self.sharded:
                return learner.update_from_batch(batch=batch, shard_rows=rows, **arguments)
            first, last = learner.ranks.rank * self.each, (learner.ranks.rank + 1) * self.each
            return learner.update_from_batch(
                batch=_part(batch, ends[first], ends[last]), shard_rows=rows[first:last], **arguments
            )

        alone = self.one.update_from_batch(batch=batch, shard_rows=rows, **arguments)
        answers = self.ring.each(own)
        for results in answers:
            for name, value in alone["default_policy"].items():
                if name != "vf_explained_variance":  # no mean over rows, so not the mean of the learners'
                    assert results["default_policy"][name] == pytest.approx(value, rel=1e-9, abs=TOLERANCE), name
        self.check()
        return answers

    def check(self) -> None:
        for learner in self.ring.learners:
            assert_states_equal(self.one.get_state(), learner.get_state(), atol=TOLERANCE)
            assert_states_equal(self.ring.learners[0].get_state(), learner.get_state(), atol=0)


def _on(config: Any, space: Any) -> Any:
    return config.environment(observation_space=OBS, action_space=space)


def _ppo(backend: str, **training: Any) -> Any:
    return _on(tiny(PPOConfig(), backend, lr=0.01, **training), TWO)


KINDS: dict[str, tuple[Callable[[str], Any], Callable[[int, int], Any]]] = {
    "ppo": (
        lambda backend: _ppo(backend, num_epochs=2, normalize_advantages="minibatch", use_kl_loss=True),
        lambda rows, seed: ppo_batch(rows, TWO, seed=seed),
    ),
    "ppo_parts": (
        lambda backend: _ppo(backend, accumulate=2),
        lambda rows, seed: {
            **ppo_batch(rows, TWO, seed=seed),
            "loss_mask": (np.random.default_rng(seed).random(rows) < 0.7) * 1.0,
        },
    ),
    "ppo_lstm": (
        lambda backend: recurrent_config(backend, lr=0.05, minibatch_size=20, num_epochs=2),
        lambda rows, seed: recurrent_batch(
            rows, {f"{name}_{leaf}": np.zeros(3) for name in ("pi", "vf") for leaf in "hc"}, seed=seed, pad=True
        ),
    ),
    "sac": (
        lambda backend: _on(tiny(SACConfig(), backend), BOX),
        lambda rows, seed: sac_batch(rows, seed=seed),
    ),
    "bc": (lambda backend: _on(tiny(BCConfig(), backend, lr=0.01), TWO), lambda rows, seed: bc_batch(rows, seed=seed)),
    "impala": (
        lambda backend: _on(tiny_sequences(IMPALAConfig(), backend, lr=0.01, grad_clip=0.3), TWO),
        lambda rows, seed: sequence_batch(rows, TWO, seed=seed),
    ),
    "appo": (
        lambda backend: _on(tiny_sequences(APPOConfig().training(use_kl_loss=True), backend, lr=0.01), TWO),
        lambda rows, seed: sequence_batch(rows, TWO, seed=seed),
    ),
}
#: Even; one row more; narrower again; one learner has none; far more than a batch, most of them one learner's; a few.
TIMES_16: Rows = [[8, 8], [9, 7], [7, 8], [16, 0], [37, 4], [0, 1], [3, 3]]
#: The same where a row is a sequence, and a minibatch is two of them.
TIMES_4: Rows = [[2, 2], [3, 1], [1, 2], [0, 4], [11, 2], [1, 0]]


def _uneven(backend: str, kind: str, compile: bool | None) -> None:
    make, batch = KINDS[kind]
    trial = Trial(make(backend), 2, compile=compile)
    for seed, rows in enumerate(TIMES_4 if kind in ("impala", "appo", "ppo_lstm") else TIMES_16):
        answers = trial.update(batch(sum(rows), seed), rows, timesteps={"num_env_steps_sampled_lifetime": 100 * seed})
        assert [results["__all__"]["compiled"] for results in answers] == [1.0, 1.0]


@FAST_ON_TORCH
@pytest.mark.parametrize("kind", KINDS)
def test_uneven_rows_that_come_and_go(training_backend_name: str, loops: StaticLoops, kind: str) -> None:
    _uneven(training_backend_name, kind, None)
    assert loops.made <= 2 * 2, "two learners: an even share and a whole minibatch, for each of them"


@pytest.mark.parametrize(
    ("kind", "compile"),
    [
        pytest.param(kind, compile, marks=() if kind == "ppo" and (BACKEND, compile) == ("tf", None) else SLOW)
        for kind in KINDS
        for compile in ((None, True) if BACKEND == "tf" else (True,))  # Torch by itself: after many steps
    ],
)
def test_uneven_rows_truly_compiled(
    training_backend_name: str, kind: str, compile: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above, by what the backend compiles; one at a time, since these learners share a process."""
    config = _on(tiny(BCConfig(), training_backend_name), TWO)
    backend_class = type(config.build_learner().backend)
    lock, make_split_loop = threading.Lock(), backend_class.make_split_loop

    def locked(*arguments: Any, **more: Any) -> Any:
        with lock:
            return make_split_loop(*arguments, **more)

    monkeypatch.setattr(backend_class, "make_split_loop", locked)
    _uneven(training_backend_name, kind, compile)


@FAST_ON_TORCH
@pytest.mark.parametrize(("size", "shards"), [(3, 3), (4, 8)])
def test_any_rows_on_more_learners(training_backend_name: str, loops: StaticLoops, size: int, shards: int) -> None:
    """Rows drawn at random, from none to several batches; executables grow in number as the logarithm of learners."""
    trial = Trial(_ppo(training_backend_name), size, shards=shards)
    rng = np.random.default_rng(size)
    for seed in range(8):
        rows = (rng.integers(0, 2, shards) * rng.integers(0, (3, 12, 40)[seed % 3], shards)).tolist()
        if sum(rows):
            trial.update(ppo_batch(sum(rows), TWO, seed=seed), rows, num_epochs=1 + seed % 2)
    assert loops.made <= 3 * size


@FAST_ON_TORCH
def test_rows_that_differ_by_a_little_never_need_another_executable(
    training_backend_name: str, loops: StaticLoops
) -> None:
    """The usual run: every rank samples about as many rows as the others."""
    trial = Trial(_ppo(training_backend_name, minibatch_size=32, train_batch_size=128), 2)
    for seed, rows in enumerate(([64, 64], [60, 66], [66, 61], [64, 70], [59, 64])):
        trial.update(ppo_batch(sum(rows), TWO, seed=seed), rows)
    assert loops.made == 2


@FAST_ON_TORCH
def test_a_larger_minibatch_than_the_setting(training_backend_name: str, loops: StaticLoops) -> None:
    trial = Trial(_ppo(training_backend_name), 2)
    for seed, (rows, minibatch) in enumerate((([10, 6], 8), ([10, 6], 16), ([16, 0], 16), ([3, 5], 4))):
        trial.update(ppo_batch(sum(rows), TWO, seed=seed), rows, minibatch_size=minibatch)


@FAST_ON_TORCH
def test_the_count_of_steps_decides_when(training_backend_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch compiles after a while: in the midst of uneven rows, and from then on all updates."""
    config = _ppo(training_backend_name)
    StaticLoops(monkeypatch, type(config.copy().build_learner().backend), after=5)
    trial = Trial(config, 2)
    compiled = []
    for seed, rows in enumerate(([9, 7], [16, 0], [20, 1], [7, 9])):
        answers = trial.update(ppo_batch(sum(rows), TWO, seed=seed), rows)
        compiled.append([results["__all__"]["compiled"] for results in answers])
    assert compiled == [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 1.0]]


class PlainMeans(ToyLearner):
    """A loss that averages by itself: it may not be padded, so only even shares run compiled."""

    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: Any, fwd_out: Any) -> Any:
        return {"v": self.xp.mean(self.xp.square(fwd_out["vf_preds"] - batch["value_targets"]))}


def _toy(backend: str, learner_class: type) -> Any:
    config = ToyConfig().framework(backend, precision="float64")
    config.training(lr=0.05, minibatch_size=4, train_batch_size=8, num_epochs=1, grad_clip=None)
    return config.learners(learner_class=learner_class)


@FAST_ON_TORCH
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_batch_on_every_learner(training_backend_name: str, loops: StaticLoops, kind: str, size: int) -> None:
    """``num_learners``: shares of a minibatch are even, and there is one executable for good."""
    make, batch = KINDS[kind]
    trial = Trial(make(training_backend_name), size, shards=1, sharded=False)
    for seed, rows in enumerate((4, 3, 1, 11) if kind in ("impala", "appo", "ppo_lstm") else (16, 13, 1, 41)):
        trial.update(batch(rows, seed), [rows])
    assert loops.made == size


def test_a_loss_with_means_of_its_own(training_backend_name: str, loops: StaticLoops) -> None:
    trial = Trial(_toy(training_backend_name, PlainMeans), 2, spec=RLModuleSpec(LinearModule, OBS, TWO))
    for seed, rows in enumerate(([4, 4], [5, 3], [8, 0], [1, 0], [4, 4])):
        trial.update(regression_batch(sum(rows), seed), rows)
    assert loops.made == 2


@FAST_ON_TORCH
def test_modules_that_some_learners_have_no_rows_of(training_backend_name: str, loops: StaticLoops) -> None:
    trial = Trial(_toy(training_backend_name, ToyLearner), 2, spec=two_modules())
    for seed, (left, right) in enumerate((([4, 5], [0, 3]), ([2, 7], [3, 0]), ([0, 9], [0, 0]), ([0, 0], [1, 20]))):
        rows = {mid: counts for mid, counts in (("left", left), ("right", right)) if sum(counts)}
        batch = {mid: regression_batch(sum(counts), 2 * seed + (mid == "left")) for mid, counts in rows.items()}
        trial.one.update_from_batch(batch=batch, shard_rows=rows)

        def own(learner: Any, batch: Any = batch, rows: Any = rows) -> Any:
            rank = learner.ranks.rank
            cut = {mid: (sum(counts[:rank]), sum(counts[: rank + 1])) for mid, counts in rows.items()}
            return learner.update_from_batch(
                batch={mid: _part(batch[mid], *ends) for mid, ends in cut.items() if ends[0] < ends[1]}
            )

        for results in trial.ring.each(own):
            assert results["__all__"]["compiled"] == 1.0
        trial.check()
    assert loops.made <= 2 * 2
