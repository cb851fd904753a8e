"""Environments and modules whose every number can be told beforehand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from learner_core.learning.rl_module import RLModule, RLModuleSpec
from learner_core.spaces import SpaceEncoder


class CountEnv(gym.Env):
    """Shows [episode, step]; pays 10 * episode + step; ends after ``length`` steps, every other time by truncation."""

    def __init__(self, length: int = 3, shift: int = 0) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.length = length + shift
        self.episode = -1
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.episode += 1
        self.steps = 0
        return self._obs(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        done = self.steps == self.length
        truncated = done and self.episode % 2 == 1
        return self._obs(), float(10 * self.episode + self.steps), done and not truncated, truncated, {}

    def _obs(self) -> np.ndarray:
        return np.array([self.episode, self.steps], np.float32)


class NestedEnv(gym.Env):
    """Observations of every kind; pays what its random generator says."""

    def __init__(self) -> None:
        self.observation_space = spaces.Dict(
            {
                "image": spaces.Box(0, 255, (4, 4, 1), np.uint8),
                "pair": spaces.Tuple((spaces.Box(-1, 1, (2,), np.float64), spaces.Discrete(3, start=1))),
            }
        )
        self.action_space = spaces.MultiDiscrete([2, 3])
        self.clock = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.clock = 0
        return self._obs(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        self.clock += 1
        return self._obs(), float(self.np_random.normal()), self.clock == 5, False, {}

    def _obs(self) -> Any:
        rng = self.np_random
        image = rng.integers(0, 256, (4, 4, 1), dtype=np.uint8)
        return {"image": image, "pair": (rng.uniform(-1, 1, 2), np.int64(rng.integers(1, 4)))}


class SpacesEnv(gym.Env):
    """Any action space; refuses what is not in it and remembers what it got."""

    def __init__(self, action_space: Any) -> None:
        self.observation_space = spaces.Box(-1, 1, (3,), np.float32)
        self.action_space = action_space
        self.received: list[Any] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> Any:
        if not self.action_space.contains(action):
            raise AssertionError(f"{action!r} is not in {self.action_space}")
        self.received.append(np.array(action))
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), 1.0, False, False, {}


class LinearModule(RLModule):
    """One linear layer for the policy, one for the value; numbers small enough to follow."""

    def setup(self) -> None:
        self.encoder = SpaceEncoder(self.observation_space)
        self.size = self.get_train_action_dist_cls().input_size(self.action_space)

    def init(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        def draw(*shape: int) -> np.ndarray:
            return (0.3 * rng.standard_normal(shape)).astype(np.float32)

        return {"pi.weight": draw(self.size, self.encoder.size), "vf.weight": draw(1, self.encoder.size)}

    def forward_train(self, params: Any, batch: Any) -> dict[str, Any]:
        x = self.encoder(self.xp, batch["obs"], self.xp.float32)
        values = self.xp.squeeze(self.xp.linear(x, params["vf.weight"]), -1)
        return {"action_dist_inputs": self.xp.linear(x, params["pi.weight"]), "vf_preds": values}


SPEC = RLModuleSpec(LinearModule)


def runner_config(env: Any, num_envs: int = 2, **settings: Any) -> Any:
    """What environment runners read of a config, of one agent and of several."""
    defaults = {
        "env": env,
        "env_config": {},
        "action_mask_in_info": False,
        "max_env_restarts": 0,
        "num_env_runners": 0,
        "num_envs_per_env_runner": num_envs,
        "max_requests_in_flight_per_env_runner": 1,
        "max_env_runner_restarts": 10,
        "env_runner_timeout_s": 30.0,
        "inference": "auto",
        "launcher": "local",
        "device": "auto",
        "vectorization": "auto",
        "env_step_timeout_s": 120.0,
        "critic_observes": "own",
        "policies": None,
        "policy_mapping_fn": None,
        "policies_to_train": None,
        "normalize_observations": False,
        "normalize_rewards": False,
        "gamma": 0.9,
        "samples_raw": False,
    }
    return SimpleNamespace(**{**defaults, **settings})


def make_runner(env: Any, num_envs: int = 2, *, seed: int = 7, worker_index: int = 0, **settings: Any) -> Any:
    """A runner with weights."""
    from learner_core.sampling.env_runner import EnvRunner

    runner = EnvRunner(runner_config(env, num_envs, **settings), SPEC, seed=seed, worker_index=worker_index)
    runner.set_weights(runner.policy.module.init(np.random.default_rng(1)))
    return runner


def make_lanes(env: Any, num_envs: int = 1, **settings: Any) -> Any:
    """Lanes of these settings."""
    from learner_core.sampling import vector_env

    return vector_env.make_lanes(env, runner_config(env, **settings), num_envs=num_envs)


def same_tree(first: Any, second: Any) -> bool:
    """Equal structure, dtypes, shapes and bits."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same_tree(first[key], second[key]) for key in first)
    first, second = np.asarray(first), np.asarray(second)
    return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()
