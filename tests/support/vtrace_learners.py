"""IMPALA and APPO on tiny networks, and sequences [B, T] as runners with an older policy would have left them."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Discrete

from support.learners import ppo_batch

__all__ = ["sequence_batch", "tiny_sequences"]


def tiny_sequences(config: Any, backend_name: str, *, length: int = 5, precision: str = "float64", **training: Any):
    """``config`` (IMPALA, APPO) on tiny networks, minibatches of two sequences."""
    config.framework(backend_name, compile=False, precision=precision)
    config.env_runners(rollout_fragment_length=length).rl_module(model={"hidden": [6], "activation": "tanh"})
    return config.training(**{"minibatch_size": 2 * length, "train_batch_size": 4 * length, **training})


def sequence_batch(
    sequences: int, action_space: Any, *, length: int = 5, obs_size: int = 3, seed: int = 0, spread: float = 0.7
) -> dict[str, Any]:
    """Fragments with episodes that end in both ways, rows that do not count, and what follows each fragment."""
    rng = np.random.default_rng(seed + 1000)
    rows = ppo_batch(sequences * length, action_space, obs_size=obs_size, seed=seed, spread=spread)
    batch = {name: rows[name].reshape(sequences, length, *rows[name].shape[1:]) for name in ("obs", "actions")}
    batch["action_logp"] = rows["action_logp"].reshape(sequences, length)
    shape = (sequences, length)
    terminated = rng.uniform(size=shape) < 0.15
    mask = (rng.uniform(size=shape) > 0.12).astype(np.float64)
    mask[0] = 1.0
    return {
        **batch,
        "rewards": rng.normal(size=shape),
        "terminateds": terminated,
        "truncateds": ~terminated & (rng.uniform(size=shape) < 0.2),
        "bootstrap_obs": rng.normal(size=(sequences, obs_size)),
        "bootstrap_values": rng.normal(size=shape),
        "loss_mask": mask,
    }


def start_of(space: Any) -> int:
    """The smallest action."""
    return int(space.start) if isinstance(space, Discrete) else 0
