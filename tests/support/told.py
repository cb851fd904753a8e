"""An environment that pays what the policy is told to do, and weights that tell it: who samples with which weights."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from learner_core_algorithms import APPOConfig, PPOConfig, SACConfig

#: Steps of every episode.
LENGTH = 5


class Told(gym.Env[Any, Any]):
    """Shows zeros; pays the action (0 or 1; of a Box its value); ends after five steps."""

    def __init__(self, continuous: bool = False) -> None:
        self.observation_space = spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = spaces.Box(-1, 1, (1,), np.float32) if continuous else spaces.Discrete(2)
        self.clock = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.clock = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.clock += 1
        return np.zeros(2, np.float32), float(np.sum(action)), self.clock == LENGTH, False, {}


def make_told(env_config: dict[str, Any]) -> Told:
    """``{"continuous": bool}``."""
    return Told(bool(env_config.get("continuous", False)))


def told(kind: str, backend: str, **training: Any) -> Any:
    """A configuration of "ppo", "sac" or "appo" that learns nothing (rate 0), a few rows an update."""
    config: Any = {"ppo": PPOConfig, "sac": SACConfig, "appo": APPOConfig}[kind]()
    config.environment(make_told, env_config={"continuous": kind == "sac"}).framework(backend, compile=False)
    config.rl_module(model={"hidden": [4]})
    if kind == "sac":
        rates = {"actor_lr": 0.0, "critic_lr": 0.0, "alpha_lr": 0.0}
        sizes = {"train_batch_size": 4, "learning_starts": 4, "timesteps_per_iteration": 10, "buffer_capacity": 64}
        return config.training(**{**rates, **sizes, **training})
    config.env_runners(num_envs_per_env_runner=2, rollout_fragment_length=LENGTH)
    if kind == "appo":
        sizes = {"train_batch_size": 10, "timesteps_per_iteration": 20, "circular_buffer_num_batches": 1}
        return config.training(**{"lr": 0.0, **sizes, **training})
    return config.training(**{"lr": 0.0, "train_batch_size": 20, "minibatch_size": 10, "num_epochs": 1, **training})


def told_to(weights: Any, action: float) -> Any:
    """These weights, with a policy that does ``action`` (0 or 1; of a Box -1 or 1) whatever it sees."""
    changed = {mid: {name: np.array(value) for name, value in arrays.items()} for mid, arrays in weights.items()}
    for arrays in changed.values():
        sign = 1.0 if action > 0 else -1.0
        arrays["pi.1.weight"][...] = 0.0
        discrete = arrays["pi.1.bias"].shape == (2,) and "qf.0.weight" not in arrays
        arrays["pi.1.bias"][...] = [-50.0 * sign, 50.0 * sign] if discrete else [50.0 * sign, -10.0]
    return changed


class Batches:
    """The batches that an Algorithm gives its learners."""

    def __init__(self, algo: Any) -> None:
        self.seen: list[Any] = []
        update = algo.learner_group.update_from_batch

        def watching(batch: Any, *arguments: Any, **keywords: Any) -> Any:
            self.seen.append(batch)
            return update(batch, *arguments, **keywords)

        algo.learner_group.update_from_batch = watching

    def targets(self) -> list[float]:
        """The different value targets of the last batch, from the smallest."""
        found: list[float] = np.unique(self.seen[-1]["value_targets"]).tolist()
        return found


class Watched:
    """The actions of every fragment that an Algorithm's runners hand over, by iteration."""

    def __init__(self, algorithm: Any) -> None:
        self.fragments: list[Any] = []
        group = algorithm.env_runners
        for name in ("sample", "ready"):
            setattr(group, name, self._watching(getattr(group, name)))

    def _watching(self, method: Any) -> Any:
        def watching(*arguments: Any, **keywords: Any) -> Any:
            answer = method(*arguments, **keywords)
            self.fragments += [getattr(part, "rollout", part) for part in answer]
            return answer

        return watching

    def take(self) -> np.ndarray:
        """float[rows]: the actions since the last call."""
        parts = [np.asarray(f.columns["actions"], np.float64)[f.columns["valid"]].reshape(-1) for f in self.fragments]
        self.fragments = []
        return np.concatenate(parts) if parts else np.zeros(0)


class Wander(gym.Env[Any, Any]):
    """Shows a random walk; pays the action times where it is; ends after six steps, or is cut off there."""

    def __init__(self, continuous: bool = False, scale: float = 1.0) -> None:
        self.observation_space = spaces.Box(-9, 9, (2,), np.float32)
        self.action_space = spaces.Box(-1, 1, (1,), np.float32) if continuous else spaces.Discrete(2)
        self.scale = scale
        self.clock, self.episode, self.place = 0, 0, np.zeros(2, np.float32)

    def _obs(self) -> np.ndarray:
        self.place = np.clip(self.place + self.np_random.normal(size=2), -9, 9).astype(np.float32)
        return self.place.copy()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.clock, self.place = 0, np.zeros(2, np.float32)
        return self._obs(), {}

    def step(self, action: Any) -> Any:
        self.clock += 1
        reward = self.scale * float(self.place[0]) * (float(np.sum(action)) - 0.5)
        done = self.clock == 6
        self.episode += done
        return self._obs(), reward, done and self.episode % 2 == 0, done and self.episode % 2 == 1, {}


def make_wander(env_config: dict[str, Any]) -> Wander:
    """``{"continuous": bool, "scale": float}``."""
    return Wander(**env_config)
