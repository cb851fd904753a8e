"""Settings of PPO."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from learner_core.algorithm.algorithm_config import AlgorithmConfig
from learner_core.config.needs import Needs, needs
from learner_core.config.validation import FloatOrSchedule, Range

__all__ = ["PPOConfig"]


@dataclass(kw_only=True, repr=False, eq=False)
class PPOConfig(AlgorithmConfig):
    """Proximal policy optimisation with a clipped objective; README.md beside this file has the maths."""

    algorithm_name: ClassVar[str] = "ppo"
    algorithm_class: ClassVar[type | str | None] = "learner_core.algorithm.on_policy:OnPolicyAlgorithm"
    default_learner_class: ClassVar[Any] = "learner_core_algorithms.ppo.learner:PPOLearner"
    default_module_class: ClassVar[Any] = "learner_core.learning.actor_critic:ActorCriticModule"

    unused_settings: ClassVar[Mapping[str, str]] = {
        **AlgorithmConfig.unused_settings,
        "max_requests_in_flight_per_env_runner": "all runners sample together, and none gets ahead",
    }
    needed_settings: ClassVar[Mapping[str, Needs]] = {
        **AlgorithmConfig.needed_settings,
        **dict.fromkeys(("kl_coeff", "kl_target"), needs("use_kl_loss", "True")),
        **dict.fromkeys(("lambda_", "vf_loss_coeff", "vf_clip_param", "vf_clip_range"), needs("use_critic", "True")),
    }
    starting_values: ClassVar[Mapping[str, str]] = {"kl_coeff": "kl_coeff"}

    lambda_: Annotated[float, Range(0, 1)] = 0.95
    """GAE's lambda. 1: Monte Carlo advantages; 0: one-step. Typical: 0.9 to 1."""

    clip_param: Annotated[FloatOrSchedule, Range(above=0)] = 0.2
    """Half-width of the interval the probability ratio is clipped to. Typical: 0.1 to 0.3."""

    use_critic: bool = True
    """Learn a value function as baseline; without it advantages are the discounted returns."""

    vf_loss_coeff: Annotated[FloatOrSchedule, Range(0)] = 0.5
    """Weight of the value loss (V - target)^2. Typical: 0.25 to 1."""

    vf_clip_param: Annotated[float, Range(above=0)] | None = None
    """Bound on the squared value error of a row, as RLlib has it (10 there). None: no bound."""

    vf_clip_range: Annotated[float, Range(above=0)] | None = None
    """Clip the new value to this distance from the old one and take the larger of both errors, as CleanRL's clip_vloss
    does; SB3's clip_range_vf takes the clipped one's alone, without a gradient beyond the range. None: no clipping."""

    entropy_coeff: Annotated[FloatOrSchedule, Range(0)] = 0.0
    """Weight of the entropy bonus. Typical: 0 to 0.02."""

    use_kl_loss: bool = True
    """Add kl_coeff * KL(old || new) to the loss and adapt kl_coeff to kl_target after every update."""

    kl_coeff: Annotated[float, Range(0)] = 0.2
    """Initial weight of the KL term; from then on it follows kl_target and is part of the state."""

    kl_target: Annotated[float, Range(above=0)] | None = 0.01
    """KL that kl_coeff is steered to: the mean over an update's minibatches, the results' mean_kl. RLlib compares the
    last minibatch's, about 1.5 times as large. None: kl_coeff is held."""

    target_kl: Annotated[float, Range(above=0)] | None = None
    """Stop an update at the minibatch whose KL estimate exceeds 1.5 times this, as SB3 does; CleanRL stops after the
    epoch whose last minibatch exceeds it itself. None: never."""

    normalize_advantages: Literal["batch", "minibatch", "off"] = "batch"
    """Standardise advantages over the whole batch, over each minibatch (SB3, CleanRL), or not."""

    @property
    def rows_per_update(self) -> int:
        """Timesteps of a usual batch: whole fragments of all runners, a few more than ``train_batch_size`` maybe."""
        if self.env is None:
            return self.train_batch_size
        steps = max(1, self.num_env_runners) * self.num_envs_per_env_runner
        if self.rollout_fragment_length != "auto":
            steps *= int(self.rollout_fragment_length)
        return math.ceil(self.train_batch_size / steps) * steps
