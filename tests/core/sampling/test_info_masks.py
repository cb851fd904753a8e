"""Masks of actions that environments give in ``info``, or by a method, hold as those in observations do."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from learner_core import numpy_xp
from learner_core.config.environments import make_env
from learner_core.config.info_masks import InfoMasks, with_info_masks
from learner_core.errors import ConfigError, EnvError, SpaceError
from learner_core.learning.actor_critic import ActorCriticModule
from learner_core.learning.resolve import resolve_modules
from learner_core.learning.rl_module import RLModuleSpec
from learner_core.sampling.env_runner import EnvRunner
from learner_core.sampling.multi_agent_env_runner import MultiAgentEnvRunner
from learner_core_algorithms import PPOConfig

from support.parallel_envs import Parallel
from support.sampling import runner_config

TAXI = max(name for name in gym.registry if name.startswith("Taxi-v"))


class Told(gym.Env):
    """Says in ``info`` which actions it allows; raises when it is given another one."""

    observation_space = spaces.Box(-9, 9, (2,), np.float32)

    def __init__(self, action_space: Any = None, by: str = "info") -> None:
        self.action_space = spaces.Discrete(4) if action_space is None else action_space
        self._by = by

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.clock = 0
        return self._answer()

    def step(self, action: Any) -> Any:
        assert all(mask[value] for mask, value in zip(self._masks, np.atleast_1d(action), strict=True)), action
        self.clock += 1
        obs, info = self._answer()
        ended = self.clock == 5
        return obs, 1.0, ended, False, {} if ended else info

    def _answer(self) -> Any:
        sizes = np.atleast_1d(getattr(self.action_space, "nvec", getattr(self.action_space, "n", 0)))
        self._masks = [self.np_random.permutation(size) < 1 + int(self.np_random.integers(2)) for size in sizes]
        shown = tuple(mask.astype(np.int8) for mask in self._masks)
        info = {"action_mask": shown if len(shown) > 1 else shown[0]} if self._by == "info" else {}
        return self.np_random.normal(size=2).astype(np.float32), info


class Asked(Told):
    """Says it by sb3-contrib's method instead."""

    def __init__(self) -> None:
        super().__init__(by="method")

    def action_masks(self) -> Any:
        return self._masks[0]


def _runner(env: Any, **settings: Any) -> EnvRunner:
    config = runner_config(env=env, num_envs_per_env_runner=3, action_mask_in_info=True, **settings)
    runner = EnvRunner(config, RLModuleSpec(ActorCriticModule, model={"hidden": [4]}), seed=0)
    runner.set_weights(runner.policy.module.init(np.random.default_rng(0)))
    return runner


MAKERS = {
    "discrete": lambda config: Told(),
    "multi, a tuple": lambda config: Told(spaces.MultiDiscrete([3, 2])),
    "a method below a wrapper": lambda config: gym.wrappers.TimeLimit(Asked(), 9),
    "Taxi": TAXI,
}


@pytest.mark.parametrize("kind", MAKERS)
def test_no_forbidden_action_is_ever_taken(kind: str) -> None:
    runner = _runner(MAKERS[kind], max_env_restarts=0)
    for options in ({}, {"random_actions": True}, {"explore": False}):
        rollout = runner.sample(40, **options)
        masks, actions = rollout.columns["action_mask"], rollout.columns["actions"]
        assert masks.dtype == np.bool_
        assert not masks.all()
        if actions.ndim == 2:
            assert np.take_along_axis(masks, actions[..., np.newaxis], -1).all()
    if kind != "Taxi":  # whose episodes are long
        assert [episode[1] for episode in runner.evaluate(4)] == [5] * 4
    runner.close()


def test_processes_of_gymnasium_and_the_learners_spaces() -> None:
    runner = _runner(lambda config: Told(), vectorization="async", max_env_restarts=0)
    assert not runner.sample(6).columns["action_mask"].all()
    runner.close()
    config = PPOConfig().environment(TAXI, action_mask_in_info=True)
    for env in (None, gym.make(TAXI)):
        spec = resolve_modules(config, env, None)["default_policy"]
        assert spec.masked
        assert spec.observation_space == spaces.Discrete(500)
    assert not resolve_modules(PPOConfig().environment(TAXI), None, None)["default_policy"].masked
    shown = make_env(config).reset(seed=0)[0]
    assert set(shown) == {"observation", "action_mask"}


