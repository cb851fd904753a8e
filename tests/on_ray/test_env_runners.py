"""Environment runners as Ray actors give what runners in processes give, and are replaced when they are lost."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest

import learner_core as lc
from learner_core import numpy_xp
from learner_core.sampling.rollout import per_module
from learner_core_algorithms import APPOConfig, IMPALAConfig, PPOConfig

from support.env_answers import AnswerEnv, AnswerGame
from support.parallel_envs import make_crossing
from support.sampling import same_tree
from support.told import Told, Watched, told, told_to

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def _everybody(agent: str) -> str:
    return "m"


def _config(launcher: str, kind: str = "plain", **env_runners: Any) -> Any:
    config = PPOConfig().environment("CartPole-v1").learners(launcher=launcher).debugging(seed=3)
    if kind == "memory":
        config.rl_module(model={"hidden": [4], "recurrent": "gru", "recurrent_size": 3})
    if kind == "agents":
        config.environment(make_crossing).multi_agent(policies=["m"], policy_mapping_fn=_everybody)
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


def _columns(rollout: Any) -> dict[str, Any]:
    return {module_id: _copied(part.columns) for module_id, part in per_module(rollout).items()}


def _copied(tree: Any) -> Any:
    return {name: _copied(value) for name, value in tree.items()} if isinstance(tree, dict) else np.array(tree)


def _scaled(weights: Any, factor: float) -> Any:
    return {mid: {name: factor * value for name, value in params.items()} for mid, params in weights.items()}


@pytest.mark.parametrize("kind", ["plain", "memory", "agents"])
def test_actors_sample_what_processes_sample(cluster: Any, kind: str) -> None:
    there, weights = _group(_config("ray", kind))
    here, _ = _group(_config("local", kind))
    try:
        for step in range(3):
            for group in (there, here):
                group.set_weights(_scaled(weights, 1.0 + step), version=step)
            for one, other in zip(there.sample(20), here.sample(20), strict=True):
                assert same_tree(_columns(one), _columns(other))
        assert there.metrics()["num_env_steps_sampled_lifetime"] == here.metrics()["num_env_steps_sampled_lifetime"]
        state = there.get_state()
        expected = [_columns(rollout) for rollout in there.sample(5)]
        assert there.set_state(state) == "exact"
        there.set_weights(_scaled(weights, 3.0), version=3)
        for one, again in zip(there.sample(5), expected, strict=True):
            assert same_tree(_columns(one), again)
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


@pytest.mark.parametrize(
    ("algorithm", "backend"),
    [
        ("impala", "torch"),
        pytest.param("impala", "tf", marks=pytest.mark.slow),
        pytest.param("appo", "torch", marks=pytest.mark.slow),
        pytest.param("appo", "tf", marks=pytest.mark.slow),
    ],
)
def test_asynchronous_algorithms_lose_nothing(cluster: Any, tmp_path: Any, algorithm: str, backend: str) -> None:
    """Two learners and two runners over two nodes; a runner dies; the checkpoint has every step."""
    config = {"impala": IMPALAConfig, "appo": APPOConfig}[algorithm]()
    config.environment("CartPole-v1").framework(backend, compile=False).rl_module(model={"hidden": [8]})
    config.env_runners(num_env_runners=2, num_envs_per_env_runner=4, rollout_fragment_length=5)
    config.training(train_batch_size=20, timesteps_per_iteration=200)
    where = {"placement": "STRICT_SPREAD", "num_cpus_per_env_runner": 0.5, "start_timeout_s": 300.0}
    collective = "torch" if backend == "torch" else "horovod"
    config.learners(num_learners=2, launcher="ray", launcher_options=where, collective=collective, timeout_s=60.0)
    with config.build() as algo:
        assert len({member.host for member in algo.learner_group._learners._members}) == 2
        algo.train()
        os.kill(algo.env_runners._elsewhere.remotes[0].handle.pid, signal.SIGKILL)
        deadline = time.monotonic() + 120
        while algo.train()["env_runners"]["num_env_runner_restarts_lifetime"] < 1:
            assert time.monotonic() < deadline
        algo.save(tmp_path / "checkpoint")
        state = lc.load_state(tmp_path / "checkpoint")["state"]
    kept = state["extra"]["throughput"]
    assert kept["num_updates_lifetime"] == state["learner"]["counters"]["num_updates"]
    batch = state["extra"]["waiting"]["default_policy"]["batch"]
    waiting = 0 if batch is None else int(batch["loss_mask"].sum())
    waiting += sum(int(np.count_nonzero(f["rollout"]["columns"]["valid"])) for f in state["env_runners"]["fragments"])
    sampled = state["env_runners"]["counts"]["num_env_steps_sampled_lifetime"]
    uses, unused = 1, 0
    if algorithm == "appo":  # each batch is learned from so often, and some are not through with it
        uses = config.circular_buffer_iterations_per_batch
        stored = state["extra"]["replay"]["batches"]
        unused = sum(left * int(batch["default_policy"]["loss_mask"].sum()) for batch, _, left in stored)
    assert kept["num_env_steps_trained_lifetime"] == uses * (sampled - waiting) - unused


@pytest.mark.parametrize("several", [pytest.param(False, marks=pytest.mark.slow), True])
def test_what_an_environment_answers_wrongly_is_refused_over_there(several: bool) -> None:
    space = gym.spaces.Box(0, 255, (3,), np.uint8)

    def spoilt(answer: Any) -> Any:
        return (np.array([0, 300, 0]), *answer[1:])

    def make(env_config: dict[str, Any]) -> Any:
        return (AnswerGame if several else AnswerEnv)(space, spoilt=spoilt)

    config = PPOConfig().environment(make).learners(num_learners=1, launcher="ray").training(train_batch_size=16)
    config.env_runners(num_env_runners=1, num_envs_per_env_runner=2)
    if several:
        config.multi_agent(policies=["m"])
    with config.build() as algo, pytest.raises(lc.EnvOutputError, match=r"of runner 1 .*observation\[1\] is 300"):
        algo.train()


class Falls(Told):
    """Raises in the third step of every episode."""

    def step(self, action: Any) -> Any:
        if self.clock == 2:
            raise ValueError("the robot fell over")
        return super().step(action)


def test_an_exception_ends_the_run_or_is_told_and_counted() -> None:
    config = told("ppo", "torch").environment(lambda env_config: Falls(), env_config={})
    config.learners(num_learners=1, launcher="ray").env_runners(num_env_runners=1)
    place = r"environment 0 of runner 1 .*step 3 of its episode: raised ValueError: the robot fell over"
    with config.build() as algo, pytest.raises(lc.EnvError, match=rf"{place}.*max_env_restarts=N") as caught:
        algo.train()
    assert 'raise ValueError("the robot fell over")' in "".join(caught.value.__notes__)
    words = "the robot fell over"
    with config.environment(max_env_restarts=30).build() as algo, pytest.warns(RuntimeWarning, match=words) as warned:
        results = algo.train()["env_runners"]
    told_of = [one for one in warned if words in str(one.message)]
    assert len(told_of) == results["num_env_restarts_lifetime"] > 1


@pytest.mark.parametrize("backend", ["torch", pytest.param("tf", marks=pytest.mark.slow)])
def test_weights_and_settings_that_are_set_in_a_run_reach_the_actors(cluster: Any, backend: str) -> None:
    config = told("ppo", backend).env_runners(num_env_runners=1, normalize_rewards=True)
    config.learners(num_learners=1, launcher="ray", launcher_options={"start_timeout_s": 300.0}, timeout_s=60.0)
    with config.build() as algo:
        watched = Watched(algo)
        for action in (1.0, 0.0):
            algo.train()
            watched.take()
            algo.learner_group.set_weights(told_to(algo.learner_group.get_weights(), action))
            algo.train()
            assert (watched.take() == action).all()
        algo.set_config(gamma=0.5, lr=0.25)
        assert algo.env_runners.foreach_runner(_discount) == [0.5]
        assert algo.train()["learners"]["default_policy"]["learning_rate"] == 0.25


def _discount(runner: Any) -> float:
    gamma: float = runner._scaler.gamma
    return gamma
