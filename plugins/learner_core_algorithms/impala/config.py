"""Settings of IMPALA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from learner_core.algorithm.algorithm_config import AlgorithmConfig
from learner_core.config.validation import FloatOrSchedule, Range
from learner_core.errors import ConfigError

__all__ = ["IMPALAConfig"]

_FRAGMENT = 50


@dataclass(kw_only=True, repr=False, eq=False)
class IMPALAConfig(AlgorithmConfig):
    """Importance-weighted actor-learner: sampling never waits for learning; README.md beside has the maths."""

    algorithm_name: ClassVar[str] = "impala"
    algorithm_class: ClassVar[type | str | None] = "learner_core.algorithm.asynchronous:AsynchronousAlgorithm"
    default_learner_class: ClassVar[Any] = "learner_core_algorithms.impala.learner:IMPALALearner"
    default_module_class: ClassVar[Any] = "learner_core.learning.actor_critic:ActorCriticModule"
    uses_sequences: ClassVar[bool] = True
    unused_settings: ClassVar[Mapping[str, str]] = {
        **AlgorithmConfig.unused_settings,
        "max_seq_len": "sequences are whole fragments, of rollout_fragment_length",
    }
    #: The length of the sequences that wait and are stored.
    fixed_settings: ClassVar[frozenset[str]] = AlgorithmConfig.fixed_settings | {"rollout_fragment_length"}

    vtrace_clip_rho_threshold: Annotated[float, Range(above=0)] | None = 1.0
    """Bound of the importance ratio in the value targets: decides which policy's values are learned. None: no bound,
    the learned policy's own. Typical: 1."""

    vtrace_clip_c_threshold: Annotated[float, Range(above=0)] | None = 1.0
    """Bound of the importance ratio by which errors travel back in time: lowers variance, not what is learned."""

    vtrace_clip_pg_rho_threshold: Annotated[float, Range(above=0)] | None = 1.0
    """Bound of the importance ratio that weighs the policy's gradient. Typical: 1."""

    vf_loss_coeff: Annotated[FloatOrSchedule, Range(0)] = 0.5
    """Weight of the value loss, half the mean squared error. Typical: 0.25 to 1."""

    entropy_coeff: Annotated[FloatOrSchedule, Range(0)] = 0.01
    """Weight of the entropy bonus. Typical: 0 to 0.02."""

    broadcast_interval: Annotated[int, Range(1)] = 1
    """Updates between two sets of weights sent to environment runners. More saves copies and lets the policy lag."""

    circular_buffer_num_batches: Annotated[int, Range(1)] = 1
    """Batches that are kept for further uses. With 1, each batch's uses follow each other. Typical: 1 to 16."""

    circular_buffer_iterations_per_batch: Annotated[int, Range(1)] = 1
    """Updates that each batch is used for. Typical: 1 for IMPALA, 2 for APPO."""

    timesteps_per_iteration: Annotated[int, Range(1)] = 5000
    """Environment steps that one train() call takes."""

    rollout_fragment_length: Literal["auto"] | Annotated[int, Range(1)] = _FRAGMENT
    """T: steps per environment and fragment, which is one sequence of a batch. "auto": 50. Typical: 20 to 100."""

    lr: Annotated[FloatOrSchedule, Range(0)] = 5e-4
    """Learning rate. Typical: 1e-4 to 1e-3."""

    train_batch_size: Annotated[int, Range(1)] = 500
    """Timesteps per update, a multiple of rollout_fragment_length. Typical: 500 to 4000."""

    minibatch_size: Annotated[int, Range(1)] | None = None
    """Timesteps per gradient step, a multiple of rollout_fragment_length. None: the whole batch at once."""

    num_epochs: Annotated[int, Range(1)] = 1
    """Passes over the batch per update; every one after the first is off-policy by that much more."""

    grad_clip: Annotated[FloatOrSchedule, Range(above=0)] | None = 40.0
    """Bound on the gradients in the sense of grad_clip_by. None: no clipping. Typical: 0.5 to 40."""

    @property
    def sequence_length(self) -> int:
        """T: a fragment is a sequence."""
        length = self.rollout_fragment_length
        return _FRAGMENT if length == "auto" else int(length)

    def validate(self) -> None:
        """Check settings against each other."""
        super().validate()
        length = self.sequence_length
        for name in ("train_batch_size", "minibatch_size"):
            size = getattr(self, name)
            if size is not None and size % length:
                nearest = max(1, round(size / length)) * length
                raise ConfigError(
                    f"{type(self).__name__}: {name}={size} counts timesteps and must be a multiple of "
                    f"rollout_fragment_length={length}, as {nearest} is"
                )
