"""The loss of APPO, once for every backend: IMPALA's, with a clipped objective around a target network."""

from __future__ import annotations

import math

from learner_core.learning.rl_module import acting
from learner_core.learning.step.variables import ModuleVariables
from learner_core.xp import Array, Columns, Outputs
from learner_core_algorithms.impala.learner import IMPALALearner
from learner_core_algorithms.ppo.kl import adapted_kl_coeff

from .config import APPOConfig

__all__ = ["APPOLearner"]

#: Bound of mu / pi_target, the weight that makes the target policy the one which the ratio is clipped around.
_MAX_WEIGHT = 2.0


class APPOLearner(IMPALALearner):
    """V-trace by the target policy, PPO's surrogate, value loss, entropy bonus and an optional adaptive KL penalty."""

    config: APPOConfig

    def build(self) -> None:
        for module_id in acting(self.module_specs):
            module = self.module[module_id].unwrapped
            if not module.targets:
                module.targets = ("*",)
            not_negative = (0.0, math.inf)
            self.register_variable(module_id=module_id, name="updates_since_target", value=0.0, bounds=not_negative)
            if self.config.use_kl_loss:
                self.register_variable(
                    module_id=module_id, name="kl_coeff", value=self.config.kl_coeff, bounds=not_negative
                )

    def compute_loss_for_module(self, *, module_id: str, config: APPOConfig, batch: Columns, fwd_out: Outputs) -> Array:
        xp = self.xp
        module = self.module[module_id]
        dist_class = module.get_train_action_dist_cls()
        dist = dist_class.from_logits(fwd_out["action_dist_inputs"])
        target = dist_class.from_logits(module.target.forward_train(batch)["action_dist_inputs"])
        values, behaviour_logp = fwd_out["vf_preds"], batch["action_logp"]
        target_log_rhos = self._counted(target.logp(batch["actions"]) - behaviour_logp, batch)
        log_rhos = self._counted(dist.logp(batch["actions"]) - behaviour_logp, batch)
        targets, advantages = self._vtrace(module_id, config, batch, fwd_out, target_log_rhos)

        weight = xp.stop_gradient(xp.minimum(xp.exp(-target_log_rhos), _MAX_WEIGHT))
        ratio = weight * xp.exp(log_rhos)
        clip_param: Array = config.clip_param  # a step has it as an array, a schedule too
        clipped = xp.clip(ratio, 1.0 - clip_param, 1.0 + clip_param)
        policy_loss = -self.mean(xp.minimum(advantages * ratio, advantages * clipped))
        vf_loss = 0.5 * self.mean(xp.square(values - targets))
        entropy = self.mean(dist.entropy())
        loss = policy_loss + config.vf_loss_coeff * vf_loss - config.entropy_coeff * entropy
        if config.use_kl_loss:
            kl = self.mean(target.kl(dist))
            loss = loss + self.variables[module_id]["kl_coeff"] * kl
            self.log("mean_kl", kl)

        self.log("policy_loss", policy_loss)
        outside = xp.abs(ratio - 1.0) > clip_param
        self.log("clip_fraction", self.mean(xp.astype(outside, ratio.dtype)))
        self._log_common(values, targets, log_rhos, config, vf_loss, entropy)
        return loss

    def after_gradient_based_update(self, *, timesteps: dict[str, int]) -> None:
        due = set()
        for module_id, metrics in self.results.items():
            if not metrics.get("num_minibatch_steps"):
                continue
            variables = self.variables[module_id]
            variables["updates_since_target"] = variables["updates_since_target"] + 1.0
            if variables["updates_since_target"] >= self.config.updates_per_target:
                variables["updates_since_target"] = 0.0
                due.add(module_id)
                self._adapt_kl(variables, metrics)
            if "mean_kl" in metrics:
                metrics["kl_coeff"] = variables["kl_coeff"]
        if not due:
            return
        tau = self.config.tau

        def move(module_id: str, params: dict[str, Array], targets: dict[str, Array]) -> dict[str, Array]:
            if module_id not in due:
                return targets
            return {name: tau * params[name] + (1.0 - tau) * old for name, old in targets.items()}

        self.update_targets(move)

    def _adapt_kl(self, variables: ModuleVariables, metrics: dict[str, float]) -> None:
        """PPO's rule, at the end of a target network's life: right after a move the KL says nothing."""
        if "mean_kl" not in metrics or self.config.kl_target is None:
            return
        variables["kl_coeff"] = adapted_kl_coeff(
            variables["kl_coeff"], mean_kl=metrics["mean_kl"], kl_target=self.config.kl_target
        )
