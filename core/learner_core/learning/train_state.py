"""What training changes and a state holds: arrays, counters, and the variables that hooks assign."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from .arrays import ModuleArrays

__all__ = ["COUNTER", "TrainState"]

#: The counter that schedules move by.
COUNTER = "num_env_steps_sampled_lifetime"


@dataclass
class TrainState:
    """Everything of a Learner that an update changes.

    Attributes:
        seed: keys noise and minibatches.
        arrays: module id -> its arrays on the backend.
        optimizer_steps: (module id, optimizer) -> steps that it has taken.
        host_variables: module id -> name -> value, of the variables that are not trained.
        timesteps: lifetime counters; schedules move by ``COUNTER``.
        num_updates: updates so far.
        num_steps: minibatch steps so far.
    """

    seed: int
    arrays: dict[str, ModuleArrays] = field(default_factory=dict)
    optimizer_steps: dict[tuple[str, str], int] = field(default_factory=dict)
    host_variables: dict[str, dict[str, float]] = field(default_factory=dict)
    timesteps: dict[str, int] = field(default_factory=lambda: {COUNTER: 0})
    num_updates: int = 0
    num_steps: int = 0

    def snapshot(self) -> TrainState:
        """As it is now, whatever comes. It costs no memory: steps replace arrays and never write into them."""
        return replace(
            self,
            arrays={module_id: arrays.copy() for module_id, arrays in self.arrays.items()},
            optimizer_steps=dict(self.optimizer_steps),
            host_variables={module_id: dict(values) for module_id, values in self.host_variables.items()},
            timesteps=dict(self.timesteps),
        )

    def restore(self, snapshot: TrainState) -> None:
        """Be again what it was; the snapshot can be used again."""
        vars(self).update(vars(snapshot.snapshot()))
