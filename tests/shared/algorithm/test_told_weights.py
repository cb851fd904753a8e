"""Weights that learners are given in a run are what samplers and evaluation act with from the next fragment on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import learner_core as lc
from learner_core.errors import StateError

from support.learners import states_differ
from support.told import LENGTH, Watched, told, told_to


def _with_weights(algo: Any, action: float) -> dict[str, Any]:
    state = algo.learner_group.get_state()
    weights = told_to(algo.learner_group.get_weights(), action)
    state["rl_module"] = {mid: {n: weights[mid][n] for n in arrays} for mid, arrays in state["rl_module"].items()}
    return dict(state)


def _set_weights(algo: Any, action: float, path: Any) -> None:
    algo.set_weights(told_to(algo.learner_group.get_weights(), action))


def _group_set_weights(algo: Any, action: float, path: Any) -> None:
    algo.learner_group.set_weights(told_to(algo.learner_group.get_weights(), action))


def _group_set_state(algo: Any, action: float, path: Any) -> None:
    algo.learner_group.set_state(_with_weights(algo, action))


def _group_load_state(algo: Any, action: float, path: Any) -> None:
    lc.save_state(path / "told", _with_weights(algo, action))
    algo.learner_group.load_state(path / "told")


def _foreach_learner(algo: Any, action: float, path: Any) -> None:
    weights = told_to(algo.learner_group.get_weights(), action)
    algo.learner_group.foreach_learner(lambda learner: learner.set_module_state(weights))


WAYS: list[Callable[[Any, float, Any], None]] = [
    _set_weights, _group_set_weights, _group_set_state, _group_load_state, _foreach_learner
]  # fmt: skip


def _cases() -> Iterator[Any]:
    """All pairs in the long tier, each kind and each way in the fast one."""
    for way in WAYS:
        for kind in ("ppo", "sac", "appo"):
            fast = kind == "ppo" or way in (_group_set_weights, _foreach_learner)
            name = f"{kind}-{way.__name__.strip('_')}"
            yield pytest.param(kind, way, marks=[] if fast else [pytest.mark.slow], id=name)


@pytest.mark.fast_on_torch
@pytest.mark.parametrize(("kind", "way"), list(_cases()))
def test_the_next_fragment_and_evaluation_act_with_them(
    training_backend_name: str, kind: str, way: Any, tmp_path: Any
) -> None:
    # Every third update sends weights: what others set does not wait for that.
    more = {"broadcast_interval": 3} if kind == "appo" else {}
    with told(kind, training_backend_name, **more).build() as algo:
        watched = Watched(algo)
        for action in (1.0, 0.0 if kind != "sac" else -1.0):
            algo.train()
            watched.take()
            way(algo, action, tmp_path)
            assert algo.evaluate(2)["episode_return_mean"] == pytest.approx(LENGTH * action, abs=1e-4)
            algo.train()
            np.testing.assert_allclose(watched.take(), action, atol=1e-3)


@pytest.mark.fast_on_torch
@pytest.mark.parametrize("kind", ["ppo", "sac"])
def test_runners_in_processes_act_with_them(training_backend_name: str, kind: str, tmp_path: Any) -> None:
    config = told(kind, training_backend_name).env_runners(num_env_runners=2)
    with config.build() as algo:
        watched = Watched(algo)
        algo.train()
        for way, action in ((_group_set_weights, 1.0), (_foreach_learner, -1.0 if kind == "sac" else 0.0)):
            watched.take()
            way(algo, action, tmp_path)
            algo.train()
            np.testing.assert_allclose(watched.take(), action, atol=1e-3)


@pytest.mark.fast_on_torch
@pytest.mark.parametrize("way", [_set_weights, _group_set_state], ids=["algo", "group"])
def test_asynchronous_runners_act_with_them(training_backend_name: str, way: Any, tmp_path: Any) -> None:
    """What was under way comes first; no broadcast is due."""
    config = told("appo", training_backend_name, broadcast_interval=10**6).env_runners(num_env_runners=1)
    with config.build() as algo:
        watched = Watched(algo)
        algo.train()
        for action in (1.0, 0.0):
            way(algo, action, tmp_path)
            for _ in range(50):
                algo.train()
                if (watched.take() == action).all():
                    break
            algo.train()
            assert (watched.take() == action).all()
            assert algo.evaluate(2)["episode_return_mean"] == LENGTH * action


@pytest.mark.fast_on_torch
def test_learners_in_processes(training_backend_name: str, tmp_path: Any) -> None:
    config = told("ppo", training_backend_name).learners(num_learners=1)
    with config.build() as algo:
        watched = Watched(algo)
        algo.train()
        watched.take()
        _foreach_learner(algo, 1.0, tmp_path)
        algo.train()
        assert (watched.take() == 1.0).all()


@pytest.mark.parametrize("kind", ["ppo", "appo"])
def test_an_update_that_the_user_makes_counts(training_backend_name: str, kind: str) -> None:
    """The group's own update, between two iterations: the runners act with what it made of the weights."""
    more = {"broadcast_interval": 10**6} if kind == "appo" else {}
    with told(kind, training_backend_name, lr=0.5, entropy_coeff=0.0, **more).build() as algo:
        batches: list[Any] = []
        update = algo.learner_group.update_from_batch
        algo.learner_group.update_from_batch = lambda batch, **more: batches.append(batch) or update(batch, **more)
        algo.train()
        update(batches[0])
        algo.env_runners.sample(1)
        now = algo.learner_group.get_weights()["default_policy"]
        acting = algo.runner.policy._params
        assert all(np.array_equal(acting[name], now[name]) for name in now)


def test_weights_that_do_not_fit_change_nothing(training_backend_name: str) -> None:
    with told("ppo", training_backend_name).build() as algo:
        algo.train()
        before = algo.get_state()
        weights = told_to(algo.learner_group.get_weights(), 1.0)
        weights["default_policy"]["pi.1.bias"] = np.zeros(3, np.float32)
        with pytest.raises(StateError, match=r"pi\.1\.bias"):
            algo.set_weights(weights)
        assert not states_differ(before["learner"], algo.get_state()["learner"])
        assert algo.env_runners.weights_version == before["env_runners"]["counts"]["weights_version"]


@pytest.mark.parametrize("kind", ["ppo", "appo"])
def test_a_checkpoint_taken_after_it_goes_on_with_them(training_backend_name: str, kind: str, tmp_path: Any) -> None:
    more = {"broadcast_interval": 3} if kind == "appo" else {}
    with told(kind, training_backend_name, **more).build() as algo:
        algo.train()
        _group_set_weights(algo, 1.0, tmp_path)
        algo.save(tmp_path / "checkpoint")
    with lc.Algorithm.from_checkpoint(tmp_path / "checkpoint", env=algo.config.env) as again:
        watched = Watched(again)
        again.train()
        assert (watched.take() == 1.0).all()
