"""What the steps of an update are fed: data, plans, tables and noise, in buffers made once or at their true size.

A compiled loop has static shapes (``Shapes``): what comes is fitted into buffers of that size. An uncompiled one takes
the data as they are. Needs plans of this learner's share and of the whole, which the noise and the counts go by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from ...backend import Backend
from ...config.algorithm_settings import AlgorithmSettings
from ...maths import noise as noise_maths
from ...schedules import value_at
from ..arrays import Carry, ModuleArrays, StepInputs
from ..blueprint import Blueprint, LearningRate
from ..plan import MinibatchPlan, statistics_of
from ..ranks import Ranks
from ..train_state import COUNTER, TrainState

#: module id -> name -> array.
Nested = dict[str, dict[str, np.ndarray]]

__all__ = ["InputMaker", "Segment", "Shapes", "first_carry", "float_values", "learning_rate", "noise_rows"]


@dataclass(frozen=True)
class Shapes:
    """Static shapes of one executable.

    Attributes:
        minibatch: module id -> rows of a step.
        capacity: module id -> rows of data.
        steps: lines of plan and tables.
    """

    minibatch: dict[str, int]
    capacity: dict[str, int]
    steps: int


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive steps of one update, or all of them.

    Attributes:
        data: module id -> column -> [rows, ...], the rows that this learner holds; modules without rows are absent.
        plans: module id -> this learner's share of every minibatch, all of one length.
        whole: module id -> every minibatch as all learners together see it, of the same length.
        counts: module id -> int64[steps], rows (timesteps) of every whole minibatch that count.
        statistics: (module id, column) -> float[steps, 2], mean and standard deviation over every whole one.
        first_step: lifetime minibatch step of the first line, which keys the noise.
        updated: module id -> whether it is, of those that share rows with others; one that is not named is.
    """

    data: Mapping[str, Mapping[str, np.ndarray]]
    plans: Mapping[str, MinibatchPlan]
    whole: Mapping[str, MinibatchPlan]
    counts: Mapping[str, np.ndarray]
    statistics: Mapping[tuple[str, str], np.ndarray]
    first_step: int = 0
    updated: Mapping[str, bool] = field(default_factory=dict)

    @property
    def num_steps(self) -> int:
        """Number of steps."""
        return next(iter(self.plans.values())).num_steps

    def sizes(self, step: int) -> dict[str, int]:
        """module id -> rows that this learner has of one step."""
        return {mid: int(plan.rows[step]) for mid, plan in self.plans.items()}

    def lines(self, start: int, stop: int) -> Segment:
        """The steps start..stop-1, over the same rows."""
        return replace(
            self,
            plans={mid: plan.lines(start, stop) for mid, plan in self.plans.items()},
            whole={mid: plan.lines(start, stop) for mid, plan in self.whole.items()},
            counts={mid: lines[start:stop] for mid, lines in self.counts.items()},
            statistics={key: lines[start:stop] for key, lines in self.statistics.items()},
            first_step=self.first_step + start,
        )


def noise_rows(
    seed: int, step: int, key: tuple[str, str], rows: int, shape: tuple[int, ...], dtype: npt.DTypeLike
) -> np.ndarray:
    """Standard normal noise of one step: float[rows, *shape], the same on every backend; ``key``: (module id, name)."""
    stream = noise_maths.stream_id("/".join(key))
    return noise_maths.normals(seed, step, stream, rows, shape, dtype=dtype)


def learning_rate(config: AlgorithmSettings, state: TrainState, module_id: str, lr: LearningRate) -> float:
    """The learning rate now: of a setting's name, a number or a schedule."""
    value = getattr(config.for_module(module_id), lr) if isinstance(lr, str) else lr
    return value_at(value, state.timesteps[COUNTER])


def float_values(blueprint: Blueprint, config: AlgorithmSettings, state: TrainState) -> dict[tuple[str, ...], float]:
    """Values of every float column of the step's table, now."""
    position = state.timesteps[COUNTER]
    values: dict[tuple[str, ...], float] = {}
    for mid, plan in blueprint.plans.items():
        own, variables = config.for_module(mid), state.host_variables[mid]
        values.update({("config", mid, name): value_at(getattr(own, name), position) for name in plan.traced})
        if plan.learns:
            optimizers = plan.optimizers.items()
            values.update({("lr", mid, name): learning_rate(config, state, mid, one.lr) for name, one in optimizers})
        values.update({("var", mid, name): variables[name] for name in plan.host_variables})
    return values


def first_carry(
    backend: Backend, blueprint: Blueprint, modules: dict[str, ModuleArrays], stopped: np.ndarray | None = None
) -> Carry:
    """The carry with fresh counters and metric sums; ``stopped``: modules that take no further step already."""
    fresh = {
        "applied": np.zeros(max(len(blueprint.corrections.index), 1), np.int64),
        "stopped": np.zeros(max(len(blueprint.learning), 1), np.bool_) if stopped is None else stopped,
        "metrics": np.zeros((2, len(blueprint.metrics)), backend.numpy_float_dtype),
    }
    return Carry(modules, **backend.from_numpy(fresh))


