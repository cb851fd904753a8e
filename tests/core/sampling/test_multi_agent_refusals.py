"""Several agents: environments and spaces that do not fit are refused, one that fails is made again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from learner_core.errors import ConfigError, EnvError, SpaceError
from learner_core.sampling.multi_agent_env_runner import MultiAgentEnvRunner

from support.agents import crossing
from support.parallel_envs import PARTS, Crossing, make_agents_runner, make_crossing, specs_for
from support.sampling import CountEnv, runner_config


def test_spaces_that_are_not_the_modules() -> None:
    with pytest.raises(SpaceError, match=r"agent 'b' has observation_space .*, but module 'm'.*policy_mapping_fn"):

        def other(env_config: dict[str, Any]) -> Crossing:
            env = Crossing(PARTS)
            env.observation_spaces["b"] = spaces.Box(-1, 1, (5,), np.float32)
            return env

        make_agents_runner(other, {"m": "a"})


def test_observations_that_are_not_the_spaces() -> None:
    class Wrong(Crossing):
        def _obs(self, agent: str) -> np.ndarray:
            return np.zeros(7, np.float32) if agent == "c" else super()._obs(agent)

    runner = make_agents_runner(lambda config: Wrong(PARTS), {"m": "a"})
    with pytest.raises(EnvError, match=r"agent 'c': observation must have the shape \(3,\), got shape \(7,\)"):
        runner.sample(6)


def test_a_live_agent_that_is_shown_nothing() -> None:
    class Mute(Crossing):
        def step(self, actions: dict[str, Any]) -> Any:
            obs, *rest = super().step(actions)
            obs.pop("c", None)
            return obs, *rest

    runner = make_agents_runner(lambda config: Mute(PARTS), {"m": "a"})
    with pytest.raises(EnvError, match=r"agent 'c' is in env\.agents but was given no observation"):
        runner.sample(6)


@pytest.mark.parametrize("what", ["observation", "final", "reward"])
def test_numbers_that_are_not_finite(what: str) -> None:
    class Bad(Crossing):
        def step(self, actions: dict[str, Any]) -> Any:
            obs, rewards, terminateds, truncateds, infos = super().step(actions)
            if what == "reward":
                rewards["b"] = float("nan")
            elif what == "observation" and self.clock == 1:
                obs["a"][0] = np.inf
            elif what == "final" and self.clock == 2:
                obs["b"][1] = np.nan
            return obs, rewards, terminateds, truncateds, infos

    runner = make_agents_runner(lambda config: Bad(PARTS), {"m": "a"})
    with pytest.raises(EnvError, match="not finite"):
        runner.sample(4)


def test_environments_of_the_wrong_kind() -> None:
    specs = specs_for(make_crossing({}), {"m": "a"})
    with pytest.raises(EnvError, match="no PettingZoo"):
        config = runner_config(lambda config: CountEnv(), 1)
        MultiAgentEnvRunner(config, specs, seed=0)
    with pytest.raises(ConfigError, match="normalize_rewards"):
        crossing(normalize_rewards=True)


def test_an_environment_that_raises_is_rebuilt_and_its_episode_given_up() -> None:
    memory: dict[str, Any] = {}

    def falling(env_config: dict[str, Any]) -> Crossing:
        return Crossing(PARTS, raises=(1, 3), memory=memory)

    runner = make_agents_runner(falling, {"m": "a"}, 1, max_env_restarts=1)
    with pytest.warns(RuntimeWarning, match=r"step 3 of its episode: raised RuntimeError: the scene fell over"):
        rollout = runner.sample(10)["m"]
    valid = rollout.columns["valid"]
    assert valid[:4, 0].all() and not valid[4:7].any() and valid[7:, 0].all()
    assert rollout.columns["truncateds"][6, 0]  # nothing is propagated across it
    metrics = runner.metrics()
    assert metrics["num_env_restarts_lifetime"] == metrics["num_episodes_lost_lifetime"] == 1
    assert metrics["num_env_steps_sampled_lifetime"] == 7
    assert metrics["num_agent_steps_sampled_lifetime"] == valid.sum()

    def broken(env_config: dict[str, Any]) -> Crossing:
        return Crossing(PARTS, raises=(0, 1), memory={})

    with pytest.warns(RuntimeWarning), pytest.raises(EnvError, match="max_env_restarts=2"):
        make_agents_runner(broken, {"m": "a"}, 1, max_env_restarts=2).sample(10)
