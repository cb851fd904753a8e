"""A Learner's state as one tree of numpy arrays and plain values, and back.

The tree names every array as its module does, in canonical layout; the flat vectors of the step never leave the
process. Checking comes first: a state that does not fit raises with its path and changes nothing. Arrays are copied
once on their way out and once on their way in, one vector at a time, so that saving and restoring need little more
memory than the state itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import StateError, did_you_mean
from .parameters import as_numbers, of_shape
from .state_fitting import Skipped, fit_state, non_negative_int, number

if TYPE_CHECKING:
    from .learner import Learner

__all__ = ["STATE_SCHEMA", "fitted_state", "get_state", "get_weights", "restore_shared", "set_state", "set_weights"]

STATE_SCHEMA = 1
#: Entries of the carry, checked; each is made when its turn comes.
_Makers = dict[str, Callable[[], np.ndarray]]
_MODULE_PARTS = ("rl_module", "targets", "buffers", "variables", "optimizer")


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
        "schema": STATE_SCHEMA,
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
        StateError: no tree at all, or one of another schema.
    """
    state = _mapping(state, "")
    _check_schema(state.get("schema", STATE_SCHEMA))
    return fit_state(learner.get_state(), state)


def _check_schema(schema: Any) -> None:
    if schema != STATE_SCHEMA or isinstance(schema, bool):
        raise StateError(f"this version reads schema {STATE_SCHEMA}, got {schema!r}", path="schema")


def set_state(learner: Learner, state: Mapping[str, Any], *, check_only: bool = False) -> None:
    """See ``Learner.set_state`` and ``Learner.check_state``."""
    state = _mapping(state, "")
    _check_schema(state.get("schema"))
    known = (
        "schema",
        "rl_module",
        "targets",
        "buffers",
        "variables",
        "optimizer",
        "timesteps",
        "counters",
        "noise",
        "plugins",
    )
    for key in state:
        if key not in known:
            raise StateError(f"unknown entry.{did_you_mean(key, known)}", path=str(key))
    for key in known:
        if key not in state:
            raise StateError("missing", path=key)
    for part in _MODULE_PARTS:
        _same_keys(_mapping(state[part], part), learner._build.plans, part)
    carry, steps, variables = _modules_from(learner, state, list(learner._build.plans))
    _mapping(state["plugins"], "plugins")
    counters = _mapping(state["counters"], "counters")
    _same_keys(counters, ("num_updates", "num_minibatch_steps"), "counters")
    _same_keys(_mapping(state["noise"], "noise"), ("seed",), "noise")
    num_updates = _count(counters, "num_updates", "counters")
    num_steps = _count(counters, "num_minibatch_steps", "counters")
    seed = _count(_mapping(state["noise"], "noise"), "seed", "noise")
    timesteps = {
        name: _count(state["timesteps"], name, "timesteps") for name in _mapping(state["timesteps"], "timesteps")
    }
    timesteps.setdefault("num_env_steps_sampled_lifetime", 0)
    if check_only:
        return
    # Everything fits: take it over.
    _take_over(learner, carry)
    learner._optimizer_steps.update(steps)
    learner._host_variables.update(variables)
    learner._num_updates, learner._num_steps, learner._seed = num_updates, num_steps, seed
    learner.timesteps = timesteps


def set_weights(learner: Learner, weights: Mapping[str, Any]) -> None:
    """See ``Learner.set_module_state``."""
    weights = _mapping(weights, "rl_module")
    for mid in weights:
        if mid not in learner._build.plans:
            raise StateError(f"unknown module.{did_you_mean(mid, learner._build.plans)}", path=f"rl_module/{mid}")
    host = learner.backend.to_numpy(learner._carry)
    dtype = learner.backend.numpy_float_dtype
    carry: _Makers = {}
    for mid, arrays in weights.items():
        plan = learner._build.plans[mid]
        own = learner._build.trainable_variables[mid]
        variables: dict[str, Any] = {}
        for name, optimizer in plan.optimizers.items():
            named = optimizer.layout.to_host(host[f"params/{mid}/{name}"])
            variables.update({n: v for n, v in named.items() if n in own})
        if plan.frozen.names:
            named = plan.frozen.to_host(host[f"frozen/{mid}"])
            variables.update({n: v for n, v in named.items() if n in own})
        given = dict(_mapping(arrays, f"rl_module/{mid}"))
        # Buffers are there in what get_weights gives, and not in a state's "rl_module".
        for name in [name for name in plan.buffers if name in given]:
            path = f"rl_module/{mid}/{name}"
            carry[f"buffers/{mid}/{name}"] = _buffer_from(learner, mid, name, given.pop(name), path)
        carry.update(_params_from(plan, mid, given, variables, dtype))
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
    carry, steps, variables = _modules_from(learner, {**state, "variables": kept}, shared)
    _take_over(learner, carry)
    learner._optimizer_steps.update(steps)
    learner._host_variables.update(variables)


def _take_over(learner: Learner, carry: _Makers) -> None:
    """Replace entries of the carry one by one, letting go of each before its successor is made."""
    learner._carry = dict(learner._carry)
    for key, make in carry.items():
        learner._carry[key] = None
        learner._carry[key] = learner.backend.adopt_numpy(make())


