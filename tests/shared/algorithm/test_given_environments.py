"""Environments that are given as objects, and environments that are several at once: trained, evaluated, resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import learner_core as lc
from learner_core.algorithm.recording import record
from learner_core.errors import ConfigError, EnvError
from learner_core.state.format import encode
from learner_core_algorithms import APPOConfig, IMPALAConfig, PPOConfig, SACConfig

from support.learners import states_differ
from support.parallel_envs import make_signals
from support.told import Told, Wander, told, told_to
from support.vector_envs import Clocks, Endless, Tensor, fake_library, make_vector, own_reset_modes


def _ppo(backend: str, env: Any, **settings: Any) -> Any:
    config = PPOConfig().environment(env).framework(backend, compile=False).rl_module(model={"hidden": [4]})
    return config.training(**{"train_batch_size": 24, "minibatch_size": 12, "num_epochs": 1, **settings})


def _bytes(state: Any) -> bytes:
    return encode(state).tobytes()


def test_an_object_is_one_environment_and_stays_the_users(training_backend_name: str) -> None:
    env = gym.make("CartPole-v1")
    with _ppo(training_backend_name, env).build() as algo:
        results = algo.train()
        assert algo.config.num_envs_per_env_runner == 1 and algo.runner.lanes.environments() == [env]
        assert results["env_runners"]["num_env_steps_sampled"] == 24
        before = algo.runner.get_state()
        assert algo.evaluate(3)["num_episodes"] == 3
        after = algo.runner.get_state()
        assert _bytes({**before, "num_evaluations": 1}) == _bytes(after)
    assert env.reset(seed=0)[0].shape == (4,)  # nobody has closed it
    env.step(0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_envs_per_env_runner": 8}, r"num_envs_per_env_runner=8\): Wander is one object, and one environment"),
        ({"num_env_runners": 1}, r"num_env_runners=1\): Wander is one object, which cannot be in other processes"),
        ({"vectorization": "async"}, r"vectorization='async'\): Wander is one object"),
        ({"max_env_restarts": 2}, r"max_env_restarts=2\): Wander is one object, and nobody knows how to make it anew"),
        ({"env_config": {"scale": 2.0}}, r"env_config=\{'scale': 2.0\}\): Wander is made already"),
        ({"evaluation_interval": 1}, r"nobody knows how Wander was made \(it has no spec of gymnasium.make\)"),
    ],
)
@pytest.mark.fast_on_torch
def test_an_object_serves_no_more_than_that(training_backend_name: str, settings: Any, words: str) -> None:
    config = _ppo(training_backend_name, Wander())
    for name, value in settings.items():
        setattr(config, name, value)
    with pytest.raises(ConfigError, match=rf"{words}.*\.environment\(lambda env_config: Wander\(\.\.\.\)\)"):
        config.build()


@pytest.mark.fast_on_torch
def test_an_object_that_nobody_can_make_again_is_trained_and_not_evaluated(training_backend_name: str) -> None:
    with _ppo(training_backend_name, Wander()).build() as algo:
        algo.train()
        with pytest.raises(ConfigError, match="evaluation plays in environments of its own, and nobody knows how"):
            algo.evaluate(2)
        with pytest.raises(ConfigError, match="nobody knows how Wander was made"):
            algo.set_config(evaluation_interval=2)
        assert algo.train()["training_iteration"] == 2


@pytest.mark.fast_on_torch
def test_wrappers_that_record_their_arguments_are_made_again(training_backend_name: str) -> None:
    inner = gym.make("CartPole-v1")
    with _ppo(training_backend_name, gym.wrappers.TimeLimit(inner, max_episode_steps=4)).build() as algo:
        assert algo.evaluate(2)["episode_len_mean"] == 4
    words = "a wrapper around it does not record its arguments"
    with _ppo(training_backend_name, gym.Wrapper(inner)).build() as algo, pytest.raises(ConfigError, match=words):
        algo.evaluate(2)


@pytest.mark.fast_on_torch
@pytest.mark.parametrize("mode", own_reset_modes(), ids=lambda mode: mode.value)
@pytest.mark.parametrize("given", ["object", "function"])
def test_a_vector_counts_as_many_as_it_is(training_backend_name: str, mode: Any, given: str) -> None:
    def make(env_config: Any) -> Any:
        return make_vector("told", 3, mode)

    env = make({}) if given == "object" else make
    with _ppo(training_backend_name, env).build() as algo:
        algo.learner_group.set_weights(told_to(algo.learner_group.get_weights(), 1))
        results = algo.train()
        assert algo.config.num_envs_per_env_runner == algo.runner.num_envs == 3
        assert algo.runner.num_vector_steps == 8  # "auto": what fills a batch of 24
        lost = 3 if mode.value == "NextStep" else 0  # rows that reset
        assert results["env_runners"]["num_env_steps_sampled"] == 24 - lost
        assert results["env_runners"]["episode_return_mean"] == 5.0  # five steps of the action 1
        if given == "function":
            found = algo.evaluate(7)
            assert found["num_episodes"] == 7 and found["episode_len_mean"] == 5.0


@pytest.mark.fast_on_torch
def test_a_vector_by_gymnasium_is_made_again_to_evaluate(training_backend_name: str) -> None:
    with _ppo(training_backend_name, gym.make_vec("CartPole-v1", num_envs=4)).build() as algo:
        assert algo.evaluate(6)["num_episodes"] == 6 and algo.runner.num_envs == 4
    wrapped = gym.wrappers.vector.RecordEpisodeStatistics(gym.make_vec("CartPole-v1", num_envs=4))
    with _ppo(training_backend_name, wrapped).build() as algo:
        algo.train()
        with pytest.raises(ConfigError, match="wrappers of vector environments are in no spec"):
            algo.evaluate(2)
    with _ppo(training_backend_name, make_vector()).build() as algo, pytest.raises(ConfigError, match="nobody knows"):
        algo.evaluate(2)


@pytest.mark.fast_on_torch
def test_another_number_than_the_vectors_is_refused(training_backend_name: str) -> None:
    for env in (make_vector(), lambda env_config: make_vector()):
        config = _ppo(training_backend_name, env).env_runners(num_envs_per_env_runner=8)
        words = r"num_envs_per_env_runner=8\): SyncVectorEnv is 3 environments; leave the setting out"
        with pytest.raises(ConfigError, match=words):
            config.build()
        with config.env_runners(num_envs_per_env_runner=3).build() as algo:
            assert algo.runner.num_envs == 3
        with pytest.raises(ConfigError, match="SyncVectorEnv steps its environments itself"):
            config.env_runners(vectorization="async").build()


@pytest.mark.parametrize("kind", [SACConfig, IMPALAConfig, APPOConfig])
def test_every_algorithm_takes_a_vector(training_backend_name: str, kind: Any) -> None:
    config = kind().environment(lambda env_config: make_vector("wander-box" if kind is SACConfig else "wander", 3))
    config.framework(training_backend_name, compile=False).rl_module(model={"hidden": [4]})
    if kind is SACConfig:
        config.training(train_batch_size=4, learning_starts=6, timesteps_per_iteration=12, buffer_capacity=64)
    else:
        config.training(train_batch_size=30, timesteps_per_iteration=60).env_runners(rollout_fragment_length=10)
    with config.build() as algo:
        results = algo.train()
        steps = results["num_env_steps_sampled_lifetime"]
        assert steps % 3 == 0 and steps >= config.timesteps_per_iteration and algo.runner.num_envs == 3
        assert np.isfinite(algo.evaluate(4)["episode_return_mean"])


def test_a_vector_in_runner_processes(training_backend_name: str) -> None:
    config = _ppo(training_backend_name, lambda env_config: make_vector("told", 3))
    with config.env_runners(num_env_runners=2).build() as algo:
        results = algo.train()
        assert results["env_runners"]["num_env_steps_sampled"] == 24  # two runners of three, four steps
        assert algo.env_runners.foreach_runner(lambda runner: runner.num_envs) == [3, 3]


@pytest.mark.fast_on_torch
def test_memory_masks_and_normalisers_with_a_vector(training_backend_name: str) -> None:
    config = _ppo(training_backend_name, lambda env_config: make_vector("masked", 2), max_seq_len=4)
    config.rl_module(model={"hidden": [4], "recurrent": "gru", "recurrent_size": 3})
    config.env_runners(normalize_observations=True, normalize_rewards=True)
    with config.build() as algo:  # the environment asserts that the mask is heard
        algo.train()
        assert algo.evaluate(3)["episode_return_mean"] == 5.0


@pytest.mark.fast_on_torch
@pytest.mark.parametrize("mode", own_reset_modes(), ids=lambda mode: mode.value)
def test_a_vector_resumes_on_its_trajectory(training_backend_name: str, tmp_path: Path, mode: Any) -> None:
    def make(env_config: Any) -> Any:
        return make_vector("wander", 3, mode)

    path = str(tmp_path / "run.lcstate")
    with _ppo(training_backend_name, make).build() as algo:
        algo.train()
        algo.save(path)
        algo.train()
        expected = _bytes(algo.get_state())
    with lc.Algorithm.from_checkpoint(path, env=make) as algo:
        assert algo.config.num_envs_per_env_runner == 3
        algo.train()
        assert _bytes(algo.get_state()) == expected
    with pytest.raises(ConfigError, match=r"env: its value .*could not be stored.*from_checkpoint\(path, env=\.\.\.\)"):
        lc.Algorithm.from_checkpoint(path)


@pytest.mark.fast_on_torch
def test_an_object_is_given_again_and_recorded(training_backend_name: str, tmp_path: Path) -> None:
    path = str(tmp_path / "run.lcstate")
    with _ppo(training_backend_name, gym.make("CartPole-v1")).build() as algo:
        algo.train()
        algo.save(path)
        expected = algo.get_state()
    with pytest.raises(ConfigError, match=r"env: its value .*could not be stored.*from_checkpoint\(path, env=\.\.\.\)"):
        lc.Algorithm.from_checkpoint(path)
    for env in (gym.make("CartPole-v1"), "CartPole-v1"):
        with lc.Algorithm.from_checkpoint(path, env=env) as algo:
            assert algo.config.num_envs_per_env_runner == 1
            assert not states_differ(algo.get_state()["learner"], expected["learner"])
            summary = record(algo, str(tmp_path / "episodes.lcstate"), num_episodes=2, max_episode_steps=3)
            assert (summary["num_rows"], summary["num_episodes_unfinished"]) == (6, 2)
            (tmp_path / "episodes.lcstate").unlink()


@pytest.mark.fast_on_torch
def test_several_agents_as_an_object(training_backend_name: str) -> None:
    config = told("ppo", training_backend_name).environment(make_signals({}), env_config={})
    config = config.multi_agent(policies=["speaker", "listener"])
    with pytest.raises(ConfigError, match=r"num_envs_per_env_runner=2\): Signals is one object"):
        config.build()
    with config.env_runners(num_envs_per_env_runner=1).build() as algo:
        assert algo.train()["env_runners"]["num_env_steps_sampled"] > 0
        with pytest.raises(ConfigError, match="PettingZoo's objects do not say it"):
            algo.evaluate(1)


class Stuck(Wander):
    """Cannot be sent to another process."""

    def __reduce__(self) -> Any:
        raise TypeError("a simulator's handle")


@pytest.mark.fast_on_torch
def test_learners_may_be_in_other_processes(training_backend_name: str) -> None:
    with _ppo(training_backend_name, Stuck()).learners(num_learners=1, timeout_s=60.0).build() as algo:
        assert np.isfinite(algo.train()["learners"]["default_policy"]["total_loss"])


@pytest.mark.fast_on_torch
def test_learners_alone_leave_an_object_open(training_backend_name: str) -> None:
    env = gym.make("CartPole-v1")
    _ppo(training_backend_name, env).build_learner()
    with _ppo(training_backend_name, env).build_learner_group():
        env.reset(seed=0)
    env.step(0)


# ---- evaluation in vectors of a width of their own -------------------------------------------------------------------


@pytest.mark.parametrize("mode", own_reset_modes(), ids=lambda mode: mode.value)
@pytest.mark.fast_on_torch
def test_short_episodes_are_not_preferred(training_backend_name: str, mode: Any) -> None:
    """Lanes of 3, 4 and 5 steps: each gives as many, whichever ends first."""

    def make(env_config: Any) -> Any:
        lanes = [lambda n=n: Endless(ends=dict.fromkeys(range(1, 99), n)) for n in (3, 4, 5)]
        return gym.vector.SyncVectorEnv(lanes, autoreset_mode=mode)

    with _ppo(training_backend_name, make).build() as algo:
        for number, lengths in ((6, [3, 4, 5] * 2), (4, [3, 4, 5, 3]), (2, [3, 4])):
            found = [episode.episode_length for episode in algo.runner.evaluate(number)]
            assert found == lengths


@pytest.mark.parametrize("mode", own_reset_modes(), ids=lambda mode: mode.value)
@pytest.mark.fast_on_torch
def test_episodes_that_do_not_end_are_cut_and_their_lanes_go_on(training_backend_name: str, mode: Any) -> None:
    """Of lane 0 every second episode never ends; of lane 1 none does; lane 2's end after two steps."""

    def make(env_config: Any) -> Any:
        plans: list[Any] = [{1: 4, 3: 4, 5: 4}, {}, dict.fromkeys(range(1, 99), 2)]
        return gym.vector.SyncVectorEnv([lambda p=p: Endless(p) for p in plans], autoreset_mode=mode)

    with _ppo(training_backend_name, make).build() as algo:
        algo.learner_group.set_weights(told_to(algo.learner_group.get_weights(), 1))
        episodes = algo.runner.evaluate(9, max_episode_steps=6)
        assert len(episodes) == 9
        assert [e.episode_length for e in episodes[1::3]] == [6, 6, 6] and all(e.is_cut for e in episodes[1::3])
        assert [e.episode_length for e in episodes[2::3]] == [2, 2, 2] and not any(e.is_cut for e in episodes[2::3])
        assert [(e.episode_length, e.is_cut) for e in episodes[0::3]] == [(4, False), (6, True), (4, False)]
        assert all(e.episode_return == e.episode_length for e in episodes)


