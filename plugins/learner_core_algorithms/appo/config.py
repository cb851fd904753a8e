"""Settings of APPO."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from learner_core.config.needs import Needs, needs
from learner_core.config.validation import FloatOrSchedule, Range
from learner_core.state.tree import Plain
from learner_core_algorithms.impala.config import IMPALAConfig

__all__ = ["APPOConfig"]


@dataclass(kw_only=True, repr=False, eq=False)
class APPOConfig(IMPALAConfig):
    """IMPALA with PPO's clipped objective around a target network; README.md beside this file has the maths."""

    algorithm_name: ClassVar[str] = "appo"
    default_learner_class: ClassVar[Any] = "learner_core_algorithms.appo.learner:APPOLearner"

    needed_settings: ClassVar[Mapping[str, Needs]] = {
        **IMPALAConfig.needed_settings,
        **dict.fromkeys(("kl_coeff", "kl_target"), needs("use_kl_loss", "True")),
    }
    starting_values: ClassVar[Mapping[str, str]] = {"kl_coeff": "kl_coeff"}

    clip_param: Annotated[FloatOrSchedule, Range(above=0)] = 0.4
    """Half-width of the interval the probability ratio is clipped to. Typical: 0.1 to 0.4."""

    tau: Annotated[float, Range(0, 1)] = 1.0
    """Share of the new parameters when the target network moves: target = tau * new + (1 - tau) * target."""

    target_network_update_freq: Annotated[float, Range(above=0)] | None = None
    """When the target network moves, in the unit of the paper and of RLlib: uses of a full circular buffer, which are
    circular_buffer_num_batches * circular_buffer_iterations_per_batch updates. RLlib's 2 is every 32 updates with 8
    batches and 2 uses. None: after every second update, whatever the buffer holds. Typical: 0.125 to 4."""

    use_kl_loss: bool = False
    """Add kl_coeff * KL(target || new) to the loss, and adapt kl_coeff to kl_target whenever the target moves."""

    kl_coeff: Annotated[float, Range(0)] = 1.0
    """Initial weight of the KL term; from then on it follows kl_target and is part of the state."""

    kl_target: Annotated[float, Range(above=0)] | None = 0.01
    """KL between target and new policy that kl_coeff is steered to. None: kl_coeff is held."""

    circular_buffer_num_batches: Annotated[int, Range(1)] = 8
    """Batches that are kept for further uses. With 1, each batch's uses follow each other. Typical: 1 to 16."""

    circular_buffer_iterations_per_batch: Annotated[int, Range(1)] = 2
    """Updates that each batch is used for. Typical: 1 to 4."""

    @property
    def updates_per_target(self) -> int:
        """Updates from one move of the target network to the next: ``target_network_update_freq`` in updates, up."""
        if self.target_network_update_freq is None:
            return 2
        uses = self.circular_buffer_num_batches * self.circular_buffer_iterations_per_batch
        return max(1, math.ceil(self.target_network_update_freq * uses - 1e-9))

    @classmethod
    def of_earlier(cls, stored: dict[str, Plain]) -> dict[str, Plain]:
        """Once ``target_network_update_freq`` was in updates (docs/decisions/names-of-other-libraries.md says why)."""
        freq = stored.get("target_network_update_freq")
        if type(freq) is not int:
            return stored
        own = cls()
        uses = stored.get("circular_buffer_num_batches", own.circular_buffer_num_batches) * stored.get(
            "circular_buffer_iterations_per_batch", own.circular_buffer_iterations_per_batch
        )
        return {**stored, "target_network_update_freq": freq / uses}
