"""Environment runners as Ray actors give what runners in processes give, and are replaced when they are lost."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import cloudpickle
import numpy as np
import pytest

import learner_core as lc
from learner_core import numpy_xp
from learner_core_algorithms import PPOConfig

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def _config(launcher: str, **env_runners: Any) -> Any:
    config = PPOConfig().environment("CartPole-v1").learners(launcher=launcher).debugging(seed=3)
    settings = {"num_env_runners": 2, "num_envs_per_env_runner": 2, "normalize_observations": True, **env_runners}
    return config.env_runners(**settings)


def _group(config: Any) -> Any:
    from learner_core.learning.resolve import resolve_modules
    from learner_core.sampling.runner_group import EnvRunnerGroup

    frozen = config.copy().freeze()
    specs = resolve_modules(frozen, None, None)
    group = EnvRunnerGroup(frozen, specs)
    rng = np.random.default_rng(0)
    weights = {}
    for module_id, spec in specs.items():
        weights[module_id] = {name: np.asarray(value) for name, value in spec.build(numpy_xp).init(rng).items()}
    return group, weights


def _scaled(weights: Any, factor: float) -> Any:
    return {mid: {name: factor * value for name, value in params.items()} for mid, params in weights.items()}


def test_actors_sample_what_processes_sample(cluster: Any) -> None:
    there, weights = _group(_config("ray"))
    here, _ = _group(_config("local"))
    try:
        for step in range(3):
            for group in (there, here):
                group.set_weights(_scaled(weights, 1.0 + step), version=step)
            for one, other in zip(there.sample(20), here.sample(20), strict=True):
                for name, column in other.columns.items():
                    np.testing.assert_array_equal(one.columns[name], column, err_msg=name)
        assert there.metrics()["num_env_steps_sampled_lifetime"] == here.metrics()["num_env_steps_sampled_lifetime"]
        state = there.get_state()
        expected = [r.columns["obs"].copy() for r in there.sample(5)]
        assert there.set_state(state) == "exact"
        there.set_weights(_scaled(weights, 3.0), version=3)
        for one, again in zip(there.sample(5), expected, strict=True):
            np.testing.assert_array_equal(one.columns["obs"], again)
    finally:
        there.close()
        here.close()


def test_runners_of_their_own_pace_take_new_weights_and_are_replaced(cluster: Any) -> None:
    group, weights = _group(_config("ray", max_env_runner_restarts=1))
    try:
        group.set_weights(weights, version=1)
        group.request(10)
        versions: dict[int, list[int]] = {1: [], 2: []}
        deadline = time.monotonic() + 60
        while min(len(v) for v in versions.values()) < 3 and time.monotonic() < deadline:
            for fragment in group.ready(5.0):
                versions[fragment.worker_index].append(fragment.weights_version)
        group.set_weights(_scaled(weights, 2.0), version=2)
        while any(v[-1] != 2 for v in versions.values()) and time.monotonic() < deadline:
            for fragment in group.ready(5.0):
                versions[fragment.worker_index].append(fragment.weights_version)
        for seen in versions.values():
            assert seen == sorted(seen) and seen[-1] == 2
        os.kill(group._elsewhere.remotes[0].handle.pid, signal.SIGKILL)
        count = len(versions[1])
        while len(versions[1]) < count + 3 and time.monotonic() < deadline:
            for fragment in group.ready(5.0):
                versions[fragment.worker_index].append(fragment.weights_version)
        assert len(versions[1]) >= count + 3
        assert group.metrics()["num_env_runner_restarts_lifetime"] == 1
        os.kill(group._elsewhere.remotes[1].handle.pid, signal.SIGKILL)
        with pytest.raises(lc.EnvError, match=r"environment runner 2 of 2 died; max_env_runner_restarts=1"):
            while True:
                group.ready(5.0)
    finally:
        group.close()


def test_where_there_is_no_room_the_error_says_what_there_is(cluster: Any) -> None:
    config = _config("ray", num_env_runners=5).learners(launcher_options={"start_timeout_s": 2.0})
    with pytest.raises(
        lc.EnvError, match=r"(?s)not started environment runner \d in 2 s.* It has 4 CPU; free are 0 CPU"
    ):
        _group(config)
