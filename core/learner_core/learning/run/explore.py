"""Finds out at build what a Learner's hooks do: by running its step on a dummy batch.

docs/decisions/update-step.md says why.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...action_parts import has_parts, nested, row_of
from ...backend import Backend
from ...errors import BatchError, did_you_mean
from ...spaces import AnySpace
from ...xp import Array
from ..arrays import Carry, ModuleArrays, StepInputs
from ..batch import ColumnSpec, column_name
from ..blueprint import Blueprint, ModulePlan
from ..parameters import FlatLayout, aligned_copy
from ..step.hooks import LearnerHooks
from ..step.line import StepLine
from ..step.probe import NoColumnError, Probe
from ..step.step import UpdateStep
from .inputs import first_carry, float_values, noise_rows

__all__ = ["Trial", "explored", "pads_safely"]

_ROWS = 8
_REAL_ROWS = 5

#: module id -> column -> specification.
Specs = Mapping[str, Mapping[str, ColumnSpec]]


@dataclass(frozen=True)
class Trial:
    """A Learner's step on plausible rows; nothing of the learner changes.

    Args:
        learner: whose hooks run.
        blueprint: as far as it is known.
        num_parts: as in ``UpdateStep``.
    """

    learner: LearnerHooks
    blueprint: Blueprint
    num_parts: int = 1

    def step(self, probe: Probe | None = None) -> UpdateStep:
        """The step; ``probe`` notes what its hooks ask for."""
        return UpdateStep(self.learner, self.blueprint, self.num_parts, probe or self.probe())

    def probe(self) -> Probe:
        """One that hands out noise of the learner's seed."""
        return Probe(self.blueprint.feeds, self._noise)

    def carry(self) -> Carry:
        """The learner's arrays with fresh counters."""
        return first_carry(self.learner.backend, self.blueprint, self.learner.train_state.arrays)

    def line(self, inputs: StepInputs, sizes: Mapping[str, int] | None = None) -> StepLine:
        """The step's first line; ``sizes``: true numbers of rows, instead of a mask."""
        xp = self.learner.backend.xp
        return StepLine.of(xp, 0, self.carry(), inputs, masked=sizes is None, sizes=sizes)

    def inputs(self, rows: int, real: int | None = None) -> StepInputs:
        """Inputs of one step on plausible numbers; ``real`` rows of ``rows`` count."""
        learner, blueprint = self.learner, self.blueprint
        rng = np.random.default_rng(0)
        dtype = learner.backend.numpy_float_dtype
        real = rows if real is None else real
        columns: dict[str, dict[str, np.ndarray]] = {}
        indices: dict[str, np.ndarray] = {}
        ints: dict[tuple[str, ...], np.ndarray] = {}
        for mid, plan in blueprint.feeds.items():
            space = learner.module_specs[mid].action_space
            specs = blueprint.fed[mid]
            columns[mid] = {name: _plausible(name, spec, space, rng, rows, dtype) for name, spec in specs.items()}
            indices[mid] = np.where(np.arange(rows) < real, np.arange(rows), 0)[None]
            ints["rows", mid] = np.array([real])
            ints["count", mid] = ints["rows", mid] * (1 if plan.sequences is None else plan.sequences.length)
            ints["step", mid] = np.array([0])
        ints.update({column: np.array([1]) for column in blueprint.table.ints if column[0] == "updated"})
        floats = float_values(blueprint, learner.config, learner.train_state)
        corrections = blueprint.corrections
        made = StepInputs(
            indices=indices,
            columns=columns,
            noise={},
            statistics={},
            floats=blueprint.table.float_table(1, floats, dtype),
            ints=blueprint.table.int_table(1, ints),
            corrections=corrections.table(2, dict.fromkeys(corrections.index, 0), dtype),
        )
        return StepInputs(**learner.backend.from_numpy(made.tree()))

    def _noise(self, module_id: str, name: str, rows: slice, shape: tuple[int, ...]) -> Array:
        backend, seed = self.learner.backend, self.learner.train_state.seed
        drawn = noise_rows(seed, 0, (module_id, name), rows.stop, shape, backend.numpy_float_dtype)
        return backend.from_numpy({"x": drawn[rows]})["x"]


