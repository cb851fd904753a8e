"""Runs the minibatch steps of an update on the backend, through executables fixed at build.

A compiled loop has static shapes: ``capacity`` rows of data, ``steps`` lines of plan and tables. Whatever batch comes
is fitted into them (padded, or fed in chunks), so nothing is traced again. A step that may not be padded (a loss with
its own plain means) runs at its true size: the usual batch's last one through an executable of its own, any other
uncompiled.
"""

from __future__ import annotations

import functools
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend import PythonLoop, PythonSplitLoop
from ..errors import CompileError
from .batch import ColumnSpec
from .plan import MinibatchPlan, statistics_of
from .split import SplitStep

if TYPE_CHECKING:
    from .learner import Learner
    from .step import UpdateStep

__all__ = ["Executor"]

#: Of every step: module id -> rows that count; "statistics/module/column" -> mean and deviation.
_Known = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]


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


class Executor:
    """Executables of one Learner and the buffers that feed them.

    Args:
        learner: the learner.
        step: its step.
        specs: module id -> column -> what it holds.
        minibatch: module id -> rows of a full minibatch.
        noise: "module/name" -> shape of one row's noise.
        mask_safe: short minibatches may be padded.
        value_reads: ``file:line: reason`` of what cannot be traced, known beforehand.
    """

    def __init__(
        self,
        learner: Learner,
        step: UpdateStep,
        *,
        specs: Mapping[str, Mapping[str, ColumnSpec]],
        minibatch: Mapping[str, int],
        noise: Mapping[str, tuple[int, ...]],
        mask_safe: bool,
        value_reads: Sequence[str] = (),
    ) -> None:
        self._learner = learner
        self._step = step
        self._specs = specs
        self._ring = ring = learner._ring
        #: module id -> rows that this learner takes of a full minibatch.
        self._minibatch = {mid: ring.width(size) for mid, size in minibatch.items()}
        self._noise = dict(noise)
        self.mask_safe = mask_safe
        self._split = SplitStep(step)
        self._eager: Any = PythonLoop(step.body)
        if ring.size > 1:
            self._eager = PythonSplitLoop(self._split.gradient, self._split.apply, ring.reduce)
        self._compiled: dict[str, Any] = {}
        self._failed = False
        self._value_reads = list(value_reads)
        config = learner.config
        # A row is a timestep, or a sequence of them.
        batch = {mid: plan.rows(config.rows_per_update) for mid, plan in step.plans.items()}
        epochs = config.num_epochs or 1
        # Learners with rows of their own hold a part of the batch.
        held = {mid: ring.width(rows) if ring.meeting else rows for mid, rows in batch.items()}
        self._shapes = {
            "full": Shapes(
                minibatch=self._minibatch,
                capacity={mid: max(1, math.ceil(held[mid] / m)) * m for mid, m in self._minibatch.items()},
                steps=max(max(1, math.ceil(batch[mid] / m)) for mid, m in minibatch.items()) * epochs,
            )
        }
        self._largest = dict(minibatch)
        if not mask_safe and ring.size == 1:
            # The last minibatch of the usual batch, at its true size, through an executable of its own.
            left = {mid: batch[mid] % m for mid, m in self._minibatch.items()}
            if all(left.values()):
                self._shapes["short"] = Shapes(minibatch=left, capacity=left, steps=1)
        self._buffers: dict[str, np.ndarray] = {}
        self.compile_seconds = 0.0

    # ------------------------------------------------------------------ choosing an executable

    @property
    def compiled(self) -> bool:
        """Whether full minibatches run compiled now."""
        return bool(self._compiled)

    def choose(self, lifetime_steps: int) -> None:
        """Compile if it is time to; depends on the number of steps alone, so resuming makes the same choice.

        Raises:
            CompileError: ``compile=True`` and the step cannot be traced.
        """
        config = self._learner.config
        if self.compiled or self._failed or config.compile is False or config.debug:
            return
        if self._value_reads and not config.compile:
            self._give_up(self._value_reads[0])
            return
        after = 0 if config.compile else self._learner.backend.compile_after(config)
        if after is None or lifetime_steps < after:
            return
        began = time.perf_counter()
        carry = self._learner._carry
        try:
            compiled = {}
            for kind, shapes in self._shapes.items():
                plans = shapes.dummy_plans()
                known: _Known = ({mid: plan.rows for mid, plan in plans.items()}, self._blank_statistics(shapes.steps))
                inputs = self._static_inputs(kind, self._dummy(shapes.capacity), plans, plans, known, 0)
                compiled[kind] = self._make_loop((self._start(carry), inputs))
            self._compiled = compiled
        except CompileError:
            if config.compile:
                raise
            self._failed = True
        except Exception as error:
            reason = _where(error)
            if config.compile:
                raise CompileError(
                    f"compile=True, but the training step cannot be traced: {reason}. Remove what depends on values "
                    "(a Python `if` on an array, .item(), print) or use compile=None to run it eagerly"
                ) from error
            self._give_up(reason)
        self.compile_seconds = time.perf_counter() - began

    def make_room_for_shares(self, whole: Mapping[str, MinibatchPlan]) -> None:
        """Where learners' shares of a minibatch are uneven: make the largest possible, which needs a new executable.

        Every learner sees the same plans and does the same.
        """
        if not self.mask_safe:
            return  # those steps run at their true size
        widths = dict(self._minibatch)
        for mid, plan in whole.items():
            most = int(self._ring.extent(plan)[1].max(initial=0))
            if most > widths[mid]:
                # With room to spare: shares that differ a little from update to update do not compile every time.
                widths[mid] = min(most + most // 8, max(most, self._largest[mid]))
        if widths != self._minibatch:
            self._minibatch = widths
            full = self._shapes["full"]
            capacity = {mid: math.ceil(full.capacity[mid] / m) * m for mid, m in widths.items()}
            self._shapes["full"] = Shapes(minibatch=widths, capacity=capacity, steps=full.steps)
            self._compiled, self._buffers = {}, {}

    def _make_loop(self, example: tuple[dict[str, Any], dict[str, Any]]) -> Any:
        learner, ring = self._learner, self._ring
        if ring.size == 1:
            body = functools.partial(self._step.body, masked=self.mask_safe)
            return learner.backend.make_loop(body, example=example, config=learner.config)
        gradient = functools.partial(self._split.gradient, masked=self.mask_safe)
        return learner.backend.make_split_loop(
            gradient, self._split.apply, ring.reduce, example=example, config=learner.config
        )

    def _give_up(self, reason: str) -> None:
        self._failed = True
        warnings.warn(
            f"the training step runs uncompiled (compiled: 0): it cannot be traced: {reason}",
            RuntimeWarning,
            stacklevel=3,
        )

    # ------------------------------------------------------------------ running an update

    def run(
        self,
        data: Mapping[str, Mapping[str, np.ndarray]],
        whole: Mapping[str, MinibatchPlan],
        first_step: int,
        most_rows: Mapping[str, int] | None = None,
    ) -> np.ndarray:
        """All steps of the plans, in order; returns the metric sums float64[2, metrics].

        Args:
            data: module id -> column -> [rows, ...]; modules without rows are absent.
            whole: module id -> plan, all of one length; lines without rows for absent modules.
            first_step: lifetime minibatch step of the first line, which keys the noise.
            most_rows: module id -> most rows of data that any learner holds; ``None``: all hold the same.
        """
        plans = {mid: self._ring.share(plan) for mid, plan in whole.items()}
        steps = next(iter(plans.values())).num_steps
        most = most_rows or {mid: len(next(iter(columns.values()))) for mid, columns in data.items()}
        counts = {mid: self._counts(mid, data, plans[mid], whole[mid]) for mid in plans}
        statistics = self._statistics(data, plans, whole)
        totals: np.ndarray | None = None
        start = 0
        self._stopped = np.zeros(max(len(self._step.plans), 1), np.bool_)
        while start < steps:
            stop, kind = self._segment(whole, start, steps, most)
            own, all_ = ({mid: plan.lines(start, stop) for mid, plan in of.items()} for of in (plans, whole))
            known = (
                {mid: lines[start:stop] for mid, lines in counts.items()},
                {key: lines[start:stop] for key, lines in statistics.items()},
            )
            sums = self._run_segment(data, own, all_, known, first_step + start, kind)
            totals = sums if totals is None else totals + sums
            start = stop
        assert totals is not None
        return totals

    def _segment(
        self, whole: Mapping[str, MinibatchPlan], start: int, steps: int, most_rows: Mapping[str, int]
    ) -> tuple[int, str]:
        """The longest run of steps from ``start`` that one executable can take: (stop, "full", "short" or "eager").

        Looks at what all learners do, never at this one's part alone, so that all of them choose the same.
        """
        if not self.compiled:
            return steps, "eager"
        extents = {mid: self._ring.extent(plan.lines(start, steps)) for mid, plan in whole.items()}
        kinds = np.full(steps - start, "eager", "<U5")
        for kind in reversed(self._compiled):
            fits = np.ones(steps - start, bool)
            for mid, (fewest, most) in extents.items():
                width = self._shapes[kind].minibatch[mid]
                fits &= most <= width if self.mask_safe else ((fewest == width) & (most == width)) | (most == 0)
            kinds[fits] = kind
        kind = str(kinds[0])
        others = np.flatnonzero(kinds != kind)
        length = int(others[0]) if others.size else steps - start
        if kind != "eager":
            shapes = self._shapes[kind]
            length = min(length, shapes.steps)
            for mid, rows in most_rows.items():
                if rows > shapes.capacity[mid]:
                    length = min(length, max(1, shapes.capacity[mid] // shapes.minibatch[mid]))
        return start + length, kind

    def _run_segment(
        self,
        data: Mapping[str, Mapping[str, np.ndarray]],
        plans: Mapping[str, MinibatchPlan],
        whole: Mapping[str, MinibatchPlan],
        known: _Known,
        first_step: int,
        kind: str,
    ) -> np.ndarray:
        learner = self._learner
        steps = next(iter(plans.values())).num_steps
        carry = self._start(learner._carry, self._stopped)
        if kind != "eager":
            inputs = self._static_inputs(kind, data, plans, whole, known, first_step)
            carry = self._compiled[kind](carry, inputs, 0, steps)
        else:
            inputs = self._exact_inputs(data, plans, whole, known, first_step)
            carry = self._eager(carry, inputs, 0, steps)
        host = learner.backend.to_numpy({name: carry.pop(name) for name in ("metrics", "applied", "stopped")})
        learner._carry = carry
        self._stopped = host["stopped"]
        for key, (position, _, _) in self._step.corrections.index.items():
            learner._optimizer_steps[key] += int(host["applied"][position])
        return np.asarray(host["metrics"], np.float64)

    def _start(self, carry: Mapping[str, Any], stopped: np.ndarray | None = None) -> dict[str, Any]:
        """The carry with fresh counters and metric sums."""
        num_optimizers = max(len(self._step.corrections.index), 1)
        num_modules = max(len(self._step.plans), 1)
        num_metrics = len(self._step.metrics or ())
        fresh = {
            "applied": np.zeros(num_optimizers, np.int64),
            "stopped": np.zeros(num_modules, np.bool_) if stopped is None else stopped,
            "metrics": np.zeros((2, num_metrics), self._learner.backend.numpy_float_dtype),
        }
        return {**carry, **self._learner.backend.from_numpy(fresh)}

    # ------------------------------------------------------------------ inputs

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

    def _static_inputs(
        self,
        kind: str,
        data: Mapping[str, Mapping[str, np.ndarray]],
        plans: Mapping[str, MinibatchPlan],
        whole: Mapping[str, MinibatchPlan],
        known: _Known,
        first_step: int,
    ) -> dict[str, Any]:
        """Inputs of the compiled loop, in buffers of capacity size that are reused from update to update."""
        shapes = self._shapes[kind]
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

    def _counts(
        self, mid: str, data: Mapping[str, Mapping[str, np.ndarray]], own: MinibatchPlan, whole: MinibatchPlan
    ) -> np.ndarray:
        """int64[steps]: rows (timesteps) of every whole minibatch that count."""
        meeting = self._ring.meeting
        mask = data.get(mid, {}).get("loss_mask")
        if meeting is None or mid not in data:
            return _counts(whole, mask)
        # Either all learners have a mask or none has.
        return whole.rows if mask is None else meeting.sum(_counts(own, mask)).astype(np.int64)

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

    def _blank_statistics(self, steps: int) -> dict[str, np.ndarray]:
        dtype = self._learner.backend.numpy_float_dtype
        return {f"statistics/{mid}/{column}": np.zeros((steps, 2), dtype) for mid, column in self._step.statistics}

    def _draw_noise(self, buffer: np.ndarray, key: str, whole: MinibatchPlan, first_step: int) -> None:
        """Fill float[steps, rows, *shape]: a row's noise goes by its place in the whole minibatch."""
        bounds = [edge.tolist() for edge in self._ring.bounds(whole)]
        for line, (rows, first, last) in enumerate(zip(whole.rows.tolist(), *bounds, strict=True)):
            drawn = self._learner._draw(key, first_step + line, rows, buffer.shape[2:])
            buffer[line, : last - first] = drawn[first:last]

    def _exact_inputs(
        self,
        data: Mapping[str, Mapping[str, np.ndarray]],
        plans: Mapping[str, MinibatchPlan],
        whole: Mapping[str, MinibatchPlan],
        known: _Known,
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
                columns = self._dummy(dict.fromkeys(plans, 1))[mid]
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

    def _dummy(self, rows: Mapping[str, int]) -> dict[str, dict[str, np.ndarray]]:
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


def _counts(plan: MinibatchPlan, mask: np.ndarray | None) -> np.ndarray:
    """int64[steps]: rows (timesteps) of each step that count."""
    if mask is None:
        return plan.rows
    if not len(mask):  # all the rows are others'
        return np.zeros(len(plan.rows), np.int64)
    weights = mask.reshape(len(mask), -1).sum(axis=1)
    real = np.arange(plan.indices.shape[1]) < plan.rows[:, None]
    counts: np.ndarray = np.ceil((weights[plan.indices] * real).sum(axis=1)).astype(np.int64)
    return counts


def _where(error: BaseException) -> str:
    """``file:line: reason`` of the innermost frame outside the core, the backends and installed libraries, if any."""
    traceback = error.__traceback__
    place = ""
    while traceback is not None:
        filename = traceback.tb_frame.f_code.co_filename
        package = str(traceback.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        if package not in ("learner_core", "learner_core_torch", "learner_core_tf") and "site-packages" not in filename:
            place = f"{filename}:{traceback.tb_lineno}: "
        traceback = traceback.tb_next
    lines = str(error).strip().splitlines()
    return f"{place}{type(error).__name__}: {lines[0] if lines else 'no message'}"
