"""Vectors beyond the caches: the neutral optimizers' numbers, in memory used again only when nobody reads it."""

from __future__ import annotations

import functools
import operator
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from learner_core.backend import Backend
from learner_core.maths.optimizers import OptimizerSpec
from learner_core_algorithms import PPOConfig, SACConfig
from learner_core_torch import large_vectors
from learner_core_torch.backend import TorchBackend

from support.learners import (
    OBS,
    TWO_ACTIONS,
    assert_states_equal,
    build,
    build_on_spaces,
    ppo_batch,
    regression_batch,
    sac_batch,
    tiny,
)

SPECS = [
    OptimizerSpec("adam"),
    OptimizerSpec("adam", eps=0.1, betas=(0.8, 0.9), weight_decay=0.1),
    OptimizerSpec("adamw", eps=1e-3, weight_decay=0.5),
    OptimizerSpec("sgd", momentum=0.9, dampening=0.3),
    OptimizerSpec("rmsprop", centered=True, momentum=0.9),
]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is large, and no vector a whole number of blocks."""
    monkeypatch.setattr(large_vectors, "_LARGE", 1)
    monkeypatch.setattr(large_vectors, "_BLOCK", 5)


def _arguments(spec: OptimizerSpec, seed: int, *, step: int, lr: float, clip: bool) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    params, gradients, *slots = (torch.from_numpy(rng.normal(size=23)) for _ in range(2 + len(spec.slot_names)))
    return {
        "params": params,
        "gradients": gradients,
        # A mean of squares is not negative.
        "slots": {name: slot.abs() for name, slot in zip(spec.slot_names, slots, strict=True)},
        "lr": torch.tensor(lr, dtype=torch.float64),
        "corrections": [torch.tensor(float(c), dtype=torch.float64) for c in spec.corrections(step)],
        "clip": functools.partial(operator.mul, 0.25) if clip else None,
    }


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("spec", SPECS, ids=repr)
@pytest.mark.parametrize(("step", "lr"), [(1, 1e-2), (100, 0.5), (3, 0.0)])
def test_the_same_maths_block_by_block(small: None, spec: OptimizerSpec, step: int, lr: float, clip: bool) -> None:
    backend = TorchBackend(device="cpu", precision="float64")
    given = _arguments(spec, 0, step=step, lr=lr, clip=clip)
    before = {name: given[name].clone() for name in ("params", "gradients")}
    slots = {name: slot.clone() for name, slot in given["slots"].items()}
    new, new_slots = backend.optimizer_update(spec, **given)
    expected, expected_slots = Backend.optimizer_update(backend, spec, **given)
    torch.testing.assert_close(new, expected, rtol=1e-13, atol=1e-13)
    assert new_slots.keys() == expected_slots.keys()
    for name, slot in new_slots.items():
        torch.testing.assert_close(slot, expected_slots[name], rtol=1e-13, atol=1e-13)
    assert all(torch.equal(given[name], value) for name, value in before.items())
    assert all(torch.equal(given["slots"][name], value) for name, value in slots.items())


def test_squared_norm(small: None) -> None:
    vector = torch.arange(1.0, 8.0)
    assert TorchBackend(device="cpu").squared_norm(vector).item() == 140.0
    assert TorchBackend(device="cpu").squared_norm(torch.tensor([1.0, float("nan")] * 9)).isnan()


def test_memory_is_used_again_when_its_last_reader_is_gone() -> None:
    vectors = large_vectors.LargeVectors()
    like = torch.zeros(7)
    first = vectors._empty_like(like).fill_(1.0)
    place = first.data_ptr()
    view = first[2:4]  # holds the memory as well as any other reader
    del first
    assert vectors._empty_like(like).data_ptr() != place
    assert view.tolist() == [1.0, 1.0]
    as_numpy = view.numpy()
    del view
    assert vectors._empty_like(like).data_ptr() != place
    assert as_numpy.tolist() == [1.0, 1.0]
    del as_numpy
    taken = [vectors._empty_like(like) for _ in range(2)]
    assert place in {vector.data_ptr() for vector in taken}
    assert vectors._empty_like(like.double()).dtype == torch.float64


def test_memory_that_nobody_asks_for_is_given_back() -> None:
    vectors = large_vectors.LargeVectors()
    held = vectors._empty_like(torch.zeros(11))
    vectors._empty_like(torch.zeros(7))
    for _ in range(large_vectors._PATIENCE + 1):
        vectors._empty_like(torch.zeros(3))
    assert sorted(memory.size for memory, _ in vectors._memory) == [3, 11]
    assert held.shape == (11,)


def test_tracers_and_small_vectors_go_the_usual_way() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    assert large_vectors.is_large(torch.empty(1 << 18))
    assert not large_vectors.is_large(torch.empty((1 << 18) - 1))
    with FakeTensorMode():
        assert not large_vectors.is_large(torch.empty(1 << 20))


def _ppo(clip_by: str) -> Any:
    settings = {"grad_clip": 0.1, "grad_clip_by": clip_by, "num_epochs": 3, "lr": 0.01}
    return build_on_spaces(tiny(PPOConfig(), "torch", precision="float64", **settings), OBS, TWO_ACTIONS)


def _sac() -> Any:
    config = tiny(SACConfig(), "torch", precision="float64", minibatch_size=None)
    return build_on_spaces(config, OBS, Box(-1.0, 1.0, (2,), np.float32))


LEARNERS: dict[str, tuple[Any, Any]] = {
    "ppo": (lambda: _ppo("global_norm"), lambda seed: ppo_batch(16, TWO_ACTIONS, seed=seed)),
    "ppo, clipped by value": (lambda: _ppo("value"), lambda seed: ppo_batch(16, TWO_ACTIONS, seed=seed)),
    "sac": (_sac, lambda seed: sac_batch(16, seed=seed)),
    "toy": (lambda: build("torch"), lambda seed: regression_batch(8, seed=seed)),
}


def _arrays(learner: Any) -> dict[str, Any]:
    """Its flat vectors, in the memory where they lie."""
    trees = {module_id: arrays.tree() for module_id, arrays in learner.train_state.arrays.items()}
    found: dict[str, Any] = learner.backend.view_numpy(trees)
    return found


@pytest.mark.parametrize("name", LEARNERS)
def test_learners_compute_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, batch = LEARNERS[name]
    usual, blocked = make(), make()
    for seed in range(5):
        usual.update_from_batch(batch=batch(seed))
    monkeypatch.setattr(large_vectors, "_LARGE", 1)
    monkeypatch.setattr(large_vectors, "_BLOCK", 5)
    states: list[tuple[Any, Any]] = []
    for seed in range(5):
        blocked.update_from_batch(batch=batch(seed))
        states.append((blocked.get_state(), _arrays(blocked)))
    assert_states_equal(usual.get_state(), blocked.get_state(), atol=1e-12)
    # What an earlier update left is not written over while somebody holds it.
    again = make()
    for seed, (state, arrays) in enumerate(states):
        again.update_from_batch(batch=batch(seed))
        assert_states_equal(again.get_state(), state)
        assert_states_equal(arrays, _arrays(again))


def test_an_update_that_fails_half_way_changes_nothing(small: None) -> None:
    learner = _ppo("global_norm")
    learner.update_from_batch(batch=ppo_batch(16, TWO_ACTIONS))
    before, calls = learner.get_state(), []

    def fail(**arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("the fourth step")

    learner.after_step = fail
    with pytest.raises(RuntimeError, match="fourth"):
        learner.update_from_batch(batch=ppo_batch(16, TWO_ACTIONS, seed=1))
    assert_states_equal(before, learner.get_state())