def explored(trial: Trial, declared: Specs) -> tuple[Blueprint, list[str]]:
    """Run the step once on every column there may be, then on those it read.

    Args:
        trial: of a blueprint that does not say yet what a step is fed.
        declared: module id -> columns that may be read. Those that are not standard always are.

    Returns:
        The blueprint with what the hooks ask for, and ``file:line: reason`` of hooks that look at the value of an
        array, as far as the backend tells.

    Raises:
        BatchError: the step reads a column that is neither standard nor declared.
    """
    learner, blueprint = trial.learner, trial.blueprint
    fed: dict[str, dict[str, ColumnSpec]] = {}
    for mid, plan in blueprint.feeds.items():
        # The loss mask is only there when a batch has it, or sequences; the action mask where actions have one.
        absent = {"loss_mask"} if plan.sequences is None else set()
        absent |= set() if plan.masked else {"action_mask"}
        fed[mid] = {name: spec for name, spec in declared[mid].items() if name not in absent}
    probe = trial.probe()
    with _by_name(learner, blueprint, learner.backend), learner.backend.value_reads() as value_reads:
        try:
            _run(trial, fed, declared, probe)
        except NoColumnError as error:
            # Whoever insists on the action mask makes it a column that every batch must have.
            for mid, columns in fed.items():
                wanted = {"action_mask"} & {error.args[0]} & set(declared[mid])
                columns.update({name: declared[mid][name] for name in wanted - set(columns)})
            _run(trial, fed, declared, probe)
    for mid, plan in blueprint.feeds.items():
        own = {name for name in declared[mid] if name not in plan.standard}
        read = [name for name in declared[mid] if column_name(name) in probe.columns[mid] or name in own]
        fed[mid] = {name: declared[mid][name] for name in read if name != "loss_mask"} | {"loss_mask": plan.mask_spec}
    with _by_name(learner, blueprint, learner.backend):
        _verify(trial, fed, declared, probe)
    found = replace(
        blueprint,
        fed=fed,
        metrics=probe.metrics,
        noise=dict(probe.noise),
        statistics=tuple(sorted(probe.statistics)),
        explored=True,
    )
    return found, value_reads


def _verify(trial: Trial, fed: dict[str, dict[str, ColumnSpec]], declared: Specs, probe: Probe) -> None:
    """Run on the columns found; one that was read unseen (out of a copy of the batch) is added."""
    while True:
        try:
            _run(trial, fed, declared, probe)
            return
        except KeyError as error:
            missing = str(error.args[0]) if error.args else ""
            added = False
            for mid, columns in fed.items():
                new = [name for name in _leaves(missing, declared[mid]) if name not in columns]
                fed[mid] = {**{name: declared[mid][name] for name in new}, **columns}
                added = added or bool(new)
            if not added:
                raise


def _leaves(column: str, specs: Mapping[str, ColumnSpec]) -> list[str]:
    return [name for name in specs if name == column or name.startswith(f"{column}/")]


def _run(trial: Trial, fed: Specs, declared: Specs, probe: Probe) -> None:
    """The whole step on these columns."""
    now = replace(trial, blueprint=replace(trial.blueprint, fed=fed))
    try:
        now.step(probe).body(0, now.carry(), now.inputs(_ROWS), masked=False, trial=True)
    except NoColumnError as error:
        name = error.args[0]
        if name in _names(declared.values()):
            raise
        standard = _names(plan.standard for plan in now.blueprint.plans.values())
        raise BatchError(
            f"a hook of {type(trial.learner).__name__} reads {name!r}, which is no standard column; override "
            f"batch_spec() to declare it.{did_you_mean(name, standard)}",
            column=str(name),
        ) from error


def _names(specs: Iterable[Mapping[str, ColumnSpec]]) -> set[str]:
    return {column_name(column) for columns in specs for column in columns}


def _plausible(
    name: str, spec: ColumnSpec, space: AnySpace, rng: np.random.Generator, rows: int, dtype: Any
) -> np.ndarray:
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


def pads_safely(trial: Trial) -> bool:
    """Whether gradients on real rows plus padding equal those on the real rows alone.

    A loss that averages with ``self.mean`` or weighs by ``loss_mask`` passes; one with plain means does not, and its
    short minibatches must run at their true size. Computed in float64, where any mistake shows; in the learner's own
    precision if its modules insist on that. The gradients of large networks are compared a few arrays at a time.
    """
    learner, blueprint = trial.learner, trial.blueprint
    own = learner.backend
    wide = type(own)(device=own.device, precision="float64")
    parts = _parts(blueprint)
    for backend, tolerance in ((wide, 1e-9), (own, 1e-4)):
        # A hook that differentiates by itself may insist on all parameters.
        for some in (parts, None) if len(parts) > 1 else (None,):
            try:
                with _by_name(learner, blueprint, backend):
                    return all(_pads(trial, only, tolerance) for only in some or (None,))
            except Exception:
                continue
    return False


#: Bytes of gradients in float64 that are compared at a time, one array at least.
_PART_NBYTES = 1 << 24


