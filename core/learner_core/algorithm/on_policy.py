"""The loop of on-policy algorithms: sample a batch with the newest weights, learn from it, throw it away."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import numpy_xp
from ..maths.returns import gae
from ..sampling.rollout import Rollout
from .algorithm import Algorithm, fragment_length

__all__ = ["OnPolicyAlgorithm", "with_advantages"]


class OnPolicyAlgorithm(Algorithm):
    """Samples ``train_batch_size`` steps, computes advantages, updates once."""

    def training_step(self) -> dict[str, Any]:
        config = self.config
        length = fragment_length(config)
        count = max(1, math.ceil(config.train_batch_size / (length * config.num_envs_per_env_runner)))
        with self.timed("sample"):
            rollouts = [self.runner.sample(length) for _ in range(count)]
            self.count_episodes()
        with self.timed("advantages"):
            batches = [with_advantages(rollout, config) for rollout in rollouts]
            batch = batches[0] if count == 1 else _joined(batches)
        with self.timed("learn"):
            results = self.learner_group.update_from_batch(batch, timesteps=self.timesteps)
        self.sync_weights()
        return results


def with_advantages(rollout: Rollout, config: Any) -> dict[str, Any]:
    """The rows of a rollout with ``advantages`` and ``value_targets`` (GAE; bootstrapped where an episode was cut)."""
    columns = rollout.columns
    rewards = np.asarray(columns["rewards"], np.float32)
    zeros = np.zeros_like(rewards)
    values, following = columns.get("vf_preds"), rollout.bootstrap_values
    if not getattr(config, "use_critic", True) or values is None or following is None:
        values, following = zeros, zeros
    advantages, targets = gae(
        numpy_xp,
        r_t=rewards,
        v_t=np.asarray(values, np.float32),
        v_tp1=np.asarray(following, np.float32),
        terminated_t=columns["terminateds"],
        done_t=rollout.ends,
        gamma=config.gamma,
        lambda_=config.lambda_ if getattr(config, "use_critic", True) else 1.0,
    )
    rows = rollout.rows({"advantages": advantages, "value_targets": targets})
    rows.pop("next_obs", None)
    return rows


def _joined(batches: list[dict[str, Any]]) -> dict[str, Any]:
    first = batches[0]
    return {
        name: _joined([batch[name] for batch in batches])
        if isinstance(column, dict)
        else np.concatenate([batch[name] for batch in batches])
        for name, column in first.items()
    }
