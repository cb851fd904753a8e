"""A Learner's state as one tree of numpy arrays and plain values, and back.

The tree names every array as its module does, in canonical layout; the flat vectors of the step never leave the
process. A state is checked before (``state_schema``), so that taking it over cannot fail half-way. Arrays are copied
once on their way out and once on their way in, one vector at a time, so that saving and restoring need little more
memory than the state itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import StateError
from ..state.kinds import LEARNER, WEIGHTS, refuse_other_kinds
from ..state.schema import Record, refuse
from .parameters import FlatLayout
from .state_fitting import Skipped, fit_state
from .state_schema import MODULE_PARTS, learner_schema, modules_schema, weights_schema

if TYPE_CHECKING:
    from .learner import Learner

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

#: Entries of the carry, checked; each is made when its turn comes.
_Makers = dict[str, Callable[[], np.ndarray]]


def get_state(learner: Learner, *, copy: bool = True) -> dict[str, Any]:
    """See ``Learner.get_state``; ``copy=False``: arrays may lie in the learner's memory, to be read at once."""
    host = learner.backend.to_numpy(learner._carry) if copy else learner.backend.view_numpy(learner._carry)
    params: dict[str, Any] = {}
    targets: dict[str, Any] = {}
    buffers: dict[str, Any] = {}
    optimizers: dict[str, Any] = {}
    variables: dict[str, Any] = {}
    for mid, plan in learner._build.plans.items():
        named: dict[str, np.ndarray] = {}
        optimizers[mid] = {}
        for name, optimizer in plan.optimizers.items():
            named.update(optimizer.layout.to_host(host[f"params/{mid}/{name}"]))
            optimizers[mid][name] = {
                "kind": optimizer.spec.kind,
                "step": learner._optimizer_steps[mid, name],
                "slots": {
                    slot: optimizer.layout.to_host(host[f"slots/{mid}/{name}/{slot}"])
                    for slot in optimizer.spec.slot_names
                },
            }
        if plan.frozen.names:
            named.update(plan.frozen.to_host(host[f"frozen/{mid}"]))
        own = learner._build.trainable_variables[mid]
        params[mid] = {name: value for name, value in named.items() if name not in own}
        variables[mid] = {**{name: named[name] for name in own}, **learner._host_variables[mid]}
        targets[mid] = plan.targets.to_host(host[f"targets/{mid}"]) if plan.targets.names else {}
        buffers[mid] = {name: host[f"buffers/{mid}/{name}"] for name in plan.buffers}
    return {
        "schema": learner.state_version,
        "rl_module": params,
        "targets": targets,
        "buffers": buffers,
        "variables": variables,
        "optimizer": optimizers,
        "timesteps": dict(learner.timesteps),
        "counters": {"num_updates": learner._num_updates, "num_minibatch_steps": learner._num_steps},
        "noise": {"seed": learner._seed},
    }


def get_weights(learner: Learner) -> dict[str, dict[str, np.ndarray]]:
    """See ``Learner.get_module_state``."""
    parts = ("params/", "frozen/", "buffers/")
    weights = {key: value for key, value in learner._carry.items() if key.startswith(parts)}
    host = learner.backend.to_numpy(weights)
    out: dict[str, dict[str, np.ndarray]] = {}
    for mid, plan in learner._build.plans.items():
        named: dict[str, np.ndarray] = {}
        for name, optimizer in plan.optimizers.items():
            named.update(optimizer.layout.to_host(host[f"params/{mid}/{name}"]))
        if plan.frozen.names:
            named.update(plan.frozen.to_host(host[f"frozen/{mid}"]))
        own = learner._build.trainable_variables[mid]
        out[mid] = {name: value for name, value in named.items() if name not in own}
        # A network answers by its buffers as much as by its parameters.
        out[mid].update({name: host[f"buffers/{mid}/{name}"] for name in plan.buffers})
    return out


def fitted_state(learner: Learner, state: Mapping[str, Any]) -> tuple[dict[str, Any], list[Skipped]]:
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
    return fit_state(learner.get_state(), state, schema)


def check_state(learner: Learner, state: Mapping[str, Any], modules: Collection[str] | None = None) -> None:
    """See ``Learner.check_state``."""
    refuse_other_kinds(state, LEARNER)
    learner_schema(learner, modules).check(state, "")


def set_state(learner: Learner, state: Mapping[str, Any]) -> None:
    """See ``Learner.set_state``; the state has been checked."""
    _take_over_modules(learner, state, list(learner._build.plans))
    counters = state["counters"]
    learner._num_updates, learner._num_steps = int(counters["num_updates"]), int(counters["num_minibatch_steps"])
    learner._seed = int(state["noise"]["seed"])
    learner.timesteps = {
        "num_env_steps_sampled_lifetime": 0,
        **{name: int(value) for name, value in state["timesteps"].items()},
    }


def check_weights(learner: Learner, weights: Mapping[str, Any]) -> None:
    """Would ``set_weights`` take these? Changes nothing.

    Raises:
        StateError: it would not; says the path.
    """
    refuse_other_kinds(weights, WEIGHTS)
    if isinstance(weights, Mapping) and not weights:
        refuse("rl_module", "the weights of one module at least", "{}: nothing would be set")
    weights_schema(learner, weights).check(weights, "rl_module")


