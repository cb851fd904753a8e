"""What is fixed about a Learner once it is built: its modules, how their arrays are laid out, what its step reads.

Made anew when modules or static settings change, and never changed. docs/decisions/code-structure.md says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..maths.optimizers import OptimizerSpec
from ..schedules import Schedule
from .batch import ColumnSpec
from .parameters import FlatLayout
from .rl_module import RLModule
from .sequences import Sequences
from .tables import CorrectionTable, TableLayout

if TYPE_CHECKING:
    from gymnasium import Space

__all__ = ["Blueprint", "LearningRate", "ModulePlan", "OptimizerPlan"]


#: Name of a setting, a number or a schedule.
LearningRate = str | float | Schedule | Sequence[Sequence[float]] | Mapping[str, Any]


@dataclass(frozen=True)
class OptimizerPlan:
    """One registered optimizer: its maths, its rate, and the parameters it moves."""

    spec: OptimizerSpec
    lr: LearningRate
    layout: FlatLayout


@dataclass(frozen=True)
class ModulePlan:
    """Everything that is fixed about one module.

    Attributes:
        module: over the backend's namespace.
        optimizers: by name, in the order of their registration.
        frozen: parameters that no optimizer moves.
        targets: parameters with a target copy.
        buffers: names of its buffers.
        standard: column -> specification, of all that a batch of it may have.
        checked_space: that ``actions`` must lie in; ``None``: any value.
        traced: settings that are arrays in a step.
        host_variables: names of variables that hooks assign.
        trained_variables: names of those that are parameters.
        bounds: variable -> least and most value with a meaning.
        sequences: what a row is where it is a sequence; ``None``: a timestep.
        masked: whether every batch says which actions are allowed.
        learns: whether the step has its forward pass and loss; otherwise it is there for hooks of other modules.
        rows_from: the module whose rows it learns from: its own id, unless its specification has ``rows_of``; "": it
            has no loss.
        borrowed: parameters that other modules hold for it: name -> module.
        shared_by: modules whose losses move its parameters, where it holds them for these.
    """

    module: RLModule
    optimizers: Mapping[str, OptimizerPlan]
    frozen: FlatLayout
    targets: FlatLayout
    buffers: tuple[str, ...]
    standard: Mapping[str, ColumnSpec]
    checked_space: Space[Any] | None
    traced: tuple[str, ...]
    host_variables: tuple[str, ...] = ()
    trained_variables: tuple[str, ...] = ()
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    sequences: Sequences | None = None
    masked: bool = False
    learns: bool = True
    rows_from: str = ""
    borrowed: Mapping[str, str] = field(default_factory=dict)
    shared_by: tuple[str, ...] = ()

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Leading axes of a row: (T,) of a sequence, () of a timestep."""
        return () if self.sequences is None else (self.sequences.length,)

    @property
    def mask_spec(self) -> ColumnSpec:
        """The column ``loss_mask``: [B], or [B, T]."""
        return ColumnSpec(self.row_shape, "float", sequence=bool(self.row_shape))

    def rows(self, timesteps: int) -> int:
        """Rows that so many timesteps make."""
        return timesteps if self.sequences is None else self.sequences.rows(timesteps)

    def minibatch_rows(self, module_id: str, timesteps: int, error: type[Exception]) -> int:
        """Rows of a minibatch of so many timesteps: as many, or the sequences that they make.

        Raises:
            error: ``timesteps`` is no multiple of the sequences' length.
        """
        if self.sequences is None:
            return timesteps
        if timesteps % self.sequences.length:
            nearest = max(1, round(timesteps / self.sequences.length)) * self.sequences.length
            raise error(
                f"minibatch_size={timesteps} counts timesteps and must be a multiple of the sequences' length of "
                f"{self.sequences.length} in module {module_id!r}, as {nearest} is"
            )
        return timesteps // self.sequences.length


@dataclass(frozen=True)
class Blueprint:
    """What is fixed about a Learner.

    Attributes:
        plans: module id -> its plan, of all modules.
        table: columns of the per-step tables.
        corrections: the optimizers' bias corrections.
        accumulate: micro-batches that a minibatch is split into.
        float_dtype: numpy's, of parameters and columns of floats.
        fed: module id -> column -> specification, of what a step is fed, in this order; of the modules with rows.
        metrics: (module id, name) of what the hooks log, in carry order.
        noise: (module id, name) -> shape of one row's noise.
        statistics: (module id, column) whose statistics over a minibatch the hooks read.
        explored: whether these four are known: they are found by running a step.
    """

    plans: Mapping[str, ModulePlan]
    table: TableLayout
    corrections: CorrectionTable
    accumulate: int
    float_dtype: np.dtype[Any]
    fed: Mapping[str, Mapping[str, ColumnSpec]] = field(default_factory=dict)
    metrics: tuple[tuple[str, str], ...] = ()
    noise: Mapping[tuple[str, str], tuple[int, ...]] = field(default_factory=dict)
    statistics: tuple[tuple[str, str], ...] = ()
    explored: bool = False

    @classmethod
    def blank(cls, float_dtype: npt.DTypeLike) -> Blueprint:
        """Of no modules."""
        return cls({}, TableLayout([], []), CorrectionTable({}), 1, np.dtype(float_dtype))

    @cached_property
    def learning(self) -> dict[str, ModulePlan]:
        """The modules that learn: they have a forward pass and a loss in the step."""
        return {module_id: plan for module_id, plan in self.plans.items() if plan.learns}

    @cached_property
    def resting(self) -> dict[str, ModulePlan]:
        """The others, whose parameters hooks may compute with."""
        return {module_id: plan for module_id, plan in self.plans.items() if not plan.learns}

    @cached_property
    def feeds(self) -> dict[str, ModulePlan]:
        """The modules that have rows in a minibatch."""
        return {
            feed: self.plans[feed] for feed in dict.fromkeys(p.rows_from for p in self.learning.values() if p.rows_from)
        }

    @cached_property
    def groups(self) -> dict[str, dict[str, list[str]]]:
        """module id -> optimizer -> names of its parameters."""
        return {
            module_id: {name: list(optimizer.layout.names) for name, optimizer in plan.optimizers.items()}
            for module_id, plan in self.plans.items()
        }

    @cached_property
    def modules(self) -> dict[str, RLModule]:
        """module id -> module."""
        return {module_id: plan.module for module_id, plan in self.plans.items()}

    @cached_property
    def bounds(self) -> dict[str, Mapping[str, tuple[float, float]]]:
        """module id -> variable -> least and most value."""
        return {module_id: plan.bounds for module_id, plan in self.plans.items()}

    @cached_property
    def num_parameters(self) -> int:
        """Of all modules, target copies included."""
        return sum(
            sum(optimizer.layout.size for optimizer in plan.optimizers.values()) + plan.frozen.size + plan.targets.size
            for plan in self.plans.values()
        )

    def dtype_of(self, spec: ColumnSpec) -> np.dtype[Any]:
        """numpy's dtype of a column."""
        return self.float_dtype if spec.dtype == "float" else np.dtype(spec.dtype)

    def columns(self, module_id: str) -> dict[str, ColumnSpec]:
        """Columns that a batch of the module must have; none, if no rows of it are read."""
        return {name: spec for name, spec in self.fed.get(module_id, {}).items() if name != "loss_mask"}

    def feed_of(self, module_id: str) -> str:
        """The module whose rows the module learns from."""
        return self.learning[module_id].rows_from if module_id in self.learning else module_id
