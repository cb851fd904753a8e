"""LearnerGroup(num_learners=0): the Learner's numbers, and asynchronous updates that lose nothing."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import learner_core as lc
from learner_core_algorithms import BCConfig

from support.algorithms import make_random_env


def _config(backend: str) -> Any:
    return (
        BCConfig()
        .framework(backend, compile=False)
        .training(train_batch_size=16, minibatch_size=8)
        .rl_module(model={"hidden": [4]})
    )


def _batch(seed: int, rows: int = 16) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {"obs": rng.normal(size=(rows, 3)), "actions": rng.integers(-1, 2, rows)}


def _same(left: dict[str, Any], right: dict[str, Any]) -> None:
    for name, value in left["default_policy"].items():
        np.testing.assert_array_equal(value, right["default_policy"][name])


def test_a_group_of_none_is_its_learner(training_backend_name: str) -> None:
    env = make_random_env({})
    learner = _config(training_backend_name).build_learner(env=env)
    with _config(training_backend_name).build_learner_group(env=env) as group:
        for seed in range(3):
            a = learner.update_from_batch(batch=_batch(seed), timesteps={"num_env_steps_sampled_lifetime": seed})
            b = group.update_from_batch(batch=_batch(seed), timesteps={"num_env_steps_sampled_lifetime": seed})
            assert a == b
        _same(learner.get_module_state(), group.get_weights())
        assert group.foreach_learner(lambda learner: learner.backend.name) == [training_backend_name]
        state = group.update_from_batch(batch=_batch(4), return_state=True)["_state"]
        _same(state["rl_module"], group.get_weights())


def test_asynchronous_updates_are_the_blocking_ones_in_order(training_backend_name: str) -> None:
    env = make_random_env({})
    learner = _config(training_backend_name).build_learner(env=env)
    with _config(training_backend_name).build_learner_group(env=env) as group:
        seen = 0.0
        for seed in range(6):
            learner.update_from_batch(batch=_batch(seed))
            results = group.update_from_batch(batch=_batch(seed), async_update=True)
            seen += results.get("__all__", {}).get("num_updates_reduced", 0.0)
        results = group.wait()
        seen += results["__all__"]["num_updates_reduced"]
        assert seen == 6.0
        assert group.wait() == {}
        _same(learner.get_module_state(), group.get_weights())


class _HeldLearner(lc.Learner):
    """Updates when the test lets it."""

    gate = threading.Event()

    def before_gradient_based_update(self, *, timesteps: dict[str, int]) -> None:
        assert self.gate.wait(120)

    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: Any, fwd_out: Any) -> Any:
        return self.mean(self.xp.square(fwd_out["action_dist_inputs"][:, 0] - batch["obs"][:, 0]))


def _held(backend: str, **settings: Any) -> Any:
    _HeldLearner.gate.clear()
    return _config(backend).learners(learner_class=_HeldLearner, max_requests_in_flight_per_learner=2, **settings)


def test_an_asynchronous_update_has_a_batch_of_its_own(training_backend_name: str) -> None:
    env, weights = make_random_env({}), []
    for is_reused in (False, True):
        with _held(training_backend_name).build_learner_group(env=env) as group:
            for seed in range(2):  # the second one waits behind the first
                batch = _batch(seed)
                group.update_from_batch(batch=batch, async_update=True)
                if is_reused:
                    batch["obs"][...] = 1e6
            _HeldLearner.gate.set()
            group.wait()
            weights.append(group.get_weights())
    _same(*weights)


def test_a_full_queue_drops_and_counts(training_backend_name: str) -> None:
    with _held(training_backend_name, queue_full="drop").build_learner_group(env=make_random_env({})) as group:
        reduced = dropped = 0.0
        for seed in range(6):
            counts = group.update_from_batch(batch=_batch(seed), async_update=True).get("__all__", {})
            reduced += counts.get("num_updates_reduced", 0.0)
            dropped += counts.get("num_updates_dropped", 0.0)
        _HeldLearner.gate.set()
        counts = group.wait()["__all__"]
        dropped += counts["num_updates_dropped"]
        assert reduced + counts["num_updates_reduced"] == 2.0 and dropped == 4.0


def test_a_full_queue_blocks_and_loses_nothing(training_backend_name: str) -> None:
    with _held(training_backend_name, queue_full="block").build_learner_group(env=make_random_env({})) as group:
        reduced = 0.0
        threading.Timer(0.2, _HeldLearner.gate.set).start()  # by then the third call waits, or has yet to come
        for seed in range(6):
            counts = group.update_from_batch(batch=_batch(seed), async_update=True).get("__all__", {})
            assert counts.get("num_updates_dropped", 0.0) == 0.0
            reduced += counts.get("num_updates_reduced", 0.0)
        assert reduced + group.wait()["__all__"]["num_updates_reduced"] == 6.0


def test_an_asynchronous_error_is_raised_by_a_later_call(training_backend_name: str) -> None:
    with _config(training_backend_name).build_learner_group(env=make_random_env({})) as group:
        group.update_from_batch(batch={"obs": np.zeros((4, 3))}, async_update=True)
        with pytest.raises(lc.BatchError, match="column 'actions': missing"):
            group.wait()
        group.update_from_batch(batch=_batch(0))


def test_a_group_that_was_shut_down_refuses(training_backend_name: str) -> None:
    group = _config(training_backend_name).build_learner_group(env=make_random_env({}))
    group.shutdown()
    group.shutdown()
    with pytest.raises(lc.LearnerGroupError, match="shut down"):
        group.get_weights()


def test_save_and_load(training_backend_name: str, tmp_path: Any) -> None:
    env = make_random_env({})
    with _config(training_backend_name).build_learner_group(env=env) as group:
        group.update_from_batch(batch=_batch(0))
        group.save_state(tmp_path / "state")
        weights = group.get_weights()
    with _config(training_backend_name).build_learner_group(env=env) as other:
        other.load_state(tmp_path / "state")
        _same(weights, other.get_weights())


def test_modules_come_and_go(training_backend_name: str) -> None:
    env = make_random_env({})
    with _config(training_backend_name).build_learner_group(env=env) as group:
        group.add_module(module_id="second", module_spec=lc.RLModuleSpec(model={"hidden": [5]}))
        assert set(group.get_weights()) == {"default_policy", "second"}
        results = group.update_from_batch(batch={"second": _batch(0)})
        assert results["second"]["num_minibatch_steps"] == 2
        group.remove_module("default_policy")
        assert set(group.get_weights()) == {"second"}