def set_weights(learner: Learner, weights: Mapping[str, Any]) -> None:
    """See ``Learner.set_module_state``."""
    check_weights(learner, weights)
    host = learner.backend.to_numpy(learner._carry)
    carry: _Makers = {}
    for mid, arrays in weights.items():
        plan = learner._build.plans[mid]
        own = learner._build.trainable_variables[mid]
        given = {name: np.asarray(value) for name, value in arrays.items() if name not in plan.buffers}
        for key, layout in _layouts(plan, mid).items():
            given.update({name: value for name, value in layout.to_host(host[key]).items() if name in own})
        carry.update(_params_from(learner, mid, given))
        # Buffers are there in what get_weights gives, and not in a state's "rl_module".
        for name in [name for name in plan.buffers if name in arrays]:
            carry[f"buffers/{mid}/{name}"] = _buffer_from(learner, mid, name, arrays[name])
    _take_over(learner, carry)


def restore_shared(learner: Learner, state: Mapping[str, Any]) -> None:
    """After a rebuild: give every module that was there before its old state, and the counters."""
    shared = [mid for mid in learner._build.plans if mid in state["rl_module"]]
    # A changed setting may bring a host variable (use_kl_loss: kl_coeff), which starts, or take one away.
    kept: dict[str, dict[str, Any]] = {}
    for mid in shared:
        own, saved = learner._build.trainable_variables[mid], state["variables"][mid]
        fresh = learner._host_variables[mid]
        kept[mid] = {name: value for name, value in saved.items() if name in own}
        kept[mid].update({name: saved.get(name, value) for name, value in fresh.items()})
    parts = {part: {mid: state[part][mid] for mid in shared} for part in MODULE_PARTS} | {"variables": kept}
    Record(modules_schema(learner, shared)).check(parts, "")
    _take_over_modules(learner, parts, shared)


def _take_over_modules(learner: Learner, state: Mapping[str, Any], module_ids: list[str]) -> None:
    """Give these modules what the parts of a state, which have been checked, say of them."""
    carry: _Makers = {}
    for mid in module_ids:
        plan = learner._build.plans[mid]
        variables = state["variables"][mid]
        both = {**state["rl_module"][mid], **{n: variables[n] for n in learner._build.trainable_variables[mid]}}
        carry.update(_params_from(learner, mid, both))
        if plan.targets.names:
            carry[f"targets/{mid}"] = _vector_from(learner, plan.targets, state["targets"][mid])
        for name, value in state["buffers"][mid].items():
            carry[f"buffers/{mid}/{name}"] = _buffer_from(learner, mid, name, value)
        for name, optimizer in plan.optimizers.items():
            slots = state["optimizer"][mid][name]["slots"]
            for slot in optimizer.spec.slot_names:
                carry[f"slots/{mid}/{name}/{slot}"] = _vector_from(learner, optimizer.layout, slots[slot])
    _take_over(learner, carry)
    for mid in module_ids:
        plan = learner._build.plans[mid]
        for name in plan.optimizers:
            learner._optimizer_steps[mid, name] = int(state["optimizer"][mid][name]["step"])
        learner._host_variables[mid] = {name: float(state["variables"][mid][name]) for name in plan.host_variables}


def _take_over(learner: Learner, carry: _Makers) -> None:
    """Replace entries of the carry one by one, letting go of each before its successor is made."""
    learner._carry = dict(learner._carry)
    with learner.backend.recording():
        for key, make in carry.items():
            learner._carry[key] = None
            learner._carry[key] = learner.backend.adopt_numpy(make())


def _vector_from(learner: Learner, layout: FlatLayout, arrays: Mapping[str, Any]) -> Callable[[], np.ndarray]:
    """Makes the flat vector of named arrays."""
    dtype = learner.backend.numpy_float_dtype
    named = {name: np.asarray(arrays[name]) for name in layout.names}
    return lambda: layout.from_host(named, dtype)


def _buffer_from(learner: Learner, mid: str, name: str, value: Any) -> Callable[[], np.ndarray]:
    """Makes ``value`` the buffer of that name."""
    dtype = learner.backend.view_numpy({"x": learner._carry[f"buffers/{mid}/{name}"]})["x"].dtype
    return lambda: np.array(value, dtype, order="C")


def _params_from(learner: Learner, mid: str, arrays: Mapping[str, Any]) -> _Makers:
    """Carry entries of weights and trainable variables, which share the optimizers' vectors."""
    layouts = _layouts(learner._build.plans[mid], mid)
    return {key: _vector_from(learner, layout, arrays) for key, layout in layouts.items()}


def _layouts(plan: Any, mid: str) -> dict[str, FlatLayout]:
    """Key of the carry -> layout of the parameters that stand there."""
    layouts = {f"params/{mid}/{name}": optimizer.layout for name, optimizer in plan.optimizers.items()}
    return {**layouts, f"frozen/{mid}": plan.frozen} if plan.frozen.names else layouts
