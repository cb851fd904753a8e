"""The loss of PPO, once for every backend."""

from __future__ import annotations

import math

import numpy as np

from learner_core.learning.learner import Learner
from learner_core.learning.rl_module import acting
from learner_core.xp import Array, Columns, Outputs

from .config import PPOConfig
from .kl import adapted_kl_coeff

__all__ = ["PPOLearner"]

#: Floor under the standard deviation of advantages, so that equal advantages become zeros and not NaN.
_STD_FLOOR = 1e-8


class PPOLearner(Learner):
    """Clipped surrogate objective, value loss, entropy bonus and an adaptive KL penalty."""

    config: PPOConfig

    def build(self) -> None:
        for module_id in acting(self.module_specs):
            config = self.config.for_module(module_id)
            if config.use_kl_loss:
                self.register_variable(
                    module_id=module_id, name="kl_coeff", value=config.kl_coeff, bounds=(0.0, math.inf)
                )

    def preprocess_batch(self, *, module_id: str, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.config.for_module(module_id).normalize_advantages != "batch":
            return batch
        advantages = batch["advantages"]
        mean, std = self.batch_statistics(advantages, batch.get("loss_mask"))
        standardised = (advantages.astype(np.float64) - mean) / max(std, _STD_FLOOR)
        return {**batch, "advantages": standardised.astype(advantages.dtype)}

    def compute_loss_for_module(self, *, module_id: str, config: PPOConfig, batch: Columns, fwd_out: Outputs) -> Array:
        xp = self.xp
        dist_class = self.module[module_id].get_train_action_dist_cls()
        dist = dist_class.from_logits(fwd_out["action_dist_inputs"])
        advantages = batch["advantages"]
        if config.normalize_advantages == "minibatch":
            mean, std = self.minibatch_statistics("advantages")
            advantages = (advantages - mean) / (std + _STD_FLOOR)

        log_ratio = dist.logp(batch["actions"]) - batch["action_logp"]
        ratio = xp.exp(log_ratio)
        clip_param: Array = config.clip_param  # a step has it as an array, a schedule too
        clipped = xp.clip(ratio, 1.0 - clip_param, 1.0 + clip_param)
        policy_loss = self.mean(-xp.minimum(advantages * ratio, advantages * clipped))
        entropy = self.mean(dist.entropy())
        loss = policy_loss - config.entropy_coeff * entropy

        if config.use_critic:
            values, targets = fwd_out["vf_preds"], batch["value_targets"]
            error = xp.square(values - targets)
            if config.vf_clip_range is not None:
                old = batch["vf_preds"]
                near = old + xp.clip(values - old, -config.vf_clip_range, config.vf_clip_range)
                error = xp.maximum(error, xp.square(near - targets))
            if config.vf_clip_param is not None:
                error = xp.minimum(error, xp.zeros_like(error) + config.vf_clip_param)
            vf_loss = self.mean(error)
            loss = loss + config.vf_loss_coeff * vf_loss
            self.log("vf_loss", vf_loss)
            self._log_explained_variance(values, targets)

        # Schulman's estimator: unbiased, and never negative.
        approx_kl = self.mean((ratio - 1.0) - log_ratio)
        if config.use_kl_loss:
            old = dist_class.from_logits(batch["action_dist_inputs"])
            kl = self.mean(old.kl(dist))
            loss = loss + self.variables[module_id]["kl_coeff"] * kl
            self.log("mean_kl", kl)
        if config.target_kl is not None:
            self.stop_update(approx_kl - 1.5 * config.target_kl)

        outside = xp.abs(ratio - 1.0) > clip_param
        self.log("policy_loss", policy_loss)
        self.log("entropy", entropy)
        self.log("approx_kl", approx_kl)
        self.log("clip_fraction", self.mean(xp.astype(outside, ratio.dtype)))
        return loss

    def _log_explained_variance(self, values: Array, targets: Array) -> None:
        """1 - Var(target - value) / Var(target): 1 is perfect, 0 no better than a constant."""
        xp = self.xp
        values = xp.stop_gradient(values)
        spread = self.mean(xp.square(targets - self.mean(targets)))
        residual = targets - values
        left = self.mean(xp.square(residual - self.mean(residual)))
        self.log("vf_explained_variance", 1.0 - left / (spread + 1e-8))

    def after_gradient_based_update(self, *, timesteps: dict[str, int]) -> None:
        for module_id, metrics in self.results.items():
            if "mean_kl" not in metrics:
                continue
            variables = self.variables[module_id]
            kl_target = self.config.for_module(module_id).kl_target
            if kl_target is not None:
                variables["kl_coeff"] = adapted_kl_coeff(
                    variables["kl_coeff"], mean_kl=metrics["mean_kl"], kl_target=kl_target
                )
            metrics["kl_coeff"] = variables["kl_coeff"]