def _modules_from(
    learner: Learner, state: Mapping[str, Any], module_ids: list[str]
) -> tuple[_Makers, dict[tuple[str, str], int], dict[str, dict[str, float]]]:
    """(carry entries, optimizer steps, host variables) of these modules, every one checked."""
    dtype = learner.backend.numpy_float_dtype
    carry: _Makers = {}
    steps: dict[tuple[str, str], int] = {}
    host_variables: dict[str, dict[str, float]] = {}

    def add(key: str, layout: Any, arrays: Mapping[str, Any], path: str) -> None:
        checked = layout.check(arrays, path)
        carry[key] = lambda: layout.from_host(checked, dtype)

    for mid in module_ids:
        plan = learner._build.plans[mid]
        own = learner._build.trainable_variables[mid]
        variables = _mapping(state["variables"][mid], f"variables/{mid}")
        names = {*own, *plan.host_variables}
        _same_keys(variables, names, f"variables/{mid}")
        host_variables[mid] = {n: number(variables[n], f"variables/{mid}/{n}") for n in plan.host_variables}
        arrays = _mapping(state["rl_module"][mid], f"rl_module/{mid}")
        carry.update(_params_from(plan, mid, arrays, {n: variables[n] for n in own}, dtype))
        targets = _mapping(state["targets"][mid], f"targets/{mid}")
        _same_keys(targets, plan.targets.names, f"targets/{mid}")
        if plan.targets.names:
            add(f"targets/{mid}", plan.targets, targets, f"targets/{mid}")
        buffers = _mapping(state["buffers"][mid], f"buffers/{mid}")
        _same_keys(buffers, plan.buffers, f"buffers/{mid}")
        for name, value in buffers.items():
            carry[f"buffers/{mid}/{name}"] = _buffer_from(learner, mid, name, value, f"buffers/{mid}/{name}")
        saved = _mapping(state["optimizer"][mid], f"optimizer/{mid}")
        _same_keys(saved, plan.optimizers, f"optimizer/{mid}")
        for name, optimizer in plan.optimizers.items():
            path = f"optimizer/{mid}/{name}"
            entry = _mapping(saved[name], path)
            _same_keys(entry, ("kind", "step", "slots"), path)
            if entry.get("kind") != optimizer.spec.kind:
                raise StateError(f"expected {optimizer.spec.kind!r}, got {entry.get('kind')!r}", path=f"{path}/kind")
            steps[mid, name] = _count(entry, "step", path)
            slots = _mapping(entry.get("slots"), f"{path}/slots")
            _same_keys(slots, optimizer.spec.slot_names, f"{path}/slots")
            for slot in optimizer.spec.slot_names:
                named = _mapping(slots[slot], f"{path}/slots/{slot}")
                add(f"slots/{mid}/{name}/{slot}", optimizer.layout, named, f"{path}/slots/{slot}")
    return carry, steps, host_variables


def _buffer_from(learner: Learner, mid: str, name: str, value: Any, path: str) -> Callable[[], np.ndarray]:
    """Makes ``value`` the buffer of that name; checked here."""
    expected: np.ndarray = learner.backend.to_numpy({"x": learner._carry[f"buffers/{mid}/{name}"]})["x"]
    array = of_shape(as_numbers(value, path), expected.shape, path)
    dtype = expected.dtype
    return lambda: np.array(array, dtype, order="C")


def _params_from(plan: Any, mid: str, arrays: Mapping[str, Any], variables: Mapping[str, Any], dtype: Any) -> _Makers:
    """Carry entries of weights and trainable variables, which share the optimizers' vectors."""
    layouts = {f"params/{mid}/{name}": optimizer.layout for name, optimizer in plan.optimizers.items()}
    if plan.frozen.names:
        layouts[f"frozen/{mid}"] = plan.frozen
    for name in variables:
        if name in arrays:
            raise StateError("is a variable, not a weight", path=f"rl_module/{mid}/{name}")
    shapes = {name: shape for layout in layouts.values() for name, shape in layout.shapes.items()}
    _same_keys(arrays, [name for name in shapes if name not in variables], f"rl_module/{mid}")
    both: dict[str, np.ndarray] = {}
    for part, values in (("variables", variables), ("rl_module", arrays)):
        for name, value in values.items():
            path = f"{part}/{mid}/{name}"
            both[name] = of_shape(as_numbers(value, path), shapes[name], path)
    return {key: functools.partial(layout.from_host, both, dtype) for key, layout in layouts.items()}


def _mapping(value: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise StateError(f"expected a dict, got {type(value).__name__}", path=path or None)
    return value


def _same_keys(got: Mapping[str, Any], expected: Any, path: str) -> None:
    for key in expected:
        if key not in got:
            raise StateError("missing", path=f"{path}/{key}")
    for key in got:
        if key not in expected:
            raise StateError(f"unknown entry.{did_you_mean(key, list(expected))}", path=f"{path}/{key}")


def _count(tree: Mapping[str, Any], name: str, path: str) -> int:
    return non_negative_int(tree.get(name), f"{path}/{name}")
