"""A Learner's state as one tree of numpy arrays and plain values, and back.

The tree names every array as its module does, in canonical layout; the flat vectors of the step never leave the
process. A state is checked before (``state_schema``), so that taking it over cannot fail half-way. Arrays are copied
once on their way out and once on their way in, one vector at a time, so that saving and restoring need little more
memory than the state itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..backend import Backend
from ..errors import StateError
from ..state.kinds import LEARNER, WEIGHTS, refuse_other_kinds
from ..state.schema import Record, refuse
from ..xp import Array
from .arrays import ModuleArrays
from .blueprint import ModulePlan
from .parameters import FlatLayout
from .state_fitting import Skipped, fit_state
from .state_schema import MODULE_PARTS, learner_schema, modules_schema, weights_schema
from .step.hooks import LearnerHooks
from .train_state import COUNTER

__all__ = [
    "check_state",
    "check_weights",
    "fitted_state",
    "get_state",
    "get_weights",
    "restore_shared",
    "set_state",
    "set_weights",
]

#: Where an array is put, and what makes it when its turn comes.
_Entry = tuple[Callable[[Array | None], None], Callable[[], np.ndarray]]


def get_state(learner: LearnerHooks, *, copy: bool = True) -> dict[str, Any]:
    """See ``Learner.get_state``; ``copy=False``: arrays may lie in the learner's memory, to be read at once."""
    state, backend = learner.train_state, learner.backend
    read = backend.to_numpy if copy else backend.view_numpy
    params: dict[str, Any] = {}
    targets: dict[str, Any] = {}
    buffers: dict[str, Any] = {}
    optimizers: dict[str, Any] = {}
    variables: dict[str, Any] = {}
    for mid, plan in learner.blueprint.plans.items():
        host = ModuleArrays.of_tree(read(state.arrays[mid].tree()))
        named = _named(plan, host)
        optimizers[mid] = {
            name: {
                "kind": optimizer.spec.kind,
                "step": state.optimizer_steps[mid, name],
                "slots": {slot: optimizer.layout.to_host(host.slots[name][slot]) for slot in optimizer.spec.slot_names},
            }
            for name, optimizer in plan.optimizers.items()
        }
        params[mid] = {name: value for name, value in named.items() if name not in plan.trained_variables}
        variables[mid] = {**{name: named[name] for name in plan.trained_variables}, **state.host_variables[mid]}
        targets[mid] = {} if host.targets is None else plan.targets.to_host(host.targets)
        buffers[mid] = host.buffers
    return {
        "schema": learner.state_version,
        "rl_module": params,
        "targets": targets,
        "buffers": buffers,
        "variables": variables,
        "optimizer": optimizers,
        "timesteps": dict(state.timesteps),
        "counters": {"num_updates": state.num_updates, "num_minibatch_steps": state.num_steps},
        "noise": {"seed": state.seed},
    }


def _named(plan: ModulePlan, host: ModuleArrays) -> dict[str, np.ndarray]:
    """name -> parameter, trained variables among them."""
    named: dict[str, np.ndarray] = {}
    for name, optimizer in plan.optimizers.items():
        named.update(optimizer.layout.to_host(host.params[name]))
    if host.frozen is not None:
        named.update(plan.frozen.to_host(host.frozen))
    return named


def get_weights(learner: LearnerHooks) -> dict[str, dict[str, np.ndarray]]:
    """See ``Learner.get_module_state``."""
    out: dict[str, dict[str, np.ndarray]] = {}
    for mid, plan in learner.blueprint.plans.items():
        arrays = learner.train_state.arrays[mid]
        weights = ModuleArrays(arrays.params, frozen=arrays.frozen, buffers=arrays.buffers)
        host = ModuleArrays.of_tree(learner.backend.to_numpy(weights.tree()))
        out[mid] = {n: value for n, value in _named(plan, host).items() if n not in plan.trained_variables}
        # A network answers by its buffers as much as by its parameters.
        out[mid].update(host.buffers)
    return out


def fitted_state(
    learner: LearnerHooks, state: Mapping[str, Any], own: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Skipped]]:
    """What of a state fits, completed by the learner's own; and what does not.

    Raises:
        StateError: no state of a learner at all, or one of another schema.
    """
    refuse_other_kinds(state, LEARNER)
    schema = learner_schema(learner)
    if not isinstance(state, Mapping):
        refuse("", schema.expected, type(state).__name__)
    if not any(name in schema.fields for name in state):
        raise StateError(f"nothing in it is of {schema.what}: it has none of {', '.join(schema.fields)}")
    if "schema" in state:
        schema.fields["schema"].check(state["schema"], "schema")
    return fit_state(own, state, schema)


def check_state(learner: LearnerHooks, state: Mapping[str, Any], modules: Collection[str] | None = None) -> None:
    """See ``Learner.check_state``."""
    refuse_other_kinds(state, LEARNER)
    learner_schema(learner, modules).check(state, "")


def set_state(learner: LearnerHooks, state: Mapping[str, Any]) -> None:
    """See ``Learner.set_state``; the state has been checked."""
    _take_over_modules(learner, state, list(learner.blueprint.plans))
    own, counters = learner.train_state, state["counters"]
    own.num_updates, own.num_steps = int(counters["num_updates"]), int(counters["num_minibatch_steps"])
    own.seed = int(state["noise"]["seed"])
    own.timesteps = {COUNTER: 0, **{name: int(value) for name, value in state["timesteps"].items()}}


