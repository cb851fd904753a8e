"""Settings of soft actor-critic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from learner_core.config.algorithm_config import AlgorithmConfig
from learner_core.config.validation import FloatOrSchedule, Range

__all__ = ["SACConfig"]


@dataclass(kw_only=True, repr=False, eq=False)
class SACConfig(AlgorithmConfig):
    """Soft actor-critic with twin Q networks and a learned temperature; README.md beside this file has the maths."""

    algorithm_name: ClassVar[str] = "sac"
    algorithm_class: ClassVar[Any] = "learner_core.algorithm.off_policy:OffPolicyAlgorithm"
    default_learner_class: ClassVar[Any] = "learner_core_algorithms.sac.learner:SACLearner"
    default_module_class: ClassVar[Any] = "learner_core_algorithms.sac.module:SACModule"

    starting_values: ClassVar[Mapping[str, str]] = {"initial_alpha": "log_alpha"}

    actor_lr: Annotated[FloatOrSchedule, Range(0)] = 3e-4
    """Learning rate of the policy. Typical: 3e-5 to 1e-3."""

    critic_lr: Annotated[FloatOrSchedule, Range(0)] = 3e-4
    """Learning rate of the Q networks. Typical: 3e-4 to 1e-3."""

    alpha_lr: Annotated[FloatOrSchedule, Range(0)] = 3e-4
    """Learning rate of the temperature."""

    initial_alpha: Annotated[float, Range(above=0)] = 1.0
    """Temperature at the start."""

    target_entropy: Literal["auto"] | float = "auto"
    """Entropy that the temperature is steered to, in nats. "auto": minus the number of action dimensions."""

    twin_q: bool = True
    """Two Q networks and the smaller of their values, against overestimation."""

    tau: Annotated[FloatOrSchedule, Range(0, 1)] = 5e-3
    """Share of the new parameters in the target networks per step: target = tau * q + (1 - tau) * target."""

    q_loss: Literal["mse", "huber"] = "mse"
    """Error of the Q networks: squares (halved), or Huber with its knee at 1."""

    n_step: Annotated[int, Range(1)] = 1
    """Rewards summed before bootstrapping. Typical: 1 to 5."""

    timesteps_per_iteration: Annotated[int, Range(1)] = 1000
    """Environment steps that one train() call takes."""

    buffer_capacity: Annotated[int, Range(1)] = 1_000_000
    """Transitions that the replay buffer holds."""

    prioritized_replay: bool = False
    """Draw transitions in proportion to |TD error|^priority_alpha instead of uniformly, with importance weights."""

    priority_alpha: Annotated[float, Range(0)] = 0.6
    """How much TD errors count in the draw. 0: not at all."""

    priority_beta: Annotated[FloatOrSchedule, Range(0, 1)] = 0.4
    """How much of the bias of such draws the importance weights correct. Typical: a schedule from 0.4 to 1."""

    learning_starts: Annotated[int, Range(0)] = 1000
    """Environment steps with random actions before learning begins."""

    updates_per_step: Annotated[float, Range(above=0)] = 1.0
    """Gradient steps per environment step. Typical: 1; 0.25 to 20 by the cost of the environment."""

    train_batch_size: Annotated[int, Range(1)] = 256
    """Transitions per gradient step."""

    minibatch_size: Annotated[int, Range(1)] | None = None
    """None: the whole batch at once."""

    num_epochs: Annotated[int, Range(1)] = 1
    """Passes over each sampled batch."""

    shuffle_batch_per_epoch: bool = False
    """A sampled batch is in random order already."""

    grad_clip: Annotated[FloatOrSchedule, Range(above=0)] | None = None
    """Bound on the gradients in the sense of grad_clip_by. None: no clipping."""

    num_envs_per_env_runner: Annotated[int, Range(1)] = 1
    """Environments stepped together."""

    model: dict[str, Any] = field(default_factory=lambda: {"hidden": [256, 256], "activation": "relu"})
    """The networks: hidden sizes, activation, conv_filters of policy and Q networks alike."""

    def module_settings(self) -> dict[str, Any]:
        """``model``, and that there is one Q network if so."""
        return {**super().module_settings(), **({} if self.twin_q else {"twin_q": False})}

    @property
    def rows_per_update(self) -> int:
        """Rows of the gradient steps that one fragment pays for, which are one call."""
        fragment = 1 if self.rollout_fragment_length == "auto" else int(self.rollout_fragment_length)
        steps = fragment * self.num_envs_per_env_runner * max(1, self.num_env_runners)
        updates = math.ceil(steps * self.updates_per_step)
        return self.train_batch_size * max(updates, 1)
