"""The losses of soft actor-critic, once for every backend."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from learner_core.learning.batch import ColumnSpec, nested_columns
from learner_core.learning.learner import Learner
from learner_core.learning.rl_module import acting
from learner_core.learning.step.context import ModuleView
from learner_core.learning.step.hooks import optimizer_from
from learner_core.xp import Array, ArrayTree, Columns, Namespace, Outputs

from .config import SACConfig
from .module import SACModule

__all__ = ["SACLearner"]

#: Beyond these the temperature is 0 or infinity in float32, with which nothing can be learned.
_LOG_ALPHA = (-80.0, 80.0)


class SACLearner(Learner):
    """Four losses over one forward pass, each moving its own parameters: policy, two Q networks, temperature."""

    config: SACConfig

    #: 2: density, entropy target and the Q networks' input are on [-1, 1]. 1: they were in the action space's unit.
    state_version = 2

    def build(self) -> None:
        for module_id in acting(self.module_specs):
            value = math.log(self.config.initial_alpha)
            self.register_variable(
                module_id=module_id, name="log_alpha", value=value, trainable=True, bounds=_LOG_ALPHA
            )

    def configure_optimizers_for_module(self, module_id: str, config: Any) -> None:
        if module_id not in acting(self.module_specs):
            super().configure_optimizers_for_module(module_id, config)
            return
        patterns = {"policy": ["pi*"], "qf": ["qf.*", "qf_head.*"], "alpha": ["log_alpha"]}
        if config.twin_q:
            patterns["qf_twin"] = ["qf_twin*"]
        names = [*self.module[module_id].init(np.random.default_rng(0)), "log_alpha"]
        rates = {"policy": "actor_lr", "qf": "critic_lr", "qf_twin": "critic_lr", "alpha": "alpha_lr"}
        for name, wanted in patterns.items():
            self.register_optimizer(
                module_id=module_id,
                optimizer_name=name,
                optimizer=optimizer_from(config.optimizer),
                params=[pattern for pattern in wanted if any(_matches(n, pattern) for n in names)],
                lr_or_lr_schedule=rates[name],
            )

    def batch_spec(self, module_id: str | None = None) -> dict[str, ColumnSpec]:
        columns = super().batch_spec(module_id)
        if self.config.n_step > 1:
            columns.setdefault("discounts", ColumnSpec((), "float"))
        if self.config.prioritized_replay:
            columns.setdefault("weights", ColumnSpec((), "float"))
        return columns

    def why_not_earlier(self, version: int) -> str:
        for module_id, spec in self.module_specs.items():
            space = spec.action_space
            if not (np.all(space.low == -1.0) and np.all(space.high == 1.0)):
                return (
                    f"Q networks and temperature of module {module_id!r} were trained on actions in the unit of "
                    f"{space}, and are on [-1, 1] now. The policy means what it did: take its arrays, whose names "
                    f"begin with 'pi', by set_state({{'rl_module': {{{module_id!r}: arrays}}}}, strict=False), and "
                    "train anew; or go on with the version that saved the state"
                )
        return ""

    def compute_loss_for_module(
        self, *, module_id: str, config: SACConfig, batch: Columns, fwd_out: Outputs
    ) -> dict[str, Array]:
        xp = self.xp
        module = self.module[module_id]
        dist_class = module.get_train_action_dist_cls()
        shape = dist_class.noise_shape(module.action_space)
        log_alpha = self.variables[module_id]["log_alpha"]
        alpha = xp.stop_gradient(xp.exp(log_alpha))

        target = self._target(module, batch, self.noise("next_actions", shape), config.gamma, alpha)
        losses: dict[str, Any] = {}
        q_values = _q(module, batch["obs"], batch["actions"])
        for name, q in zip(("qf", "qf_twin"), q_values, strict=False):
            error = _q_error(xp, q - target, config.q_loss)
            losses[name] = self.mean(batch["weights"] * error if config.prioritized_replay else error)
            self.log(f"{name}_loss", losses[name])

        dist = dist_class.from_logits(fwd_out["action_dist_inputs"])
        actions, logp = dist.sample_with_logp(self.noise("actions", shape))
        losses["policy"] = self.mean(alpha * logp - _smallest(xp, _q(module.frozen, batch["obs"], actions)))

        target_entropy = config.target_entropy
        if isinstance(target_entropy, str):  # "auto"; a number is an array here
            target_entropy = -float(np.prod(module.action_space.shape))
        losses["alpha"] = self.mean(-log_alpha * xp.stop_gradient(logp + target_entropy))

        self.log("policy_loss", losses["policy"])
        self.log("alpha_loss", losses["alpha"])
        self.log("alpha", alpha)
        self.log("mean_q", self.mean(q_values[0]))
        self.log("entropy", -self.mean(logp))
        return losses

    def _target(self, module: ModuleView, batch: Columns, noise: Array, gamma: Array, alpha: Array) -> Array:
        """float[B]: r + gamma^n (1 - terminated) (min Q'(s', a') - alpha log pi(a' | s')), without a gradient."""
        xp = self.xp
        dist_class = module.get_train_action_dist_cls()
        inputs = module.frozen.forward_train({"obs": batch["next_obs"]})["action_dist_inputs"]
        next_actions, next_logp = dist_class.from_logits(inputs).sample_with_logp(noise)
        next_q = _smallest(xp, _q(module.target, batch["next_obs"], next_actions))
        discounts = batch["discounts"] if self.config.n_step > 1 else gamma
        continues = 1.0 - xp.astype(batch["terminateds"], next_q.dtype)
        return xp.stop_gradient(batch["rewards"] + discounts * continues * (next_q - alpha * next_logp))

    def td_errors(self, batch: dict[str, ArrayTree], module_id: str | None = None) -> np.ndarray:
        """H. Distance of the Q networks from their targets, on the current parameters: priorities for replay.

        Args:
            batch: columns [B, ...] as for ``update_from_batch``.
            module_id: whose; may be left out when there is one module.

        Returns:
            float[B], not negative: the mean over the Q networks.
        """
        xp, module_id = self.xp, self.one_module(module_id)
        columns = self.backend.from_numpy(self._check({module_id: batch})[module_id])
        arrays = nested_columns(columns)
        module = self.module[module_id]
        shape = module.get_train_action_dist_cls().noise_shape(module.action_space)
        rows = int(xp.shape(arrays["rewards"])[0])
        noise = self.backend.from_numpy({"x": self.noise("td_errors", (rows, *shape))})["x"]
        # A float ends at exp(709); what is larger is as useless, and the step says so itself.
        alpha = math.exp(min(float(self.variables[module_id]["log_alpha"]), 700.0))
        target = self._target(module, arrays, noise, self.config.gamma, alpha)
        errors = [xp.abs(q - target) for q in _q(module, arrays["obs"], arrays["actions"])]
        found: np.ndarray = self.backend.to_numpy({"x": sum(errors) / len(errors)})["x"]
        return found

    def after_step(
        self, *, module_id: str, params: dict[str, Array], targets: dict[str, Array], config: SACConfig
    ) -> None:
        interval = config.target_network_update_interval
        tau: Array = config.tau  # a step has it as an array, a schedule too
        # The first of all steps moves them, as in Stable-Baselines3.
        due = None if interval == 1 else self.steps_before(module_id) % interval == 0
        for name, target in targets.items():
            moved = tau * params[name] + (1.0 - tau) * target
            targets[name] = moved if due is None else self.xp.where(due, moved, target)


def _q(module: ModuleView, obs: ArrayTree, actions: Array) -> list[Array]:
    """Q values of actions in their own unit, which are scaled before anything is rounded to a narrow precision."""
    kind: Any = type(module.unwrapped)
    if kind.q is not SACModule.q:
        values: list[Any] = module.q(obs, actions)
        return values
    own: list[Any] = module.unit_q(obs, module.unit_actions(actions))
    return own


def _smallest(xp: Namespace, values: list[Array]) -> Array:
    return values[0] if len(values) == 1 else xp.minimum(values[0], values[1])


def _q_error(xp: Namespace, error: Array, kind: str) -> Array:
    square = 0.5 * xp.square(error)
    if kind == "mse":
        return square
    size = xp.abs(error)
    return xp.where(size <= 1.0, square, size - 0.5)


def _matches(name: str, pattern: str) -> bool:
    import fnmatch

    return fnmatch.fnmatch(name, pattern)
