"""Small environments of every kind of space, and configurations that train on them in a moment."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from learner_core_algorithms import PPOConfig, SACConfig

OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(-1, 1, (3,), np.float32),
    "matrix": spaces.Box(-1, 1, (2, 3), np.float64),
    "discrete": spaces.Discrete(4, start=1),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_binary": spaces.MultiBinary(3),
    "dict": spaces.Dict({"a": spaces.Box(-1, 1, (2,), np.float32), "b": spaces.Discrete(3)}),
    "tuple": spaces.Tuple((spaces.Box(-1, 1, (2,), np.float32), spaces.MultiBinary(2))),
    "image": spaces.Box(0, 255, (12, 12, 3), np.uint8),
}
ACTIONS: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(3, start=-1),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_binary": spaces.MultiBinary(2),
    "bounded": spaces.Box(-2, 3, (2,), np.float32),
    "unbounded": spaces.Box(-np.inf, np.inf, (2,), np.float32),
}


class RandomEnv(gym.Env[Any, Any]):
    """Random observations; pays 1 a step; ends after five steps, by truncation every other time."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space = observation_space
        self.action_space = action_space
        self.clock = 0
        self.episode = -1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.clock, self.episode = 0, self.episode + 1
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.clock += 1
        done = self.clock == 5
        truncated = done and self.episode % 2 == 0
        return self.observation_space.sample(), 1.0, done and not truncated, truncated, {}


def make_random_env(env_config: dict[str, Any]) -> RandomEnv:
    """``{"obs": key of OBSERVATIONS, "actions": key of ACTIONS}``."""
    return RandomEnv(OBSERVATIONS[env_config.get("obs", "box")], ACTIONS[env_config.get("actions", "discrete")])


def small_ppo(backend: str, **env_config: str) -> Any:
    """PPO on a RandomEnv, uncompiled, a few dozen rows an update."""
    return (
        PPOConfig()
        .environment(make_random_env, env_config=env_config)
        .framework(backend, compile=False)
        .env_runners(num_envs_per_env_runner=2)
        .training(train_batch_size=24, minibatch_size=16, num_epochs=1)
        .rl_module(model={"hidden": [8]})
    )


def small_sac(backend: str, **env_config: str) -> Any:
    """SAC on a RandomEnv, uncompiled, a few gradient steps an iteration."""
    return (
        SACConfig()
        .environment(make_random_env, env_config={"actions": "bounded", **env_config})
        .framework(backend, compile=False)
        .training(train_batch_size=8, learning_starts=10, timesteps_per_iteration=14, buffer_capacity=50)
        .rl_module(model={"hidden": [8], "activation": "relu"})
    )


def assert_same(left: Any, right: Any, path: str = "") -> None:
    """Trees with the same keys and equal values, NaN equal to NaN; what ``train()`` returned, a state."""
    if isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for key in left:
            assert_same(left[key], right[key], f"{path}/{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), path
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_same(one, other, f"{path}[{index}]")
    else:
        np.testing.assert_array_equal(left, right, err_msg=path)
