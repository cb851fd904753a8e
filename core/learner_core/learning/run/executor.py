"""Runs the minibatch steps of an update on the backend, through executables fixed at build.

A compiled loop has static shapes: ``capacity`` rows of data, ``steps`` lines of plan and tables. Whatever batch comes
is fitted into them (padded, or fed in chunks), so nothing is traced again. A step that may not be padded (a loss with
its own plain means) runs at its true size: the usual batch's last one through an executable of its own, any other
uncompiled.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...backend import Backend, Loop
from ...config.algorithm_settings import AlgorithmSettings
from ...errors import CompileError
from ...xp import Array
from ..arrays import Carry, Flat, StepInputs
from ..plan import MinibatchPlan
from ..ranks import Ranks
from ..step.split import SplitStep
from ..step.step import UpdateStep
from ..train_state import TrainState
from .inputs import InputMaker, Segment, Shapes, first_carry

__all__ = ["Executor", "Tried"]


@dataclass(frozen=True)
class Tried:
    """What trying a step out has shown about running it.

    Attributes:
        mask_safe: short minibatches may be padded.
        value_reads: ``file:line: reason`` of what cannot be traced.
        uncompilable: why this learner's part of the step cannot be compiled at all; "": it may be tried.
    """

    mask_safe: bool = True
    value_reads: Sequence[str] = ()
    uncompilable: str = ""


class Executor:
    """Executables of one Learner and the buffers that feed them.

    Args:
        step: its step.
        ranks: its place among others.
        config: its settings; those that may change without a new build are given to every call.
        tried: what is known of the step.
        minibatch: module id -> rows of a full minibatch.

    Attributes:
        tried, minibatch: as above.
    """

    def __init__(
        self, step: UpdateStep, ranks: Ranks, config: AlgorithmSettings, tried: Tried, minibatch: Mapping[str, int]
    ) -> None:
        self._step = step
        self._blueprint = step.blueprint
        self._backend: Backend = step.learner.backend
        self._inputs = InputMaker(self._backend, step.blueprint, ranks)
        self._ranks = ranks
        self.tried = tried
        self.minibatch: dict[str, int] = dict(minibatch)
        # A step that may not be padded is compiled for even shares alone.
        room = ranks.room if tried.mask_safe else ranks.width
        #: module id -> rows that a compiled step of this learner has room for.
        self._widths = {mid: room(size) for mid, size in minibatch.items()}
        self._split = SplitStep(step, ranks)
        self._compiled: dict[str, Loop] = {}
        self._failed = False
        # A row is a timestep, or a sequence of them.
        batch = {mid: plan.rows(config.rows_per_update) for mid, plan in step.blueprint.feeds.items()}
        epochs = config.num_epochs or 1
        # Learners with rows of their own hold a part of the batch.
        held = {mid: ranks.held_rows(rows) for mid, rows in batch.items()}
        self._shapes = {
            "full": Shapes(
                minibatch=self._widths,
                capacity={mid: max(1, math.ceil(held[mid] / m)) * m for mid, m in self._widths.items()},
                steps=max((max(1, math.ceil(batch[mid] / m)) for mid, m in minibatch.items()), default=1) * epochs,
            )
        }
        if not tried.mask_safe and ranks.size == 1:
            # The last minibatch of the usual batch, at its true size, through an executable of its own.
            left = {mid: batch[mid] % m for mid, m in self._widths.items()}
            if all(left.values()):
                self._shapes["short"] = Shapes(minibatch=left, capacity=left, steps=1)

    # ------------------------------------------------------------------ choosing an executable

    @property
    def compiled(self) -> bool:
        """Whether full minibatches run compiled now."""
        return bool(self._compiled)

    def choose(self, config: AlgorithmSettings, state: TrainState) -> None:
        """Compile if it is time to; depends on the number of steps alone, so resuming makes the same choice.

        Args:
            config: the settings now.
            state: the learner's.

        Raises:
            CompileError: ``compile=True`` and the step cannot be traced.
        """
        if self.compiled or self._failed or config.compile is False or config.debug or not self._blueprint.learning:
            return
        tried = self.tried
        if tried.value_reads and not config.compile:
            self._give_up(tried.value_reads[0])
            return
        after = 0 if config.compile else self._backend.compile_after(config)
        if after is None or state.num_steps < after:
            return
        if tried.uncompilable:
            if config.compile:
                raise CompileError(f"compile=True, but {tried.uncompilable}; use compile=None or compile=False")
            self._give_up(tried.uncompilable)
            return
        try:
            compiled = {}
            for kind, shapes in self._shapes.items():
                inputs = self._inputs.static(self._inputs.dummy(shapes), kind, shapes, config, state)
                carry = first_carry(self._backend, self._blueprint, state.arrays)
                compiled[kind] = self._make_loop(carry, inputs, config)
            self._compiled = compiled
        except CompileError:
            if config.compile:
                raise
            self._failed = True
        except Exception as error:
            reason = _where(error, apart_from=type(self._backend))
            if config.compile:
                raise CompileError(
                    f"compile=True, but the training step cannot be traced: {reason}. Remove what depends on values "
                    "(a Python `if` on an array, .item(), print) or use compile=None to run it eagerly"
                ) from error
            self._give_up(reason)

    def make_room_for_shares(self, whole: Mapping[str, MinibatchPlan]) -> None:
        """Where learners' shares of a minibatch are too uneven for the executable: make it anew, wider.

        Every learner sees the same plans and does the same. A share is at most a whole minibatch, and widths double,
        those of all modules at once, so that n learners do this log2(n) times at most, whatever rows come.
        """
        if not (self._ranks.have_own_rows and self.tried.mask_safe):
            return  # shares are even, or those steps run at their true size
        most = {mid: int(self._ranks.extent(plan)[1].max(initial=0)) for mid, plan in whole.items()}
        widths = self._widths
        while any(most[mid] > width for mid, width in widths.items()):
            widths = {mid: min(2 * width, self.minibatch[mid]) for mid, width in widths.items()}
        if widths != self._widths:
            self._widths = widths
            full = self._shapes["full"]
            capacity = {mid: math.ceil(full.capacity[mid] / m) * m for mid, m in widths.items()}
            self._shapes["full"] = Shapes(minibatch=widths, capacity=capacity, steps=full.steps)
            self._compiled = {}
            self._inputs.forget()

    def _make_loop(self, carry: Carry, inputs: StepInputs, config: AlgorithmSettings) -> Loop:
        """A compiled loop over arrays of these shapes. What it takes and gives is flat."""
        example, masked = (carry.flat(), inputs.flat()), self.tried.mask_safe
        carry, inputs = carry.form(), inputs.form()  # the loop outlives the arrays

        def body(s: Array, now: Flat, given: Flat) -> Flat:
            return self._step.body(s, carry.unflat(now), inputs.unflat(given), masked=masked).flat()

        def gradient(s: Array, now: Flat, given: Flat) -> Array:
            return self._split.gradient(s, carry.unflat(now), inputs.unflat(given), masked=masked)

        def apply(s: Array, now: Flat, given: Flat, flat: Array) -> Flat:
            return self._split.apply(s, carry.unflat(now), inputs.unflat(given), flat).flat()

        if self._ranks.size == 1:
            return self._backend.make_loop(body, example=example, config=config)
        return self._backend.make_split_loop(gradient, apply, self._ranks.reduce, example=example, config=config)

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
        config: AlgorithmSettings,
        state: TrainState,
        data: Mapping[str, Mapping[str, np.ndarray]],
        whole: Mapping[str, MinibatchPlan],
        most_rows: Mapping[str, int],
        updated: Mapping[str, bool],
    ) -> dict[str, dict[str, float]]:
        """All steps of the plans, in order.

        Args:
            config: the settings now.
            state: the learner's; arrays and optimizers' steps change.
            data: module id -> column -> [rows, ...]; modules without rows are absent.
            whole: module id -> plan, all of one length; lines without rows for absent modules.
            most_rows: module id -> most rows of data that any learner holds.
            updated: as in ``Segment``.

        Returns:
            {module_id: {metric: mean over rows}}, and what the learner logged of itself under "__all__".
        """
        update = self._inputs.segment(data, whole, state.num_steps, updated)
        total = np.zeros((2, len(self._blueprint.metrics)))
        stopped = np.zeros(max(len(self._blueprint.learning), 1), np.bool_)
        start = 0
        while start < update.num_steps:
            stop, kind = self._reach(whole, start, update.num_steps, most_rows)
            segment = update.lines(start, stop)
            carry = first_carry(self._backend, self._blueprint, state.arrays, stopped)
            if kind == "eager":
                carry = self._run_uncompiled(carry, self._inputs.exact(segment, config, state), segment)
            else:
                inputs = self._inputs.static(segment, kind, self._shapes[kind], config, state)
                carry = carry.unflat(self._compiled[kind](carry.flat(), inputs.flat(), 0, segment.num_steps))
            state.arrays = carry.modules
            counters = {"metrics": carry.metrics, "applied": carry.applied, "stopped": carry.stopped}
            host = self._backend.to_numpy(counters)
            for key, (position, _, _) in self._blueprint.corrections.index.items():
                state.optimizer_steps[key] += int(host["applied"][position])
            total += host["metrics"]
            stopped, start = host["stopped"], stop
        return _reduced(total, self._blueprint.metrics, self._blueprint.plans)

    def _run_uncompiled(self, carry: Carry, inputs: StepInputs, segment: Segment) -> Carry:
        """The steps one after the other from Python, each at its true number of rows."""
        for s in range(segment.num_steps):
            sizes = segment.sizes(s)
            if self._ranks.size == 1:
                carry = self._step.body(s, carry, inputs, masked=False, sizes=sizes)
            else:
                addend = self._split.gradient(s, carry, inputs, masked=False, sizes=sizes)
                carry = self._split.apply(s, carry, inputs, self._ranks.reduce(addend), eager=True)
        return carry

    def _reach(
        self, whole: Mapping[str, MinibatchPlan], start: int, steps: int, most_rows: Mapping[str, int]
    ) -> tuple[int, str]:
        """The longest run of steps from ``start`` that one executable can take: (stop, "full", "short" or "eager").

        Looks at what all learners do, never at this one's part alone, so that all of them choose the same.
        """
        if not self.compiled:
            return steps, "eager"
        extents = {mid: self._ranks.extent(plan.lines(start, steps)) for mid, plan in whole.items()}
        kinds = np.full(steps - start, "eager", "<U5")
        for kind in reversed(self._compiled):
            fits = np.ones(steps - start, bool)
            for mid, (fewest, most) in extents.items():
                width = self._shapes[kind].minibatch[mid]
                fits &= most <= width if self.tried.mask_safe else ((fewest == width) & (most == width)) | (most == 0)
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


#: Metrics that are counts over the update, not means over its rows.
_COUNTERS = frozenset({"num_minibatch_steps", "num_nonfinite_steps"})


def _reduced(
    sums: np.ndarray, names: Iterable[tuple[str, str]], module_ids: Iterable[str]
) -> dict[str, dict[str, float]]:
    """{module_id: {metric: mean over rows}}.

    Args:
        sums: float[2, metrics]: weighted sums and weights.
        names: (module or "__all__", metric) in the order of ``sums``.
        module_ids: every module, so that one without rows still has its (empty) entry.
    """
    results: dict[str, dict[str, float]] = {mid: {} for mid in module_ids}
    results["__all__"] = {}
    for (module_id, name), total, weight in zip(names, sums[0].tolist(), sums[1].tolist(), strict=True):
        if name in _COUNTERS:
            results[module_id][name] = total
        elif weight > 0:
            results[module_id][name] = total / weight
    return results


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
