"""Settings of algorithms that learn from a replay buffer: what ``OffPolicyAlgorithm`` reads, and fitting defaults.

::

    @dataclass(kw_only=True, repr=False, eq=False)
    class DQNConfig(OffPolicyConfig):
        algorithm_name = "dqn"
        default_learner_class = DQNLearner
        default_module_class = QModule
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from ..config.needs import Needs, needs
from ..config.validation import FloatOrSchedule, Range
from .algorithm_config import AlgorithmConfig

__all__ = ["OffPolicyConfig"]


@dataclass(kw_only=True, repr=False, eq=False)
class OffPolicyConfig(AlgorithmConfig):
    """A few steps into a replay buffer, as many gradient steps out of it.

    A Learner's batch has ``obs actions rewards terminateds truncateds next_obs``; with ``n_step`` above 1 ``discounts``
    float[B] as well, and with ``prioritized_replay`` ``weights`` float[B] (declare them in ``batch_spec``), for which
    the Learner also has ``td_errors(batch)``, float[B] on the host.
    """

    algorithm_class: ClassVar[type | str | None] = "learner_core.algorithm.off_policy:OffPolicyAlgorithm"
    samples_raw: ClassVar[bool] = True
    unused_settings: ClassVar[Mapping[str, str]] = {
        **AlgorithmConfig.unused_settings,
        "max_seq_len": "batches are single steps out of the replay buffer",
        "burn_in": "batches are single steps out of the replay buffer",
        "critic_observes": "the replay buffer holds one agent's experience",
        "max_requests_in_flight_per_env_runner": "all runners sample together, and none gets ahead",
    }
    needed_settings: ClassVar[Mapping[str, Needs]] = {
        **AlgorithmConfig.needed_settings,
        **dict.fromkeys(("priority_alpha", "priority_beta"), needs("prioritized_replay", "True")),
    }
    #: What the buffer is made of.
    fixed_settings: ClassVar[frozenset[str]] = AlgorithmConfig.fixed_settings | {
        "buffer_capacity",
        "prioritized_replay",
        "priority_alpha",
    }

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

    num_envs_per_env_runner: Annotated[int, Range(1)] = 1
    """Environments stepped together. Where it is not set, a vector environment is as many as it is."""

    @property
    def rows_per_update(self) -> int:
        """Rows of the gradient steps that one fragment pays for, which are one call."""
        fragment = 1 if self.rollout_fragment_length == "auto" else int(self.rollout_fragment_length)
        steps = fragment * self.num_envs_per_env_runner * max(1, self.num_env_runners)
        updates = math.ceil(steps * self.updates_per_step)
        return self.train_batch_size * max(updates, 1)
