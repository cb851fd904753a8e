"""learner-core's configuration of the work that is measured. Imports no framework."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from ppo_settings import training
from work import Work

from learner_core_algorithms import PPOConfig

__all__ = ["ppo_config"]


def ppo_config(backend: str, work: Work) -> Any:
    """PPO on observations and actions of these sizes; learners are the caller's choice."""
    config = PPOConfig().framework(backend, device="cpu")
    config.rl_module(model={"hidden": list(work.hidden), "activation": "tanh"})
    config.environment(
        None,
        observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (work.obs,), np.float32),
        action_space=gymnasium.spaces.Discrete(work.actions),
    )
    sizes = {"batch": work.batch, "minibatch": work.minibatch, "epochs": work.epochs}
    return config.training(**training(**sizes, normalize_advantages="off"))
