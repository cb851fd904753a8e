"""learner-core: one backend, compiled or not, through the bare Learner, a LearnerGroup, or ``Algorithm.train()``.

The Algorithm's runner is replaced by one that returns the prepared rollout at once, so what is timed is everything
that ``train()`` does around the update: postprocessing, the batch, schedules, metrics, the new weights for the runner.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from ppo_settings import training
from serve import serve
from workloads import Workload, first_rows, initial_weights, rollout


class LearnerCore:
    """See the module."""

    def build(self, workload: Workload, options: dict[str, Any]) -> dict[str, Any]:
        from learner_core_algorithms import PPOConfig

        backend, self.level = options["backend"], options.get("level", "learner")
        if backend == "torch":
            import torch

            torch.set_num_threads(1)
        else:
            import tensorflow as tf

            tf.config.threading.set_intra_op_parallelism_threads(1)
            tf.config.threading.set_inter_op_parallelism_threads(1)
        self.workload = workload
        model: dict[str, Any] = {"hidden": list(workload.hidden), "activation": "tanh"}
        if workload.is_image:
            model = {"hidden": list(workload.hidden), "activation": "relu", "vf_share_layers": True}
        config = PPOConfig().framework(backend, compile=options["compile"], device="cpu").rl_module(model=model)
        observations, actions = _spaces(workload)
        config.environment(None, observation_space=observations, action_space=actions)
        sizes = {"batch": workload.batch, "minibatch": workload.minibatch, "epochs": workload.epochs}
        config.training(**training(**sizes, normalize_advantages="minibatch"))
        self.columns = rollout(workload)
        self._make(config)
        self._reset()
        (weights,) = self.each(lambda learner: learner.get_module_state())
        return {"num_parameters": int(sum(np.size(value) for value in weights["default_policy"].values()))}

    def _make(self, config: Any) -> None:
        """Set ``update`` (one update from columns), ``round`` and ``each`` (a function of every learner)."""
        if self.level == "learner":
            learner = config.build_learner()
            self.update = learner.update_from_batch
            self.each = lambda function: [function(learner)]
        else:
            if self.level == "group":
                group = config.build_learner_group()
            else:
                algorithm = config.environment(Spaces, env_config={"workload": self.workload}).build()
                group = algorithm.learner_group
                rollout = _rollout(self.columns, config.num_envs_per_env_runner)
                algorithm.runner.sample = lambda num_steps, **how: rollout
                self.round = algorithm.train
            self.update = group.update_from_batch
            self.each = group.foreach_learner

    def _reset(self) -> None:
        weights = {"default_policy": initial_weights(self.workload)}
        self.each(lambda learner: learner.set_module_state(weights))

    def check(self) -> dict[str, float]:
        batch = first_rows(self.columns, self.workload.minibatch)
        results = self.update(batch=batch, num_epochs=1)["default_policy"]
        self._reset()
        return {"loss": results["total_loss"], "gradient_norm": results["gradient_norm"]}

    def round(self) -> None:
        self.update(batch=self.columns, timesteps={"num_env_steps_sampled_lifetime": 0})


class Spaces(gymnasium.Env[Any, Any]):
    """An environment that has spaces and is never stepped."""

    def __init__(self, env_config: Any = None, **settings: Any) -> None:
        self.observation_space, self.action_space = _spaces((env_config or settings)["workload"])

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(self.observation_space.shape, self.observation_space.dtype), {}


def _rollout(columns: dict[str, np.ndarray], num_envs: int) -> Any:
    """The columns as the runner returns a fragment: [time, environments, ...]."""
    from learner_core.sampling.rollout import Rollout

    rows = len(columns["obs"])
    flags = np.zeros(rows, bool)
    columns = {name: c for name, c in columns.items() if name not in ("advantages", "value_targets")}
    columns |= {"rewards": columns["vf_preds"], "terminateds": flags, "truncateds": flags, "valid": ~flags}
    shaped = {name: c.reshape(rows // num_envs, num_envs, *c.shape[1:]) for name, c in columns.items()}
    return Rollout(columns=shaped, bootstrap_values=np.roll(shaped["vf_preds"], -1, axis=0), episodes=[])


def _spaces(workload: Workload) -> tuple[Any, Any]:
    observations = gymnasium.spaces.Box(-np.inf, np.inf, workload.obs_shape, np.float32)
    if workload.is_image:
        observations = gymnasium.spaces.Box(0, 255, workload.obs_shape, np.uint8)
    actions: Any = gymnasium.spaces.Discrete(workload.num_actions)
    if workload.continuous:
        actions = gymnasium.spaces.Box(-10, 10, (workload.num_actions,), np.float32)
    return observations, actions


if __name__ == "__main__":
    serve(LearnerCore())
