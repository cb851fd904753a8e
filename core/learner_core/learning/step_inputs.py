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

if TYPE_CHECKING:
    from .learner import Learner
    from .step import UpdateStep

__all__ = ["Known", "Shapes", "StepInputs"]

#: Of every step: module id -> rows that count; "statistics/module/column" -> mean and deviation.
Known = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]


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

    def dummy_plans(self) -> dict[str, MinibatchPlan]:
        """Plans of full minibatches, for tracing."""
        return {
            mid: MinibatchPlan(np.zeros((self.steps, m), np.int64), np.full(self.steps, m, np.int64))
            for mid, m in self.minibatch.items()
        }


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

    def _tables(
        self, plans: Mapping[str, MinibatchPlan], counts: Mapping[str, np.ndarray], first_step: int, capacity: int
    ) -> dict[str, np.ndarray]:
        learner, dtype = self._learner, self._learner.backend.numpy_float_dtype
        ints: dict[tuple[str, ...], np.ndarray] = {}
        for mid, plan in plans.items():
            ints["rows", mid] = plan.rows
            ints["count", mid] = counts[mid]
            ints["step", mid] = first_step + np.arange(plan.num_steps, dtype=np.int64)
        steps = {key: learner._optimizer_steps[key] for key in self._step.corrections.index}
        return {
            "floats": self._step.table.float_table(capacity, learner._float_values(), dtype),
            "ints": self._step.table.int_table(capacity, ints),
            "corrections": self._step.corrections.table(capacity + 1, steps, dtype),
        }

    def static(
        self,
        kind: str,
        shapes: Shapes,
        data: Mapping[str, Mapping[str, np.ndarray]],
        plans: Mapping[str, MinibatchPlan],
        whole: Mapping[str, MinibatchPlan],
        known: Known,
        first_step: int,
    ) -> dict[str, Any]:
        """Inputs of the compiled loop, in buffers of capacity size that are reused from update to update."""
        counts, statistics = known
        arrays: dict[str, np.ndarray] = {}
        for mid, plan in plans.items():
            columns = data.get(mid, {})
            rows = len(next(iter(columns.values()))) if columns else 0
            capacity, width = shapes.capacity[mid], shapes.minibatch[mid]
            idx = self._buffer(f"{kind}/idx/{mid}", (shapes.steps, width), np.int64)
            indices = plan.indices[:, :width]
            gathered = rows > capacity
            if gathered:
                flat = indices.reshape(-1)
                idx[: plan.num_steps] = np.arange(flat.size).reshape(indices.shape)
            else:
                idx[: plan.num_steps] = indices
            arrays[f"idx/{mid}"] = idx
            for name in self._step.plans[mid].columns:
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
            mid = key.split("/", 1)[0]
            buffer = self._buffer(
                f"{kind}/noise/{key}",
                (shapes.steps, shapes.minibatch[mid], *shape),
                self._learner.backend.numpy_float_dtype,
            )
            self._draw_noise(buffer, key, whole[mid], first_step)
            arrays[f"noise/{key}"] = buffer
        for key, lines in statistics.items():
            arrays[key] = np.concatenate([lines, np.zeros((shapes.steps - len(lines), 2), lines.dtype)])
        arrays.update(self._tables(plans, counts, first_step, shapes.steps))
        return dict(self._learner.backend.from_numpy(arrays))

    def counts(
        self, mid: str, data: Mapping[str, Mapping[str, np.ndarray]], own: MinibatchPlan, whole: MinibatchPlan
    ) -> np.ndarray:
        """int64[steps]: rows (timesteps) of every whole minibatch that count."""
        meeting = self._ring.meeting
        mask = data.get(mid, {}).get("loss_mask")
        if meeting is None or mid not in data:
            return _counts_of(whole, mask)
        # Either all learners have a mask or none has.
        return whole.rows if mask is None else meeting.sum(_counts_of(own, mask)).astype(np.int64)

    def statistics(
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

    def blank_statistics(self, steps: int) -> dict[str, np.ndarray]:
        dtype = self._learner.backend.numpy_float_dtype
        return {f"statistics/{mid}/{column}": np.zeros((steps, 2), dtype) for mid, column in self._step.statistics}

    def _draw_noise(self, buffer: np.ndarray, key: str, whole: MinibatchPlan, first_step: int) -> None:
        """Fill float[steps, rows, *shape]: a row's noise goes by its place in the whole minibatch."""
        bounds = [edge.tolist() for edge in self._ring.bounds(whole)]
        for line, (rows, first, last) in enumerate(zip(whole.rows.tolist(), *bounds, strict=True)):
            drawn = self._learner._draw(key, first_step + line, rows, buffer.shape[2:])
            buffer[line, : last - first] = drawn[first:last]

    def exact(
        self,
        data: Mapping[str, Mapping[str, np.ndarray]],
        plans: Mapping[str, MinibatchPlan],
        whole: Mapping[str, MinibatchPlan],
        known: Known,
        first_step: int,
    ) -> dict[str, Any]:
        """Inputs of the uncompiled loop: the data as they are, and each step's true number of rows."""
        counts, statistics = known
        arrays: dict[str, np.ndarray] = {}
        sizes: dict[str, list[int]] = {}
        steps = next(iter(plans.values())).num_steps
        for mid, plan in plans.items():
            columns = data.get(mid, {})
            if not columns or not len(next(iter(columns.values()))):
                columns = self.dummy(dict.fromkeys(plans, 1))[mid]
            arrays[f"idx/{mid}"] = plan.indices
            for name in self._step.plans[mid].columns:
                if name in columns:
                    arrays[f"data/{mid}/{name}"] = columns[name]
            sizes[mid] = plan.rows.tolist()
        for key, shape in self._noise.items():
            mid = key.split("/", 1)[0]
            width = plans[mid].indices.shape[1]
            buffer = np.zeros((steps, width, *shape), self._learner.backend.numpy_float_dtype)
            self._draw_noise(buffer, key, whole[mid], first_step)
            arrays[f"noise/{key}"] = buffer
        arrays.update(statistics)
        arrays.update(self._tables(plans, counts, first_step, steps))
        return {**self._learner.backend.from_numpy(arrays), "sizes": sizes}

    def _buffer(self, key: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        buffer = self._buffers.get(key)
        if buffer is None:
            buffer = self._buffers[key] = np.zeros(shape, dtype)
        return buffer

    def dtype_of(self, spec: ColumnSpec) -> Any:
        """numpy dtype of a column."""
        return self._learner.backend.numpy_float_dtype if spec.dtype == "float" else np.dtype(spec.dtype)

    def dummy(self, rows: Mapping[str, int]) -> dict[str, dict[str, np.ndarray]]:
        """A batch of the right shapes, for tracing."""
        out: dict[str, dict[str, np.ndarray]] = {}
        for mid, plan in self._step.plans.items():
            out[mid] = {
                name: np.full(
                    (rows[mid], *self._specs[mid][name].shape),
                    1 if name == "loss_mask" else 0,
                    self.dtype_of(self._specs[mid][name]),
                )
                for name in plan.columns
            }
        return out


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