def _parts(blueprint: Blueprint) -> list[dict[str, list[str]]]:
    """The trainable parameters, module id -> names, in parts that are small enough to be held twice."""
    parts: list[dict[str, list[str]]] = []
    room = 0
    for mid, plan in blueprint.learning.items():
        for optimizer in plan.optimizers.values():
            for name, size in zip(optimizer.layout.names, optimizer.layout.sizes, strict=True):
                room -= 8 * size
                if room < 0 or not parts:
                    room = _PART_NBYTES - 8 * size
                    parts.append({other: [] for other in blueprint.learning})
                parts[-1][mid].append(name)
    return parts


@contextlib.contextmanager
def _by_name(learner: LearnerHooks, blueprint: Blueprint, backend: Backend) -> Iterator[None]:
    """The learner on ``backend``, its own but for the precision, with parameters array by array instead of in vectors.

    A backend without views would copy every vector that it splits. The parameters are held once: they are converted,
    and converted back afterwards, which changes no number.
    """
    own, dtypes = learner.backend, (learner.float_dtype, learner.compute_dtype)
    modules = learner.train_state.arrays

    def apart(layout: FlatLayout, vector: Array) -> dict[str, Array]:
        arrays = layout.to_host(own.view_numpy({"x": vector})["x"])
        dtype = backend.numpy_float_dtype
        return {name: backend.adopt_numpy(aligned_copy(array, dtype)) for name, array in arrays.items()}

    def together(layout: FlatLayout, arrays: Array) -> Array:
        if not isinstance(arrays, Mapping):
            return arrays
        return own.adopt_numpy(layout.from_host(backend.view_numpy(arrays), own.numpy_float_dtype))

    try:
        _convert(modules, blueprint.plans, apart)
        _convert_buffers(modules, own, backend)
        learner.backend = backend
        if backend is not own:
            learner.float_dtype, learner.compute_dtype = backend.float_dtype, None
        yield
    finally:
        learner.backend, (learner.float_dtype, learner.compute_dtype) = own, dtypes
        _convert(modules, blueprint.plans, together)
        _convert_buffers(modules, backend, own)


def _convert(
    modules: Mapping[str, ModuleArrays], plans: Mapping[str, ModulePlan], convert: Callable[[FlatLayout, Array], Any]
) -> None:
    """Replace every vector but the slots, one after the other."""
    for mid, arrays in modules.items():
        plan = plans[mid]
        for name, optimizer in plan.optimizers.items():
            arrays.params[name] = convert(optimizer.layout, arrays.params[name])
        if plan.frozen.names:
            arrays.frozen = convert(plan.frozen, arrays.frozen)
        if plan.targets.names:
            arrays.targets = convert(plan.targets, arrays.targets)


def _convert_buffers(modules: Mapping[str, ModuleArrays], old: Backend, new: Backend) -> None:
    """Buffers of floats in another precision."""
    for arrays in modules.values():
        for name, array in old.to_numpy(arrays.buffers).items():
            if array.dtype == old.numpy_float_dtype:
                arrays.buffers.update(new.from_numpy({name: array.astype(new.numpy_float_dtype)}))


def _pads(trial: Trial, only: Mapping[str, Sequence[str]] | None, tolerance: float) -> bool:
    """Whether losses, new buffers and the gradients of some parameters are the same with padding and without."""
    backend = trial.learner.backend
    padded = backend.to_numpy(_computed(trial, None, only))
    exact = backend.view_numpy(_computed(trial, dict.fromkeys(trial.blueprint.feeds, _REAL_ROWS), only))
    for key, value in exact.items():
        size = max(1.0, float(value.max(initial=0)), -float(value.min(initial=0)))
        difference = padded.pop(key)
        if difference.dtype.kind != "f":
            difference = difference.astype(np.float64)
        difference -= value
        if not max(difference.max(initial=0.0), -difference.min(initial=0.0)) <= tolerance * size:
            return False
    return True


def _computed(
    trial: Trial, sizes: dict[str, int] | None, only: Mapping[str, Sequence[str]] | None
) -> dict[tuple[str, ...], Array]:
    """Gradients, losses and buffers, the padding told by a mask or (``sizes``) left out."""
    step = trial.step()
    line = trial.line(trial.inputs(_ROWS, _REAL_ROWS), sizes)
    with step.context() as context:
        gradients, losses = step.gradient_half(line, context, only)
        found: dict[tuple[str, ...], Array] = {
            ("", mid, name): value for mid, arrays in gradients.items() for name, value in arrays.items()
        }
        found.update({("loss", mid): value for mid, value in losses.items()})
        for mid, buffers in context.new_buffers.items():
            found.update({("buffer", mid, name): value for name, value in buffers.items()})
        return found
