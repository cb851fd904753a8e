"""The same training by stable-baselines3, in its own environment (.venv-bench); see run.py.

Its environments are wrapped in Monitor (raw returns) and, where the task says so, VecNormalize.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import stable_baselines3
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize
from tasks import Task

__all__ = ["train"]

_ACTIVATIONS = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}


class _Curve(BaseCallback):
    """Mean return of the last 100 episodes, every ``every`` steps or more."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every = every
        self.curve: list[list[float]] = []
        self.began = time.perf_counter()
        self.next = every

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.next:
            self.next += self.every
            episodes = self.model.ep_info_buffer
            if episodes:
                mean = float(np.mean([episode["r"] for episode in episodes]))
                seconds = time.perf_counter() - self.began
                self.curve.append([self.num_timesteps, round(mean, 3), round(seconds, 2)])
        return True


def train(task: Task, seed: int) -> dict[str, Any]:
    """Train and evaluate; the same result as ``run.train`` gives."""
    torch.set_num_threads(1)
    assert task.peer is not None
    settings = dict(task.peer)
    envs = make_vec_env(task.env, n_envs=settings.pop("num_envs"), seed=seed)
    if task.peer_normalize:
        envs = VecNormalize(envs, gamma=settings["gamma"])
    network = {"net_arch": settings.pop("hidden"), "activation_fn": _ACTIVATIONS[settings.pop("activation")]}
    kind = getattr(stable_baselines3, task.algorithm.upper())
    began, cpu = time.perf_counter(), time.process_time()
    model = kind("MlpPolicy", envs, policy_kwargs=network, seed=seed, device="cpu", **settings)
    callback = _Curve(2048 if task.algorithm == "ppo" else 1000)
    model.learn(task.steps, callback=callback)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu

    fresh: Any = make_vec_env(task.env, n_envs=1, seed=seed + 10_000)
    if task.peer_normalize:
        fresh = VecNormalize(fresh, training=False, norm_reward=False)
        fresh.obs_rms = envs.obs_rms
    returns, lengths = evaluate_policy(
        model, fresh, n_eval_episodes=task.episodes, deterministic=True, return_episode_rewards=True
    )
    final = {
        "episode_return_mean": np.mean(returns),
        "episode_return_std": np.std(returns),
        "episode_return_min": np.min(returns),
        "episode_return_max": np.max(returns),
        "episode_len_mean": np.mean(lengths),
        "num_episodes": len(returns),
    }
    return {
        "curve": callback.curve,
        "final": {name: round(float(value), 3) for name, value in final.items()},
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
    }