def test_a_state_goes_on_and_another_wrapper_is_not_mistaken_for_it() -> None:
    runner = _runner(TAXI)
    runner.sample(7)
    assert runner.env_state == "exact"
    other = _runner(TAXI)
    other.set_state(runner.get_state())
    first, second = runner.sample(9).columns, other.sample(9).columns
    np.testing.assert_array_equal(first["actions"], second["actions"])
    np.testing.assert_array_equal(first["action_mask"], second["action_mask"])


def test_what_is_missing_or_does_not_fit_is_said() -> None:
    with pytest.raises(EnvError, match=r"Told: action_mask_in_info=True, but info has no 'action_mask'"):
        _runner(lambda config: Told(by="nothing"), max_env_restarts=0)
    with pytest.raises(SpaceError, match="cannot be masked"):
        with_info_masks(gym.make("Pendulum-v1"))
    with pytest.raises(ConfigError, match=r"SyncVectorEnv, one of several"):
        with_info_masks(gym.vector.SyncVectorEnv([Told]))
    env = Told()
    wrapped = InfoMasks(env)
    env.action_space = spaces.Discrete(3)  # its mask is of three entries then; the wrapper knows of four
    with pytest.raises(EnvError, match=r"has 3 entries; Discrete\(4\) needs 4"):
        wrapped.reset(seed=0)
    assert with_info_masks(wrapped) is wrapped
    assert wrapped.unwrapped is env


class Pair(Parallel):
    """Two agents, one with masked actions and one whose actions cannot be masked."""

    def __init__(self) -> None:
        seen = spaces.Box(-9, 9, (2,), np.float32)
        super().__init__({"picks": (seen, spaces.Discrete(3)), "steers": (seen, spaces.Box(-1, 1, (1,), np.float32))})

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.agents = list(self.possible_agents)
        self._rng = np.random.default_rng(seed)
        self._clock = 0
        return self._obs(), self._infos()

    def step(self, actions: dict[str, Any]) -> Any:
        assert self._allowed[actions["picks"]]
        self._clock += 1
        over = dict.fromkeys(self.possible_agents, self._clock == 4)
        if self._clock == 4:
            self.agents = []
        infos = {} if self._clock == 4 else self._infos()
        return self._obs(), dict.fromkeys(self.possible_agents, 1.0), over, dict.fromkeys(over, False), infos

    def _obs(self) -> Any:
        return {agent: np.ones(2, np.float32) for agent in self.possible_agents}

    def _infos(self) -> Any:
        self._allowed = self._rng.permutation(3) < 1
        return {"picks": {"action_mask": self._allowed.astype(np.int8)}, "steers": {}}


def test_several_agents() -> None:
    env = with_info_masks(Pair())
    assert set(env.observation_space("picks").spaces) == {"observation", "action_mask"}
    assert env.observation_space("steers") == spaces.Box(-9, 9, (2,), np.float32)
    config = PPOConfig().environment(lambda config: Pair(), action_mask_in_info=True)
    config.multi_agent(policies=["picks", "steers"]).env_runners(num_envs_per_env_runner=2)
    specs = resolve_modules(config, None, None)
    assert specs["picks"].masked
    assert not specs["steers"].masked
    config.rl_module(model={"hidden": [4]}).freeze()
    runner = MultiAgentEnvRunner(config, specs, seed=0)
    runner.set_weights({mid: specs[mid].build(numpy_xp).init(np.random.default_rng(0)) for mid in specs})
    for rollout in (runner.sample(9), runner.sample(9, explore=False)):
        assert (rollout["picks"].rows()["action_mask"].sum(-1) == 1).all()
        assert "action_mask" not in rollout["steers"].columns
    assert len(runner.evaluate(2)) == 2
    runner.close()
