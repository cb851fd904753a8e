"""Finds out at build what a Learner's hooks do: by running its step on a dummy batch.

Declaring columns, noise and metrics by hand would be one more list to keep right; running the step once knows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..action_parts import has_parts, nested, row_of
from ..errors import BatchError, did_you_mean
from .batch import ColumnSpec
from .parameters import aligned_copy
from .step import UpdateStep

if TYPE_CHECKING:
    from ..backend import Backend
    from .learner import Learner

__all__ = ["Found", "dummy_inputs", "explore_step", "pads_safely"]

_ROWS = 8
_REAL_ROWS = 5


@dataclass
class Found:
    """What one step used.

    Attributes:
        columns: module id -> columns read, ``loss_mask`` always among them.
        noise: "module/name" -> shape of one row.
        value_reads: ``file:line: reason`` of hooks that look at the value of an array, as far as the backend tells.
    """

    columns: dict[str, tuple[str, ...]]
    noise: dict[str, tuple[int, ...]] = field(default_factory=dict)
    value_reads: list[str] = field(default_factory=list)


class _NoColumnError(KeyError):
    """A hook reads a column that the batch does not have."""


class _Recorder(dict[str, Any]):
    """A batch that notes which columns are read."""

    def __init__(self, columns: Mapping[str, Any], seen: set[str]) -> None:
        super().__init__(columns)
        self._seen = seen

    def mapped(self, function: Callable[[Any], Any]) -> _Recorder:
        """The same columns through a function; what is read of them is noted here."""
        return _Recorder({key: function(value) for key, value in self.items()}, self._seen)

    def __getitem__(self, key: str) -> Any:
        if key not in self:
            raise _NoColumnError(key)
        self._seen.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        if key not in self:
            return default
        return self[key]


def explore_step(
    learner: Learner,
    step: UpdateStep,
    declared: Mapping[str, Mapping[str, ColumnSpec]],
    standard: Mapping[str, Mapping[str, ColumnSpec]],
) -> Found:
    """Run the step once on every column there may be, then on those it read.

    Args:
        learner: whose hooks run; its state does not change.
        step: the step; its ``metrics`` and its plans' ``columns`` are filled in.
        declared: module id -> columns that may be read.
        standard: module id -> columns that are read only if the step reads them; others declared always are.

    Raises:
        BatchError: the step reads a column that is neither standard nor declared.
    """
    seen: dict[str, set[str]] = {mid: set() for mid in step.feeds}
    learner._wrap_batch = lambda mid, batch: _Recorder(batch, seen[mid])
    learner._noise_requests = {}
    try:
        for mid, plan in step.feeds.items():
            # The loss mask is only there when a batch has it, or sequences; the action mask where actions have one.
            absent = {"loss_mask"} if plan.sequences is None else set()
            absent |= set() if plan.masked else {"action_mask"}
            plan.columns = tuple(name for name in declared[mid] if name not in absent)
        with _by_name(learner, step, learner.backend), learner.backend.value_reads() as value_reads:
            try:
                _run(learner, step, declared)
            except _NoColumnError as error:
                # Whoever insists on the action mask makes it a column that every batch must have.
                for mid, plan in step.feeds.items():
                    wanted = {"action_mask"} & {error.args[0]} & set(declared[mid])
                    plan.columns += tuple(wanted - set(plan.columns))
                _run(learner, step, declared)
        noise = dict(learner._noise_requests)
    finally:
        del learner._wrap_batch, learner._noise_requests
        learner._wrap_batch = _same
        learner._noise_requests = None
    for mid, plan in step.feeds.items():
        own = {name for name in declared[mid] if name not in standard[mid]}
        read = [name for name in declared[mid] if name.split("/", 1)[0] in seen[mid] or name in own]
        plan.columns = (*(name for name in read if name != "loss_mask"), "loss_mask")
    with _by_name(learner, step, learner.backend):
        _verify(learner, step, declared)
    return Found({mid: plan.columns for mid, plan in step.feeds.items()}, noise, value_reads)


def _verify(learner: Learner, step: UpdateStep, declared: Mapping[str, Mapping[str, ColumnSpec]]) -> None:
    """Run on the columns found; one that was read unseen (out of a copy of the batch) is added."""
    learner._noise_requests = {}
    try:
        while True:
            try:
                _run(learner, step, declared)
                return
            except KeyError as error:
                missing = str(error.args[0]) if error.args else ""
                users = [mid for mid in step.feeds if _leaves(missing, declared[mid])]
                added = False
                for mid in users:
                    plan = step.feeds[mid]
                    new = [name for name in _leaves(missing, declared[mid]) if name not in plan.columns]
                    plan.columns = (*new, *plan.columns)
                    added = added or bool(new)
                if not added:
                    raise
    finally:
        learner._noise_requests = None


def _leaves(column: str, specs: Mapping[str, ColumnSpec]) -> list[str]:
    return [name for name in specs if name == column or name.startswith(f"{column}/")]


def _run(learner: Learner, step: UpdateStep, declared: Mapping[str, Mapping[str, ColumnSpec]]) -> None:
    inputs = dummy_inputs(learner, step, declared, _ROWS)
    try:
        step.body(0, _carry(learner, step), inputs, masked=False, trial=True)
    except _NoColumnError as error:
        name = error.args[0]
        if name in {column.split("/", 1)[0] for specs in declared.values() for column in specs}:
            raise
        standard = {column.split("/", 1)[0] for specs in learner._build.standard.values() for column in specs}
        raise BatchError(
            f"a hook of {type(learner).__name__} reads {name!r}, which is no standard column; "
            f"override batch_spec() to declare it.{did_you_mean(name, standard)}",
            column=str(name),
        ) from error


def _carry(learner: Learner, step: UpdateStep) -> dict[str, Any]:
    dtype = learner.backend.numpy_float_dtype
    fresh = {
        "applied": np.zeros(max(len(step.corrections.index), 1), np.int64),
        "stopped": np.zeros(max(len(step.plans), 1), np.bool_),
        "metrics": np.zeros((2, len(step.metrics or ())), dtype),
    }
    return {**learner._carry, **learner.backend.from_numpy(fresh)}


def dummy_inputs(
    learner: Learner,
    step: UpdateStep,
    declared: Mapping[str, Mapping[str, ColumnSpec]],
    rows: int,
    real: int | None = None,
) -> dict[str, Any]:
    """Inputs of one step on plausible numbers; ``real`` rows of ``rows`` count."""
    rng = np.random.default_rng(0)
    dtype = learner.backend.numpy_float_dtype
    real = rows if real is None else real
    arrays: dict[str, np.ndarray] = {}
    ints: dict[tuple[str, ...], np.ndarray] = {}
    for mid, plan in step.feeds.items():
        space = learner.module_specs[mid].action_space
        for name in plan.columns:
            spec = declared[mid].get(name) or ColumnSpec(plan.row_shape, "float")
            arrays[f"data/{mid}/{name}"] = _plausible(name, spec, space, rng, rows, dtype)
        arrays[f"idx/{mid}"] = np.where(np.arange(rows) < real, np.arange(rows), 0)[None]
        ints["rows", mid] = np.array([real])
        ints["count", mid] = ints["rows", mid] * (1 if plan.sequences is None else plan.sequences.length)
        ints["step", mid] = np.array([0])
    ints.update({column: np.array([1]) for column in step.table.ints if column[0] == "updated"})
    arrays["floats"] = step.table.float_table(1, learner._float_values(), dtype)
    arrays["ints"] = step.table.int_table(1, ints)
    arrays["corrections"] = step.corrections.table(2, dict.fromkeys(step.corrections.index, 0), dtype)
    return dict(learner.backend.from_numpy(arrays))


def _plausible(name: str, spec: ColumnSpec, space: Any, rng: np.random.Generator, rows: int, dtype: Any) -> np.ndarray:
    shape = (rows, *spec.shape)
    if name in ("loss_mask", "action_mask"):
        return np.ones(shape, dtype if name == "loss_mask" else np.bool_)
    if name == "actions" and has_parts(space):
        first = nested(space, lambda part: np.zeros(part.shape) if part.is_box else getattr(part.space, "start", 0))
        return np.broadcast_to(row_of(space, first).astype(dtype), shape).copy()
    if name == "actions" and spec.dtype != "float":
        start = getattr(space, "start", 0)
        return np.broadcast_to(np.asarray(start, np.int64), shape).copy()
    if spec.dtype == "float":
        return np.asarray(rng.uniform(-0.5, 0.5, shape), dtype)
    if spec.dtype == "uint8":
        return rng.integers(0, 256, shape).astype(np.uint8)
    return np.zeros(shape, np.dtype(spec.dtype))


def pads_safely(learner: Learner, step: UpdateStep, specs: Mapping[str, Mapping[str, ColumnSpec]]) -> bool:
    """Whether gradients on real rows plus padding equal those on the real rows alone.

    A loss that averages with ``self.mean`` or weighs by ``loss_mask`` passes; one with plain means does not, and its
    short minibatches must run at their true size. Computed in float64, where any mistake shows; in the learner's own
    precision if its modules insist on that. The gradients of large networks are compared a few arrays at a time.
    """
    own: Backend = learner.backend
    wide: Backend = type(own)(device=own.device, precision="float64")
    parts = _parts(step)
    for backend, tolerance in ((wide, 1e-9), (own, 1e-4)):
        # A hook that differentiates by itself may insist on all parameters.
        for some in (parts, None) if len(parts) > 1 else (None,):
            try:
                with _by_name(learner, step, backend):
                    return all(_pads(learner, step, specs, only, tolerance) for only in some or (None,))
            except Exception:
                continue
    return False


#: Bytes of gradients in float64 that are compared at a time, one array at least.
_PART_NBYTES = 1 << 24


def _parts(step: UpdateStep) -> list[dict[str, list[str]]]:
    """The trainable parameters, module id -> names, in parts that are small enough to be held twice."""
    parts: list[dict[str, list[str]]] = []
    room = 0
    for mid, plan in step.plans.items():
        for optimizer in plan.optimizers.values():
            for name, size in zip(optimizer.layout.names, optimizer.layout.sizes, strict=True):
                room -= 8 * size
                if room < 0 or not parts:
                    room = _PART_NBYTES - 8 * size
                    parts.append({other: [] for other in step.plans})
                parts[-1][mid].append(name)
    return parts


@contextlib.contextmanager
def _by_name(learner: Learner, step: UpdateStep, backend: Backend) -> Iterator[None]:
    """The learner on ``backend``, its own but for the precision, with parameters array by array instead of in vectors.

    A backend without views would copy every vector that it splits. The parameters are held once: they are converted,
    and converted back afterwards, which changes no number.
    """
    own, dtypes, carry = learner.backend, (learner.float_dtype, learner.compute_dtype), learner._carry
    try:
        for key, layout in step.layouts.items():
            arrays = layout.to_host(own.view_numpy({key: carry[key]})[key])
            dtype = backend.numpy_float_dtype
            carry[key] = {name: backend.adopt_numpy(aligned_copy(array, dtype)) for name, array in arrays.items()}
            del arrays
        _convert_buffers(carry, own, backend)
        learner.backend = backend
        if backend is not own:
            learner.float_dtype, learner.compute_dtype = backend.float_dtype, None
        yield
    finally:
        learner.backend, (learner.float_dtype, learner.compute_dtype) = own, dtypes
        for key, layout in step.layouts.items():
            if isinstance(carry[key], Mapping):
                carry[key] = own.adopt_numpy(layout.from_host(backend.view_numpy(carry[key]), own.numpy_float_dtype))
        _convert_buffers(carry, backend, own)


def _convert_buffers(carry: dict[str, Any], old: Backend, new: Backend) -> None:
    """Buffers of floats in another precision."""
    for key in [key for key in carry if key.startswith("buffers/")]:
        array = old.to_numpy({key: carry[key]})[key]
        if array.dtype == old.numpy_float_dtype:
            carry.update(new.from_numpy({key: array.astype(new.numpy_float_dtype)}))


def _pads(
    learner: Learner,
    step: UpdateStep,
    specs: Mapping[str, Mapping[str, ColumnSpec]],
    only: Mapping[str, Sequence[str]] | None,
    tolerance: float,
) -> bool:
    """Whether losses, new buffers and the gradients of some parameters are the same with padding and without."""
    padded = learner.backend.to_numpy(_probe(learner, step, specs, None, only))
    exact = learner.backend.view_numpy(_probe(learner, step, specs, dict.fromkeys(step.feeds, _REAL_ROWS), only))
    for key, value in exact.items():
        size = max(1.0, float(value.max(initial=0)), -float(value.min(initial=0)))
        difference = padded.pop(key)
        if difference.dtype.kind != "f":
            difference = difference.astype(np.float64)
        difference -= value
        if not max(difference.max(initial=0.0), -difference.min(initial=0.0)) <= tolerance * size:
            return False
    return True


def _probe(
    learner: Learner,
    step: UpdateStep,
    specs: Mapping[str, Mapping[str, ColumnSpec]],
    sizes: dict[str, int] | None,
    only: Mapping[str, Sequence[str]] | None,
) -> dict[str, Any]:
    """Gradients, losses and buffers by name, the padding told by a mask or (``sizes``) left out."""
    inputs = dummy_inputs(learner, step, specs, _ROWS, _REAL_ROWS)
    learner._noise_requests = {}
    try:
        with step.context() as context:
            floats, ints = step.lines(inputs, 0)
            gradients, losses = step.gradient_half(
                0, _carry(learner, step), inputs, context, floats, ints, sizes is None, sizes, only
            )
            flat = {f"{mid}/{name}": value for mid, arrays in gradients.items() for name, value in arrays.items()}
            flat.update({f"loss/{mid}": value for mid, value in losses.items()})
            for mid, buffers in context.new_buffers.items():
                flat.update({f"buffers/{mid}/{name}": value for name, value in buffers.items()})
            return flat
    finally:
        learner._noise_requests = None


def _same(module_id: str, batch: dict[str, Any]) -> dict[str, Any]:
    return batch
