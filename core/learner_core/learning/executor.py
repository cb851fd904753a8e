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
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend import PythonLoop, PythonSplitLoop
from ..errors import CompileError
from .batch import ColumnSpec
from .plan import MinibatchPlan
from .segment import Segment
from .split import SplitStep
from .step_inputs import Shapes, StepInputs

if TYPE_CHECKING:
    from .learner import Learner
    from .step import UpdateStep

__all__ = ["Executor"]


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
        uncompilable: why this learner's part of the step cannot be compiled at all; "": it may be tried.
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
        uncompilable: str = "",
    ) -> None:
        self._learner = learner
        self._step = step
        self._inputs = StepInputs(learner, step, specs=specs, noise=noise)
        self._ring = ring = learner._ring
        # A step that may not be padded is compiled for even shares alone.
        room = ring.room if mask_safe else ring.width
        #: module id -> rows that a compiled step of this learner has room for.
        self._minibatch = {mid: room(size) for mid, size in minibatch.items()}
        self.mask_safe = mask_safe
        self._split = SplitStep(step)
        self._eager: Any = PythonLoop(step.body)
        if ring.size > 1:
            self._eager = PythonSplitLoop(self._split.gradient, self._split.apply, ring.reduce)
        self._compiled: dict[str, Any] = {}
        self._failed = False
        self._value_reads = list(value_reads)
        self._uncompilable = uncompilable
        config = learner.config
        # A row is a timestep, or a sequence of them.
        batch = {mid: plan.rows(config.rows_per_update) for mid, plan in step.feeds.items()}
        epochs = config.num_epochs or 1
        # Learners with rows of their own hold a part of the batch.
        held = {mid: ring.room(rows) if ring.meeting else rows for mid, rows in batch.items()}
        self._shapes = {
            "full": Shapes(
                minibatch=self._minibatch,
                capacity={mid: max(1, math.ceil(held[mid] / m)) * m for mid, m in self._minibatch.items()},
                steps=max((max(1, math.ceil(batch[mid] / m)) for mid, m in minibatch.items()), default=1) * epochs,
            )
        }
        self._largest = dict(minibatch)
        if not mask_safe and ring.size == 1:
            # The last minibatch of the usual batch, at its true size, through an executable of its own.
            left = {mid: batch[mid] % m for mid, m in self._minibatch.items()}
            if all(left.values()):
                self._shapes["short"] = Shapes(minibatch=left, capacity=left, steps=1)
        self.compile_seconds = 0.0

    def dtype_of(self, spec: ColumnSpec) -> Any:
        """numpy dtype of a column."""
        return self._inputs.dtype_of(spec)

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
        if self.compiled or self._failed or config.compile is False or config.debug or not self._step.plans:
            return
        if self._value_reads and not config.compile:
            self._give_up(self._value_reads[0])
            return
        after = 0 if config.compile else self._learner.backend.compile_after(config)
        if after is None or lifetime_steps < after:
            return
        if self._uncompilable:
            if config.compile:
                raise CompileError(f"compile=True, but {self._uncompilable}; use compile=None or compile=False")
            self._give_up(self._uncompilable)
            return
        began = time.perf_counter()
        carry = self._learner._carry
        try:
            compiled = {}
            for kind, shapes in self._shapes.items():
                inputs = self._inputs.static(self._inputs.dummy(shapes), kind, shapes)
                compiled[kind] = self._make_loop((self._start(carry), inputs))
            self._compiled = compiled
        except CompileError:
            if config.compile:
                raise
            self._failed = True
        except Exception as error:
            reason = _where(error, apart_from=type(self._learner.backend))
            if config.compile:
                raise CompileError(
                    f"compile=True, but the training step cannot be traced: {reason}. Remove what depends on values "
                    "(a Python `if` on an array, .item(), print) or use compile=None to run it eagerly"
                ) from error
            self._give_up(reason)
        self.compile_seconds = time.perf_counter() - began

    def make_room_for_shares(self, whole: Mapping[str, MinibatchPlan]) -> None:
        """Where learners' shares of a minibatch are too uneven for the executable: make it anew, wider.

        Every learner sees the same plans and does the same. A share is at most a whole minibatch, and widths double,
        those of all modules at once, so that n learners do this log2(n) times at most, whatever rows come.
        """
        if not self.mask_safe:
            return  # those steps run at their true size
        most = {mid: int(self._ring.extent(plan)[1].max(initial=0)) for mid, plan in whole.items()}
        widths = self._minibatch
        while any(most[mid] > width for mid, width in widths.items()):
            widths = {mid: min(2 * width, self._largest[mid]) for mid, width in widths.items()}
        if widths != self._minibatch:
            self._minibatch = widths
            full = self._shapes["full"]
            capacity = {mid: math.ceil(full.capacity[mid] / m) * m for mid, m in widths.items()}
            self._shapes["full"] = Shapes(minibatch=widths, capacity=capacity, steps=full.steps)
            self._compiled = {}
            self._inputs.forget()

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
        updated: Mapping[str, bool] | None = None,
    ) -> np.ndarray:
        """All steps of the plans, in order; returns the metric sums float64[2, metrics].

        Args:
            data: module id -> column -> [rows, ...]; modules without rows are absent.
            whole: module id -> plan, all of one length; lines without rows for absent modules.
            first_step: lifetime minibatch step of the first line, which keys the noise.
            most_rows: module id -> most rows of data that any learner holds; ``None``: all hold the same.
            updated: as in ``Segment``.
        """
        update = self._inputs.segment(data, whole, first_step, updated or {})
        most = most_rows or {mid: len(next(iter(columns.values()))) for mid, columns in data.items()}
        totals: np.ndarray | None = None
        start = 0
        self._stopped = np.zeros(max(len(self._step.plans), 1), np.bool_)
        while start < update.num_steps:
            stop, kind = self._reach(whole, start, update.num_steps, most)
            sums = self._run_segment(update.lines(start, stop), kind)
            totals = sums if totals is None else totals + sums
            start = stop
        assert totals is not None
        return totals

    def _reach(
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

    def _run_segment(self, segment: Segment, kind: str) -> np.ndarray:
        learner = self._learner
        carry = self._start(learner._carry, self._stopped)
        if kind != "eager":
            inputs = self._inputs.static(segment, kind, self._shapes[kind])
            carry = self._compiled[kind](carry, inputs, 0, segment.num_steps)
        else:
            carry = self._eager(carry, self._inputs.exact(segment), 0, segment.num_steps)
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


def _where(error: BaseException, *, apart_from: type) -> str:
    """``file:line: reason`` of the innermost frame outside the core, that class's package and installed libraries."""
    ours = ("learner_core", apart_from.__module__.partition(".")[0])
    traceback = error.__traceback__
    place = ""
    while traceback is not None:
        filename = traceback.tb_frame.f_code.co_filename
        package = str(traceback.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        if package not in ours and "site-packages" not in filename:
            place = f"{filename}:{traceback.tb_lineno}: "
        traceback = traceback.tb_next
    lines = str(error).strip().splitlines()
    return f"{place}{type(error).__name__}: {lines[0] if lines else 'no message'}"
