"""The loss of IMPALA, once for every backend.

Batches are sequences [B, T], fragments as environment runners recorded them. Beside the standard columns it reads two
of its own: ``bootstrap_obs`` [B, ...], the observation after the last step, whose value is computed afresh, and
``bootstrap_values`` float[B, T], what followed where an episode was truncated before the last step (the value that the
runner's policy gave; other entries do not matter).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from learner_core.learning.batch import ColumnSpec
from learner_core.learning.learner import Learner
from learner_core.maths.returns import vtrace
from learner_core.xp import Array, ArrayTree, Columns, Outputs

from .config import IMPALAConfig

__all__ = ["IMPALALearner"]


class IMPALALearner(Learner):
    """Policy gradient, value loss and entropy bonus on V-trace's advantages and targets."""

    def batch_spec(self, module_id: str | None = None) -> dict[str, ColumnSpec]:
        columns = dict(super().batch_spec(module_id))
        own: dict[str, ColumnSpec] = {}
        for name, spec in columns.items():
            if name == "obs" or name.startswith("obs/"):
                own[f"bootstrap_{name}"] = dataclasses.replace(spec, shape=spec.shape[1:], sequence=False)
        own["bootstrap_values"] = columns["rewards"]
        for name, spec in own.items():
            columns.setdefault(name, spec)
        return columns

    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: Columns, fwd_out: Outputs) -> Array:
        xp = self.xp
        dist = self.module[module_id].get_train_action_dist_cls().from_logits(fwd_out["action_dist_inputs"])
        logp, values = dist.logp(batch["actions"]), fwd_out["vf_preds"]
        log_rhos = self._counted(logp - batch["action_logp"], batch)
        targets, advantages = self._vtrace(module_id, config, batch, fwd_out, log_rhos)

        policy_loss = -self.mean(logp * advantages)
        vf_loss = 0.5 * self.mean(xp.square(values - targets))
        entropy = self.mean(dist.entropy())
        self.log("policy_loss", policy_loss)
        self._log_common(values, targets, log_rhos, config, vf_loss, entropy)
        return policy_loss + config.vf_loss_coeff * vf_loss - config.entropy_coeff * entropy

    def _counted(self, x: Array, batch: Columns) -> Array:
        """``x`` [B, T] with zeros in rows that do not count, so that whatever they hold reaches no gradient."""
        return self.xp.where(batch["loss_mask"] > 0, x, self.xp.zeros_like(x))

    def _vtrace(
        self, module_id: str, config: IMPALAConfig, batch: Columns, fwd_out: Outputs, log_rhos: Array
    ) -> tuple[Array, Array]:
        """Value targets and advantages float[B, T], without a gradient.

        Nothing travels back over a row whose episode ended or whose next row does not count.
        """
        xp, values = self.xp, fwd_out["vf_preds"]
        following = xp.where(batch["truncateds"][:, :-1], batch["bootstrap_values"][:, :-1], values[:, 1:])
        last = xp.expand_dims(self._bootstrap(module_id, batch, fwd_out), 1)
        counts = batch["loss_mask"] > 0
        gap = xp.concat([xp.logical_not(counts[:, 1:]), xp.zeros_like(counts[:, :1])], 1)
        ended = xp.logical_or(batch["terminateds"], batch["truncateds"])
        return vtrace(
            xp,
            log_rhos=log_rhos,
            discounts=config.gamma * (1.0 - xp.astype(batch["terminateds"], values.dtype)),
            rewards=batch["rewards"],
            values=values,
            values_tp1=xp.concat([following, last], 1),
            done_t=xp.logical_or(ended, gap),
            clip_rho_threshold=config.vtrace_clip_rho_threshold,
            clip_pg_rho_threshold=config.vtrace_clip_pg_rho_threshold,
            clip_c_threshold=config.vtrace_clip_c_threshold,
            axis=1,
        )

    def _bootstrap(self, module_id: str, batch: Columns, fwd_out: Outputs) -> Array:
        """float[B]: the value of the observation after the last step, by the network as it is now."""
        xp, module, obs = self.xp, self.module[module_id].frozen, batch["bootstrap_obs"]
        if "state_out" not in fwd_out:
            return module.forward_train({"obs": obs})["vf_preds"]
        # One more step from the state that the sequence ended in.
        step = {
            "obs": _mapped(lambda leaf: xp.expand_dims(leaf, 1), obs),
            "state_in": fwd_out["state_out"],
            "resets": xp.zeros_like(batch["terminateds"][:, :1]),
        }
        return module.unwrapped.forward_train(module.params, step)["vf_preds"][:, 0]

    def _log_common(
        self, values: Array, targets: Array, log_rhos: Array, config: IMPALAConfig, vf_loss: Array, entropy: Array
    ) -> None:
        xp = self.xp
        log_rhos, values = xp.stop_gradient(log_rhos), xp.stop_gradient(values)
        rhos = xp.exp(log_rhos)
        self.log("vf_loss", vf_loss)
        self.log("entropy", entropy)
        self.log("mean_rho", self.mean(rhos))
        # Schulman's estimator of KL(mu || pi): unbiased, and never negative.
        self.log("behaviour_kl", self.mean((rhos - 1.0) - log_rhos))
        if config.vtrace_clip_rho_threshold is not None:
            clipped = rhos > config.vtrace_clip_rho_threshold
            self.log("rho_clip_fraction", self.mean(xp.astype(clipped, rhos.dtype)))
        # 1 - Var(target - value) / Var(target): 1 is perfect, 0 no better than a constant.
        spread = self.mean(xp.square(targets - self.mean(targets)))
        residual = targets - values
        left = self.mean(xp.square(residual - self.mean(residual)))
        self.log("vf_explained_variance", 1.0 - left / (spread + 1e-8))


def _mapped(function: Callable[[Array], Array], tree: ArrayTree) -> ArrayTree:
    if isinstance(tree, Mapping):
        return {key: _mapped(function, value) for key, value in tree.items()}
    return function(tree)
