"""Settings of soft actor-critic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from learner_core.algorithm.off_policy_config import OffPolicyConfig
from learner_core.config.needs import Needs, needs
from learner_core.config.validation import FloatOrSchedule, Range
from learner_core.state.tree import Plain

__all__ = ["SACConfig"]


def _is_ever_positive(rate: float | list[list[float]]) -> bool:
    """Whether a rate is, or any point of a schedule."""
    return any(value for _, value in rate) if isinstance(rate, list) else rate > 0


@dataclass(kw_only=True, repr=False, eq=False)
class SACConfig(OffPolicyConfig):
    """Soft actor-critic with twin Q networks and a learned temperature; README.md beside this file has the maths."""

    algorithm_name: ClassVar[str] = "sac"
    default_learner_class: ClassVar[Any] = "learner_core_algorithms.sac.learner:SACLearner"
    default_module_class: ClassVar[Any] = "learner_core_algorithms.sac.module:SACModule"

    unused_settings: ClassVar[Mapping[str, str]] = {
        **OffPolicyConfig.unused_settings,
        "lr": "the rates are actor_lr, critic_lr and alpha_lr",
    }
    needed_settings: ClassVar[Mapping[str, Needs]] = {
        **OffPolicyConfig.needed_settings,
        "target_entropy": needs("alpha_lr", "3e-4", _is_ever_positive),
    }
    #: How many Q networks there are.
    fixed_settings: ClassVar[frozenset[str]] = OffPolicyConfig.fixed_settings | {"twin_q"}
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
    """Entropy that the temperature is steered to, in nats, of actions scaled to [-1, 1] whatever their unit is. "auto":
    minus the number of action dimensions."""

    twin_q: bool = True
    """Two Q networks and the smaller of their values, against overestimation."""

    tau: Annotated[FloatOrSchedule, Range(0, 1)] = 5e-3
    """Share of the new parameters in the target networks when they move: target = tau * q + (1 - tau) * target."""

    target_network_update_interval: Annotated[int, Range(1)] = 1
    """Gradient steps from one move of the target networks to the next, counted over the run; the first step moves them.
    1: every step does. SB3's target_update_interval; RLlib's target_network_update_freq counts environment steps.
    Typical: 1, with tau 5e-3; 1000, with tau 1."""

    q_loss: Literal["mse", "huber"] = "mse"
    """Error of the Q networks: squares (halved), or Huber with its knee at 1."""

    grad_clip: Annotated[FloatOrSchedule, Range(above=0)] | None = None
    """Bound on the gradients in the sense of grad_clip_by. None: no clipping."""

    model: dict[str, Any] = field(default_factory=lambda: {"hidden": [256, 256], "activation": "relu"})
    """The networks: hidden, activation, ... of policy and Q networks alike, or {"pi": ..., "qf": ...}; docs/networks.md
    has the table. Given at all, it replaces the default as a whole."""

    def module_settings(self) -> dict[str, Plain]:
        """``model``, and that there is one Q network if so."""
        return {**super().module_settings(), **({} if self.twin_q else {"twin_q": False})}
