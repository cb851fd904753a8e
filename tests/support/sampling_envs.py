"""Environments that draw from the generators of their own spaces."""

from __future__ import annotations

import functools
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from .parallel_envs import Parallel

__all__ = ["SelfSampling", "SelfSamplingGame", "make_self_sampling"]

_AGENTS = ("a", "b")


class SelfSampling(gym.Env):  # type: ignore[misc]
    """Shows samples of its observation space and pays what a sample of its action space says; five steps an episode."""

    def __init__(self) -> None:
        inside = spaces.Dict({"x": spaces.Box(-1, 1, (2,), np.float32), "n": spaces.Discrete(3)})
        self.observation_space = spaces.Dict({"deep": inside, "bits": spaces.MultiBinary(2)})
        self.action_space = spaces.Discrete(5)
        self.clock = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.clock = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        self.clock += 1
        reward = float(self.action_space.sample() == action)
        return self.observation_space.sample(), reward, self.clock == 5, False, {}


class _Noise(gym.Wrapper):  # type: ignore[type-arg]
    """Adds noise of a space of its own to the reward."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.noise = {"reward": spaces.Box(-1, 1, (), np.float32)}

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward + float(self.noise["reward"].sample()), terminated, truncated, info


def make_self_sampling(env_config: dict[str, Any]) -> Any:
    """A wrapped one."""
    return _Noise(SelfSampling())


class SelfSamplingGame(Parallel):
    """Two agents; their spaces are remembered by what gives them, and in no attribute."""

    def __init__(self, env_config: dict[str, Any] | None = None) -> None:
        super().__init__({})
        self.possible_agents = list(_AGENTS)
        self.clock = 0

    @functools.cache  # noqa: B019 - as PettingZoo's own documentation has it
    def observation_space(self, agent: str) -> Any:
        return spaces.Box(-1, 1, (2,), np.float32)

    @functools.cache  # noqa: B019
    def action_space(self, agent: str) -> Any:
        return spaces.Discrete(3)

    def _shown(self) -> dict[str, Any]:
        return {agent: self.observation_space(agent).sample() for agent in _AGENTS}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.agents, self.clock = list(_AGENTS), 0
        return self._shown(), {}

    def step(self, actions: dict[str, Any]) -> Any:
        self.clock += 1
        over = self.clock == 4
        rewards = {agent: float(self.action_space(agent).sample() == actions[agent]) for agent in _AGENTS}
        self.agents = [] if over else self.agents
        return self._shown(), rewards, dict.fromkeys(_AGENTS, over), dict.fromkeys(_AGENTS, False), {}
