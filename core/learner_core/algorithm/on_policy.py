"""The loop of on-policy algorithms: sample a batch with the newest weights, learn from it, throw it away."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np

from .. import numpy_xp
from ..maths.returns import gae
from ..sampling.rollout import Rollout, per_module
from ..sampling.sequences import rollout_to_sequences
from ..xp import ArrayTree, Columns
from .algorithm import Algorithm, fragment_length, num_environments
from .evaluations import Results

__all__ = ["AdvantageSettings", "OnPolicyAlgorithm", "on_policy_batch", "with_advantages"]


class AdvantageSettings(Protocol):
    """What advantages, and the rows that have them, are made by."""

    gamma: float
    lambda_: float
    use_critic: bool
    burn_in: int

    @property
    def sequence_length(self) -> int:
        """Timesteps of a row where rows are sequences."""

    def for_module(self, module_id: str) -> Self:
        """Those of one module."""


class OnPolicyAlgorithm(Algorithm):
    """Samples ``train_batch_size`` steps, computes advantages, updates once."""

    #: Modules whose rows need ``next_obs``, which is as large as the observations and seldom read.
    _kept: frozenset[str] = frozenset()

    def setup(self) -> None:
        self.settings_changed()

    def settings_changed(self) -> None:
        rules = self.learner_group.batch_rules()
        self._kept = frozenset(mid for mid, rule in rules.items() if rule.is_read and rule.reads("next_obs"))

    def training_step(self) -> Results:
        config: Any = self.config
        length = fragment_length(config, self.num_ranks)
        steps = length * num_environments(config) * self.num_ranks
        count = max(1, math.ceil(config.train_batch_size / steps))
        with self.timed("sample"):
            rollouts = [rollout for _ in range(count) for rollout in self._runners.sample(length)]
            self.count_episodes()
        with self.timed("advantages"):
            parts = [self.processed(rollout) for rollout in rollouts]
            batch = on_policy_batch(parts, config, keep=self._kept)
        if not batch and self.ranks is None:
            return {"__all__": {"num_modules_updated": 0.0}}  # every episode was given up
        with self.timed("learn"):
            results = self.learner_group.update_from_batch(batch, timesteps=self.timesteps)
        self.sync_weights()
        return results


def on_policy_batch(
    rollouts: Sequence[Rollout | Mapping[str, Rollout]], config: AdvantageSettings, *, keep: Collection[str] = ()
) -> dict[str, ArrayTree]:
    """The rows of fragments with their advantages, as one batch.

    Args:
        rollouts: what runners handed over, of one agent or of several.
        config: the settings; those of each module count for its rows.
        keep: modules whose rows keep ``next_obs``.

    Returns:
        Columns [B, ...], or {module_id: columns} of the modules that have rows; {} if there are none at all.
    """
    parts: dict[str, list[dict[str, Any]]] = {}
    for rollout in rollouts:
        for module_id, part in per_module(rollout).items():
            rows = with_advantages(part, config.for_module(module_id))
            if module_id not in keep:
                rows.pop("next_obs", None)
            parts.setdefault(module_id, []).append(rows)
    batch = {module_id: found[0] if len(found) == 1 else _joined(found) for module_id, found in parts.items()}
    with_rows = {module_id: columns for module_id, columns in batch.items() if len(columns["advantages"])}
    if all(isinstance(rollout, Rollout) for rollout in rollouts):
        return next(iter(with_rows.values()), {})
    return with_rows


def with_advantages(rollout: Rollout, config: AdvantageSettings) -> dict[str, ArrayTree]:
    """The rows of a rollout with ``advantages`` and ``value_targets`` (GAE; bootstrapped where an episode was cut).

    Where the policy is recurrent they are sequences of ``max_seq_len``; advantages are those of the whole fragment.
    """
    columns = rollout.columns
    rewards = np.asarray(columns["rewards"], np.float32)
    zeros = np.zeros_like(rewards)
    values, following = columns.get("vf_preds"), rollout.bootstrap_values
    if not config.use_critic or values is None or following is None:
        values, following = zeros, zeros
    advantages, targets = gae(
        numpy_xp,
        r_t=rewards,
        v_t=np.asarray(values, np.float32),
        v_tp1=np.asarray(following, np.float32),
        terminated_t=columns["terminateds"],
        done_t=rollout.ends,
        gamma=config.gamma,
        lambda_=config.lambda_ if config.use_critic else 1.0,
    )
    extra = {"advantages": advantages, "value_targets": targets}
    if "state_in" in columns:
        rows = rollout_to_sequences(rollout, config.sequence_length, extra, burn_in=config.burn_in)
    else:
        rows = rollout.rows(extra)
    return rows


def _joined(batches: Sequence[Columns]) -> dict[str, ArrayTree]:
    first = batches[0]
    return {
        name: _joined([batch[name] for batch in batches])
        if isinstance(column, dict)
        else np.concatenate([batch[name] for batch in batches])
        for name, column in first.items()
    }