class InputMaker:
    """Makes inputs of one Learner's loops.

    Args:
        backend: whose arrays they are.
        blueprint: of the learner.
        ranks: its place among others.
    """

    def __init__(self, backend: Backend, blueprint: Blueprint, ranks: Ranks) -> None:
        self._backend = backend
        self._blueprint = blueprint
        self._ranks = ranks
        self._float_dtype = blueprint.float_dtype
        self._buffers: dict[tuple[str, ...], np.ndarray] = {}

    def forget(self) -> None:
        """The static shapes are others from now on."""
        self._buffers = {}

    def segment(
        self,
        data: Mapping[str, Mapping[str, np.ndarray]],
        whole: Mapping[str, MinibatchPlan],
        first_step: int,
        updated: Mapping[str, bool],
    ) -> Segment:
        """All steps of an update; with several learners each tells the others of its rows what must be known of all.

        Args:
            data: as in ``Segment``.
            whole: as in ``Segment``; lines without rows for absent modules.
            first_step, updated: as in ``Segment``.
        """
        plans = {mid: self._ranks.share(plan) for mid, plan in whole.items()}
        counts = {mid: self._counts(data.get(mid), plans[mid], whole[mid]) for mid in plans}
        return Segment(data, plans, whole, counts, self._statistics(data, plans, whole), first_step, updated)

    def dummy(self, shapes: Shapes) -> Segment:
        """Full minibatches of blank rows, for tracing."""
        plans = {
            mid: MinibatchPlan(np.zeros((shapes.steps, m), np.int64), np.full(shapes.steps, m, np.int64))
            for mid, m in shapes.minibatch.items()
        }
        data = {mid: self._blank(mid, rows) for mid, rows in shapes.capacity.items()}
        blank = np.zeros((shapes.steps, 2), self._float_dtype)
        statistics = dict.fromkeys(self._blueprint.statistics, blank)
        return Segment(data, plans, plans, {mid: plan.rows for mid, plan in plans.items()}, statistics)

    def static(
        self, segment: Segment, kind: str, shapes: Shapes, config: AlgorithmSettings, state: TrainState
    ) -> StepInputs:
        """Inputs of the compiled loop, in buffers of capacity size that are reused from update to update."""
        indices: dict[str, np.ndarray] = {}
        columns: Nested = {}
        for mid, plan in segment.plans.items():
            given = segment.data.get(mid, {})
            rows = len(next(iter(given.values()))) if given else 0
            capacity, width = shapes.capacity[mid], shapes.minibatch[mid]
            idx = indices[mid] = self._buffer((kind, "indices", mid), (shapes.steps, width), np.int64)
            # A share may be narrower than the executable, which points to row 0 then, as every padding does.
            taken = plan.indices[:, :width]
            lines = idx[: plan.num_steps]
            lines[:, taken.shape[1] :] = 0
            gathered = rows > capacity
            if gathered:
                flat = taken.reshape(-1)
                lines[:, : taken.shape[1]] = np.arange(flat.size).reshape(taken.shape)
            else:
                lines[:, : taken.shape[1]] = taken
            columns[mid] = {}
            for name, spec in self._blueprint.fed[mid].items():
                shape, dtype = (capacity, *spec.shape), self._blueprint.dtype_of(spec)
                buffer = self._buffer((kind, "columns", mid, name), shape, dtype)
                source = given.get(name)
                if source is None:
                    buffer[...] = 1 if name == "loss_mask" else 0
                elif gathered:
                    np.take(source, flat, axis=0, out=buffer[: flat.size])
                else:
                    buffer[:rows] = source
                columns[mid][name] = buffer
        noise: Nested = {}
        for (mid, name), shape in self._blueprint.noise.items():
            width = shapes.minibatch[self._blueprint.feed_of(mid)]
            buffer = self._buffer((kind, "noise", mid, name), (shapes.steps, width, *shape), self._float_dtype)
            noise.setdefault(mid, {})[name] = self._drawn(buffer, mid, name, segment, state.seed)
        statistics: Nested = {}
        for (mid, column), known in segment.statistics.items():
            blank = np.zeros((shapes.steps - len(known), 2), known.dtype)
            statistics.setdefault(mid, {})[column] = np.concatenate([known, blank])
        tables = self._tables(segment, shapes.steps, config, state)
        return self._on_backend(StepInputs(indices, columns, noise, statistics, *tables))

    def exact(self, segment: Segment, config: AlgorithmSettings, state: TrainState) -> StepInputs:
        """Inputs of the uncompiled loop: the data as they are, ``segment.sizes()`` says how many rows each step has."""
        columns: Nested = {}
        for mid in segment.plans:
            given = segment.data.get(mid, {})
            if not given or not len(next(iter(given.values()))):
                given = self._blank(mid, 1)
            columns[mid] = {name: given[name] for name in self._blueprint.fed[mid] if name in given}
        noise: Nested = {}
        for (mid, name), shape in self._blueprint.noise.items():
            width = segment.plans[self._blueprint.feed_of(mid)].indices.shape[1]
            buffer = np.zeros((segment.num_steps, width, *shape), self._float_dtype)
            noise.setdefault(mid, {})[name] = self._drawn(buffer, mid, name, segment, state.seed)
        statistics: Nested = {}
        for (mid, column), known in segment.statistics.items():
            statistics.setdefault(mid, {})[column] = known
        indices = {mid: plan.indices for mid, plan in segment.plans.items()}
        tables = self._tables(segment, segment.num_steps, config, state)
        return self._on_backend(StepInputs(indices, columns, noise, statistics, *tables))

    # ------------------------------------------------------------------ inside

    def _tables(
        self, segment: Segment, capacity: int, config: AlgorithmSettings, state: TrainState
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Floats, ints and corrections of ``StepInputs``."""
        blueprint, dtype = self._blueprint, self._float_dtype
        ints: dict[tuple[str, ...], np.ndarray] = {}
        for mid, plan in segment.plans.items():
            ints["rows", mid] = plan.rows
            ints["count", mid] = segment.counts[mid]
            ints["step", mid] = segment.first_step + np.arange(plan.num_steps, dtype=np.int64)
        for kind, mid in blueprint.table.ints:
            if kind == "updated":
                ints[kind, mid] = np.full(segment.num_steps, segment.updated.get(mid, True), np.int64)
        return (
            blueprint.table.float_table(capacity, float_values(blueprint, config, state), dtype),
            blueprint.table.int_table(capacity, ints),
            blueprint.corrections.table(capacity + 1, state.optimizer_steps, dtype),
        )

    def _on_backend(self, inputs: StepInputs) -> StepInputs:
        return StepInputs(**self._backend.from_numpy(inputs.tree()))

    def _counts(self, columns: Mapping[str, np.ndarray] | None, own: MinibatchPlan, whole: MinibatchPlan) -> np.ndarray:
        """int64[steps]: rows (timesteps) of one module that count, in every whole minibatch."""
        mask = None if columns is None else columns.get("loss_mask")
        if mask is None:  # either all learners have one or none has
            return whole.rows
        return self._ranks.sum(_counts_of(self._ranks.held_plan(own, whole), mask)).astype(np.int64)

    def _statistics(
        self,
        data: Mapping[str, Mapping[str, np.ndarray]],
        plans: Mapping[str, MinibatchPlan],
        whole: Mapping[str, MinibatchPlan],
    ) -> dict[tuple[str, str], np.ndarray]:
        """float[steps, 2]: mean and standard deviation of a column over every whole minibatch."""
        tables: dict[tuple[str, str], np.ndarray] = {}
        for mid, column in self._blueprint.statistics:
            lines = np.zeros((whole[mid].num_steps, 2), np.float64)
            columns = data.get(mid, {})
            if column in columns:
                held = self._ranks.held_plan(plans[mid], whole[mid])
                lines = statistics_of(columns[column], held, columns.get("loss_mask"), self._ranks.sum)
            tables[mid, column] = lines.astype(self._float_dtype)
        return tables

    def _drawn(self, buffer: np.ndarray, module_id: str, name: str, segment: Segment, seed: int) -> np.ndarray:
        """float[steps, rows, *shape], filled: a row's noise goes by its place in the whole minibatch."""
        whole = segment.whole[self._blueprint.feed_of(module_id)]
        bounds = [edge.tolist() for edge in self._ranks.bounds(whole)]
        for line, (rows, first, last) in enumerate(zip(whole.rows.tolist(), *bounds, strict=True)):
            step = segment.first_step + line
            drawn = noise_rows(seed, step, (module_id, name), rows, buffer.shape[2:], self._float_dtype)
            buffer[line, : last - first] = drawn[first:last]
        return buffer

    def _buffer(self, key: tuple[str, ...], shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
        buffer = self._buffers.get(key)
        if buffer is None:
            buffer = self._buffers[key] = np.zeros(shape, dtype)
        return buffer

    def _blank(self, mid: str, rows: int) -> dict[str, np.ndarray]:
        """Rows of one module that are all zeros, and count."""
        return {
            name: np.full((rows, *spec.shape), 1 if name == "loss_mask" else 0, self._blueprint.dtype_of(spec))
            for name, spec in self._blueprint.fed[mid].items()
        }


def _counts_of(plan: MinibatchPlan, mask: np.ndarray) -> np.ndarray:
    """int64[steps]: rows (timesteps) of each step that count."""
    if not len(mask):  # all the rows are others'
        return np.zeros(len(plan.rows), np.int64)
    weights = mask.reshape(len(mask), -1).sum(axis=1)
    real = np.arange(plan.indices.shape[1]) < plan.rows[:, None]
    counts: np.ndarray = np.ceil((weights[plan.indices] * real).sum(axis=1)).astype(np.int64)
    return counts