# ---- arrays of another library ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", own_reset_modes(), ids=lambda mode: mode.value)
def test_a_vector_that_answers_in_tensors_of_a_device(
    training_backend_name: str, mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_library(monkeypatch)
    for given in (lambda: _clocks(mode), lambda: lambda env_config: _clocks(mode)):
        with _ppo(training_backend_name, given()).build() as algo:
            algo.learner_group.set_weights(told_to(algo.learner_group.get_weights(), 1))
            results = algo.train()["env_runners"]
            assert results["num_episodes"] >= 5 and results["episode_return_mean"] == results["episode_len_mean"]
    with _ppo(training_backend_name, lambda env_config: _clocks(mode)).build() as algo:
        assert [e.episode_length for e in algo.runner.evaluate(4)] == [3, 4, 3, 4]


def _clocks(mode: Any) -> Clocks:
    return Clocks(lambda values: Tensor(values), Tensor, mode)


class TensorTold(Told):
    """One environment in tensors."""

    def reset(self, **options: Any) -> Any:
        obs, info = super().reset(**options)
        return Tensor(obs), info

    def step(self, action: Any) -> Any:
        assert isinstance(action, Tensor) and action.device == "chip"
        obs, reward, terminated, truncated, info = super().step(action.values)
        return Tensor(obs), Tensor(np.float32(reward)), Tensor(terminated), Tensor(truncated), info


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.fast_on_torch
def test_one_environment_that_answers_in_tensors(
    training_backend_name: str, vectorization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_library(monkeypatch)
    config = _ppo(training_backend_name, lambda env_config: TensorTold())
    config.env_runners(num_envs_per_env_runner=2, vectorization=vectorization)
    with config.build() as algo:
        algo.learner_group.set_weights(told_to(algo.learner_group.get_weights(), 1))
        assert algo.train()["env_runners"]["episode_return_mean"] == 5.0


class Simulator:
    """Several environments that are no ``VectorEnv``, as batched simulators have them."""

    num_envs = 2
    single_observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    single_action_space = gym.spaces.Discrete(2)

    def __init__(self, metadata: dict[str, Any]) -> None:
        self.metadata, self.inner = metadata, make_vector("told", 2)
        self.unwrapped = self

    def reset(self, **options: Any) -> Any:
        return self.inner.reset(**options)

    def step(self, actions: Any) -> Any:
        return self.inner.step(actions)

    def close(self) -> None:
        self.inner.close()


@pytest.mark.fast_on_torch
def test_several_environments_that_are_no_vector_env_say_how_they_reset(training_backend_name: str) -> None:
    mode = gym.vector.AutoresetMode.SAME_STEP
    with _ppo(training_backend_name, lambda env_config: Simulator({"autoreset_mode": mode})).build() as algo:
        assert algo.runner.num_envs == 2 and algo.train()["env_runners"]["num_episodes"] > 0
    with pytest.raises(EnvError, match="Simulator is 2 environments and no gymnasium VectorEnv: say what it does"):
        _ppo(training_backend_name, lambda env_config: Simulator({})).build()