def check_weights(learner: LearnerHooks, weights: Mapping[str, Any]) -> None:
    """Would ``set_weights`` take these? Changes nothing.

    Raises:
        StateError: it would not; says the path.
    """
    refuse_other_kinds(weights, WEIGHTS)
    if isinstance(weights, Mapping) and not weights:
        refuse("rl_module", "the weights of one module at least", "{}: nothing would be set")
    weights_schema(learner, weights).check(weights, "rl_module")


def set_weights(learner: LearnerHooks, weights: Mapping[str, Any]) -> None:
    """See ``Learner.set_module_state``."""
    check_weights(learner, weights)
    entries: list[_Entry] = []
    state, backend = learner.train_state, learner.backend
    state.arrays = {mid: arrays.copy() for mid, arrays in state.arrays.items()}
    for mid, given in weights.items():
        plan, arrays = learner.blueprint.plans[mid], state.arrays[mid]
        named = {name: np.asarray(value) for name, value in given.items() if name not in plan.buffers}
        if plan.trained_variables:
            held = ModuleArrays(arrays.params, frozen=arrays.frozen).tree()
            known = _named(plan, ModuleArrays.of_tree(backend.to_numpy(held)))
            named.update({name: known[name] for name in plan.trained_variables})
        entries += _params(backend, plan, arrays, named)
        # Buffers are there in what get_weights gives, and not in a state's "rl_module".
        entries += [_buffer(backend, arrays, name, given[name]) for name in plan.buffers if name in given]
    _take_over(backend, entries)


def restore_shared(learner: LearnerHooks, state: Mapping[str, Any]) -> None:
    """After a rebuild: give every module that was there before its old state, and the counters."""
    shared = [mid for mid in learner.blueprint.plans if mid in state["rl_module"]]
    # A changed setting may bring a host variable (use_kl_loss: kl_coeff), which starts, or take one away.
    kept: dict[str, dict[str, Any]] = {}
    for mid in shared:
        own, saved = learner.blueprint.plans[mid].trained_variables, state["variables"][mid]
        fresh = learner.train_state.host_variables[mid]
        kept[mid] = {name: value for name, value in saved.items() if name in own}
        kept[mid].update({name: saved.get(name, value) for name, value in fresh.items()})
    parts = {part: {mid: state[part][mid] for mid in shared} for part in MODULE_PARTS} | {"variables": kept}
    Record(modules_schema(learner, shared)).check(parts, "")
    _take_over_modules(learner, parts, shared)


def _take_over_modules(learner: LearnerHooks, state: Mapping[str, Any], module_ids: list[str]) -> None:
    """Give these modules what the parts of a state, which have been checked, say of them."""
    entries: list[_Entry] = []
    own, backend = learner.train_state, learner.backend
    own.arrays = {mid: arrays.copy() for mid, arrays in own.arrays.items()}
    for mid in module_ids:
        plan, arrays = learner.blueprint.plans[mid], own.arrays[mid]
        variables = state["variables"][mid]
        both = {**state["rl_module"][mid], **{name: variables[name] for name in plan.trained_variables}}
        entries += _params(backend, plan, arrays, both)
        if plan.targets.names:
            entries.append((partial(setattr, arrays, "targets"), _vector(backend, plan.targets, state["targets"][mid])))
        entries += [_buffer(backend, arrays, name, value) for name, value in state["buffers"][mid].items()]
        for name, optimizer in plan.optimizers.items():
            slots = state["optimizer"][mid][name]["slots"]
            for slot in optimizer.spec.slot_names:
                make = _vector(backend, optimizer.layout, slots[slot])
                entries.append((partial(arrays.slots[name].__setitem__, slot), make))
    _take_over(backend, entries)
    for mid in module_ids:
        plan = learner.blueprint.plans[mid]
        for name in plan.optimizers:
            own.optimizer_steps[mid, name] = int(state["optimizer"][mid][name]["step"])
        own.host_variables[mid] = {name: float(state["variables"][mid][name]) for name in plan.host_variables}


def _take_over(backend: Backend, entries: Sequence[_Entry]) -> None:
    """Replace arrays one by one, letting go of each before its successor is made."""
    with backend.recording():
        for put, make in entries:
            put(None)
            put(backend.adopt_numpy(make()))


def _params(backend: Backend, plan: ModulePlan, arrays: ModuleArrays, named: Mapping[str, Any]) -> list[_Entry]:
    """Weights and trained variables, which share the optimizers' vectors."""
    entries: list[_Entry] = [
        (partial(arrays.params.__setitem__, name), _vector(backend, optimizer.layout, named))
        for name, optimizer in plan.optimizers.items()
    ]
    if plan.frozen.names:
        entries.append((partial(setattr, arrays, "frozen"), _vector(backend, plan.frozen, named)))
    return entries


def _vector(backend: Backend, layout: FlatLayout, arrays: Mapping[str, Any]) -> Callable[[], np.ndarray]:
    """Makes the flat vector of named arrays."""
    named = {name: np.asarray(arrays[name]) for name in layout.names}
    return partial(layout.from_host, named, backend.numpy_float_dtype)


def _buffer(backend: Backend, arrays: ModuleArrays, name: str, value: Any) -> _Entry:
    """``value`` as the buffer of that name."""
    dtype = backend.view_numpy({"x": arrays.buffers[name]})["x"].dtype
    return partial(arrays.buffers.__setitem__, name), partial(np.array, value, dtype, order="C")
