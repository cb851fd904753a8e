"""Settings of behaviour cloning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from learner_core.algorithm.algorithm_config import AlgorithmConfig
from learner_core.config.needs import ENVIRONMENT, Needs
from learner_core.config.validation import FloatOrSchedule, Range

__all__ = ["BCConfig"]


@dataclass(kw_only=True, repr=False, eq=False)
class BCConfig(AlgorithmConfig):
    """Behaviour cloning: maximum likelihood of recorded actions; README.md beside this file has the maths."""

    algorithm_name: ClassVar[str] = "bc"
    algorithm_class: ClassVar[type | str | None] = "learner_core.algorithm.offline:OfflineAlgorithm"
    default_learner_class: ClassVar[Any] = "learner_core_algorithms.bc.learner:BCLearner"
    default_module_class: ClassVar[Any] = "learner_core.learning.actor_critic:PolicyModule"
    unused_settings: ClassVar[Mapping[str, str]] = {
        **AlgorithmConfig.unused_settings,
        **dict.fromkeys(
            (
                "num_env_runners",
                "max_env_runner_restarts",
                "env_runner_timeout_s",
                "max_requests_in_flight_per_env_runner",
                "rollout_fragment_length",
            ),
            "experience comes out of a recording, and evaluation needs no other processes",
        ),
        **dict.fromkeys(("normalize_observations", "normalize_rewards"), "a recording is learned from as it is"),
        "gamma": "the loss is the likelihood of single actions",
        "critic_observes": "no value function is learned",
    }
    needed_settings: ClassVar[Mapping[str, Needs]] = {
        **AlgorithmConfig.needed_settings,
        **dict.fromkeys(
            (
                "env_config",
                "num_envs_per_env_runner",
                "inference",
                "vectorization",
                "max_env_restarts",
                "env_step_timeout_s",
            ),
            ENVIRONMENT,
        ),
    }
    #: Read once.
    fixed_settings: ClassVar[frozenset[str]] = AlgorithmConfig.fixed_settings | {"input_path"}

    input_path: str | None = None
    """State file of recorded episodes (columns obs, actions), as `learner-core record` writes it."""

    updates_per_iteration: Annotated[int, Range(1)] = 10
    """Batches that one train() call learns from."""

    lr: Annotated[FloatOrSchedule, Range(0)] = 1e-3
    """Learning rate. Typical: 1e-4 to 1e-3."""

    num_epochs: Annotated[int, Range(1)] = 1
    """Passes over each batch drawn from the recording."""
