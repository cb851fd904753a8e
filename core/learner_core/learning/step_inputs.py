"""What the steps of an update are fed: data, plans, tables and noise, in buffers made once or at their true size.

A compiled loop has static shapes (``Shapes``): what comes is fitted into buffers of that size. An uncompiled one takes
the data as they are. Needs plans of this learner's share and of the whole, which the noise and the counts go by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .batch import ColumnSpec
from .plan import MinibatchPlan, statistics_of
from .segment import Segment

if TYPE_CHECKING:
    from .learner import Learner
    from .step import UpdateStep

__all__ = ["Shapes", "StepInputs"]


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


class StepInputs:
    """Makes inputs of one Learner's loops.

    Args:
        learner: the learner.
        step: its step.
        specs: module id -> column -> what it holds.
        noise: "module/name" -> shape of one row's noise.
    """

    def __init__(
        self,
        learner: Learner,
        step: UpdateStep,
        *,
        specs: Mapping[str, Mapping[str, ColumnSpec]],
        noise: Mapping[str, tuple[int, ...]],
    ) -> None:
        self._learner = learner
        self._step = step
        self._specs = specs
        self._noise = dict(noise)
        self._ring = learner._ring
        self._buffers: dict[str, np.ndarray] = {}

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
        plans = {mid: self._ring.share(plan) for mid, plan in whole.items()}
        counts = {mid: self._counts(data.get(mid), plans[mid], whole[mid]) for mid in plans}
        return Segment(data, plans, whole, counts, self._statistics(data, plans, whole), first_step, updated)

    def dummy(self, shapes: Shapes) -> Segment:
        """Full minibatches of blank rows, for tracing."""
        plans = {
            mid: MinibatchPlan(np.zeros((shapes.steps, m), np.int64), np.full(shapes.steps, m, np.int64))
            for mid, m in shapes.minibatch.items()
        }
        data = {mid: self._blank(mid, rows) for mid, rows in shapes.capacity.items()}
        blank = np.zeros((shapes.steps, 2), self._learner.backend.numpy_float_dtype)
        statistics = {f"statistics/{mid}/{column}": blank for mid, column in self._step.statistics}
        return Segment(data, plans, plans, {mid: plan.rows for mid, plan in plans.items()}, statistics)

    def _tables(self, segment: Segment, capacity: int) -> dict[str, np.ndarray]:
        learner, dtype = self._learner, self._learner.backend.numpy_float_dtype
        ints: dict[tuple[str, ...], np.ndarray] = {}
        for mid, plan in segment.plans.items():
            ints["rows", mid] = plan.rows
            ints["count", mid] = segment.counts[mid]
            ints["step", mid] = segment.first_step + np.arange(plan.num_steps, dtype=np.int64)
        for kind, mid in self._step.table.ints:
            if kind == "updated":
                ints[kind, mid] = np.full(segment.num_steps, segment.updated.get(mid, True), np.int64)
        steps = {key: learner._optimizer_steps[key] for key in self._step.corrections.index}
        return {
            "floats": self._step.table.float_table(capacity, learner._float_values(), dtype),
            "ints": self._step.table.int_table(capacity, ints),
            "corrections": self._step.corrections.table(capacity + 1, steps, dtype),
        }

    def static(self, segment: Segment, kind: str, shapes: Shapes) -> dict[str, Any]:
        """Inputs of the compiled loop, in buffers of capacity size that are reused from update to update."""
        arrays: dict[str, np.ndarray] = {}
        for mid, plan in segment.plans.items():
            columns = segment.data.get(mid, {})
            rows = len(next(iter(columns.values()))) if columns else 0
            capacity, width = shapes.capacity[mid], shapes.minibatch[mid]
            idx = self._buffer(f"{kind}/idx/{mid}", (shapes.steps, width), np.int64)
            # A share may be narrower than the executable, which points to row 0 then, as every padding does.
            indices = plan.indices[:, :width]
            lines = idx[: plan.num_steps]
            lines[:, indices.shape[1] :] = 0
            gathered = rows > capacity
            if gathered:
                flat = indices.reshape(-1)
                lines[:, : indices.shape[1]] = np.arange(flat.size).reshape(indices.shape)
            else:
                lines[:, : indices.shape[1]] = indices
            arrays[f"idx/{mid}"] = idx
            for name in self._step.feeds[mid].columns:
                spec = self._specs[mid][name]
                buffer = self._buffer(f"{kind}/data/{mid}/{name}", (capacity, *spec.shape), self.dtype_of(spec))
                source = columns.get(name)
                if source is None:
                    buffer[...] = 1 if name == "loss_mask" else 0
                elif gathered:
                    np.take(source, flat, axis=0, out=buffer[: flat.size])
                else:
                    buffer[:rows] = source
                arrays[f"data/{mid}/{name}"] = buffer
        for key, shape in self._noise.items():
            mid = self._step.feed_of(key)
            buffer = self._buffer(
                f"{kind}/noise/{key}",
                (shapes.steps, shapes.minibatch[mid], *shape),
                self._learner.backend.numpy_float_dtype,
            )
            self._draw_noise(buffer, key, segment.whole[mid], segment.first_step)
            arrays[f"noise/{key}"] = buffer
        for key, lines in segment.statistics.items():
            arrays[key] = np.concatenate([lines, np.zeros((shapes.steps - len(lines), 2), lines.dtype)])
        arrays.update(self._tables(segment, shapes.steps))
        return dict(self._learner.backend.from_numpy(arrays))

    def _counts(self, columns: Mapping[str, np.ndarray] | None, own: MinibatchPlan, whole: MinibatchPlan) -> np.ndarray:
        """int64[steps]: rows (timesteps) of one module that count, in every whole minibatch."""
        meeting = self._ring.meeting
        mask = None if columns is None else columns.get("loss_mask")
        if meeting is None or columns is None:
            return _counts_of(whole, mask)
        # Either all learners have a mask or none has.
        return whole.rows if mask is None else meeting.sum(_counts_of(own, mask)).astype(np.int64)

    def _statistics(
        self,
        data: Mapping[str, Mapping[str, np.ndarray]],
        plans: Mapping[str, MinibatchPlan],
        whole: Mapping[str, MinibatchPlan],
    ) -> dict[str, np.ndarray]:
        """float[steps, 2]: mean and standard deviation of a column over every whole minibatch."""
        tables: dict[str, np.ndarray] = {}
        meeting = self._ring.meeting
        for mid, column in sorted(self._step.statistics):
            lines = np.zeros((whole[mid].num_steps, 2), np.float64)
            columns = data.get(mid, {})
            if column in columns:
                mask = columns.get("loss_mask")
                if meeting is None:
                    lines = statistics_of(columns[column], whole[mid], mask)
                else:
                    lines = statistics_of(columns[column], plans[mid], mask, meeting.sum)
            tables[f"statistics/{mid}/{column}"] = lines.astype(self._learner.backend.numpy_float_dtype)
        return tables

    def _draw_noise(self, buffer: np.ndarray, key: str, whole: MinibatchPlan, first_step: int) -> None:
        """Fill float[steps, rows, *shape]: a row's noise goes by its place in the whole minibatch."""
        bounds = [edge.tolist() for edge in self._ring.bounds(whole)]
        for line, (rows, first, last) in enumerate(zip(whole.rows.tolist(), *bounds, strict=True)):
            drawn = self._learner._draw(key, first_step + line, rows, buffer.shape[2:])
            buffer[line, : last - first] = drawn[first:last]

    def exact(self, segment: Segment) -> dict[str, Any]:
        """Inputs of the uncompiled loop: the data as they are, and each step's true number of rows."""
        arrays: dict[str, np.ndarray] = {}
        sizes: dict[str, list[int]] = {}
        steps = segment.num_steps
        for mid, plan in segment.plans.items():
            columns = segment.data.get(mid, {})
            if not columns or not len(next(iter(columns.values()))):
                columns = self._blank(mid, 1)
            arrays[f"idx/{mid}"] = plan.indices
            for name in self._step.feeds[mid].columns:
                if name in columns:
                    arrays[f"data/{mid}/{name}"] = columns[name]
            sizes[mid] = plan.rows.tolist()
        for key, shape in self._noise.items():
            mid = self._step.feed_of(key)
            width = segment.plans[mid].indices.shape[1]
            buffer = np.zeros((steps, width, *shape), self._learner.backend.numpy_float_dtype)
            self._draw_noise(buffer, key, segment.whole[mid], segment.first_step)
            arrays[f"noise/{key}"] = buffer
        arrays.update(segment.statistics)
        arrays.update(self._tables(segment, steps))
        return {**self._learner.backend.from_numpy(arrays), "sizes": sizes}

    def _buffer(self, key: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        buffer = self._buffers.get(key)
        if buffer is None:
            buffer = self._buffers[key] = np.zeros(shape, dtype)
        return buffer

    def dtype_of(self, spec: ColumnSpec) -> Any:
        """numpy dtype of a column."""
        return self._learner.backend.numpy_float_dtype if spec.dtype == "float" else np.dtype(spec.dtype)

    def _blank(self, mid: str, rows: int) -> dict[str, np.ndarray]:
        """Rows of one module that are all zeros, and count."""
        return {
            name: np.full((rows, *spec.shape), 1 if name == "loss_mask" else 0, self.dtype_of(spec))
            for name, spec in ((name, self._specs[mid][name]) for name in self._step.feeds[mid].columns)
        }


def _counts_of(plan: MinibatchPlan, mask: np.ndarray | None) -> np.ndarray:
    """int64[steps]: rows (timesteps) of each step that count."""
    if mask is None:
        return plan.rows
    if not len(mask):  # all the rows are others'
        return np.zeros(len(plan.rows), np.int64)
    weights = mask.reshape(len(mask), -1).sum(axis=1)
    real = np.arange(plan.indices.shape[1]) < plan.rows[:, None]
    counts: np.ndarray = np.ceil((weights[plan.indices] * real).sum(axis=1)).astype(np.int64)
    return counts
