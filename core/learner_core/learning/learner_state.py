"""A Learner's state as one tree of numpy arrays and plain values, and back.

The tree names every array as its module does, in canonical layout; the flat vectors of the step never leave the
process. Checking comes first: a state that does not fit raises with its path and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import StateError, did_you_mean
from .parameters import as_numbers

if TYPE_CHECKING:
    from .learner import Learner

__all__ = ["STATE_SCHEMA", "get_state", "get_weights", "restore_shared", "set_state", "set_weights"]

STATE_SCHEMA = 1
_MODULE_PARTS = ("rl_module", "targets", "buffers", "variables", "optimizer")


def get_state(learner: Learner) -> dict[str, Any]:
    """See ``Learner.get_state``."""
    host = learner.backend.to_numpy(learner._carry)
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


def set_state(learner: Learner, state: Mapping[str, Any]) -> None:
    """See ``Learner.set_state``."""
    state = _mapping(state, "")
    schema = state.get("schema")
    if schema != STATE_SCHEMA:
        raise StateError(f"this version reads schema {STATE_SCHEMA}, got {schema!r}", path="schema")
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
    # Everything fits: take it over.
    learner._carry = {**learner._carry, **learner.backend.from_numpy(carry)}
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
    carry: dict[str, np.ndarray] = {}
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
        carry.update(_params_from(plan, mid, _mapping(arrays, f"rl_module/{mid}"), variables, dtype))
    learner._carry = {**learner._carry, **learner.backend.from_numpy(carry)}


def restore_shared(learner: Learner, state: Mapping[str, Any]) -> None:
    """After a rebuild: give every module that was there before its old state, and the counters."""
    shared = [mid for mid in learner._build.plans if mid in state["rl_module"]]
    carry, steps, variables = _modules_from(learner, state, shared)
    learner._carry = {**learner._carry, **learner.backend.from_numpy(carry)}
    learner._optimizer_steps.update(steps)
    learner._host_variables.update(variables)


def _modules_from(
    learner: Learner, state: Mapping[str, Any], module_ids: list[str]
) -> tuple[dict[str, np.ndarray], dict[tuple[str, str], int], dict[str, dict[str, float]]]:
    """(carry entries, optimizer steps, host variables) of these modules, every one checked."""
    dtype = learner.backend.numpy_float_dtype
    carry: dict[str, np.ndarray] = {}
    steps: dict[tuple[str, str], int] = {}
    host_variables: dict[str, dict[str, float]] = {}
    for mid in module_ids:
        plan = learner._build.plans[mid]
        own = learner._build.trainable_variables[mid]
        variables = _mapping(state["variables"][mid], f"variables/{mid}")
        names = {*own, *plan.host_variables}
        _same_keys(variables, names, f"variables/{mid}")
        host_variables[mid] = {n: _number(variables[n], f"variables/{mid}/{n}") for n in plan.host_variables}
        arrays = _mapping(state["rl_module"][mid], f"rl_module/{mid}")
        carry.update(_params_from(plan, mid, arrays, {n: variables[n] for n in own}, dtype))
        targets = _mapping(state["targets"][mid], f"targets/{mid}")
        _same_keys(targets, plan.targets.names, f"targets/{mid}")
        if plan.targets.names:
            carry[f"targets/{mid}"] = plan.targets.from_host(targets, dtype, f"targets/{mid}")
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
                vector = optimizer.layout.from_host(named, dtype, f"{path}/slots/{slot}")
                carry[f"slots/{mid}/{name}/{slot}"] = vector
    return carry, steps, host_variables


def _buffer_from(learner: Learner, mid: str, name: str, value: Any, path: str) -> np.ndarray:
    """``value`` as the buffer of that name, checked."""
    expected: np.ndarray = learner.backend.to_numpy({"x": learner._carry[f"buffers/{mid}/{name}"]})["x"]
    array = as_numbers(value, path)
    if array.shape != expected.shape:
        raise StateError(f"expected shape {expected.shape}, got {array.shape}", path=path)
    return array.astype(expected.dtype)


def _params_from(
    plan: Any, mid: str, arrays: Mapping[str, Any], variables: Mapping[str, Any], dtype: Any
) -> dict[str, np.ndarray]:
    """Carry entries of weights and trainable variables, which share the optimizers' vectors."""
    layouts = {f"params/{mid}/{name}": optimizer.layout for name, optimizer in plan.optimizers.items()}
    if plan.frozen.names:
        layouts[f"frozen/{mid}"] = plan.frozen
    for name in variables:
        if name in arrays:
            raise StateError("is a variable, not a weight", path=f"rl_module/{mid}/{name}")
    shapes = {name: shape for layout in layouts.values() for name, shape in layout.shapes.items()}
    _same_keys(arrays, [name for name in shapes if name not in variables], f"rl_module/{mid}")
    for name, value in variables.items():
        array = as_numbers(value, f"variables/{mid}/{name}")
        if array.shape != shapes[name]:
            raise StateError(f"expected shape {shapes[name]}, got {array.shape}", path=f"variables/{mid}/{name}")
    both = {**arrays, **variables}
    return {
        key: layout.from_host({n: both[n] for n in layout.names}, dtype, f"rl_module/{mid}")
        for key, layout in layouts.items()
    }


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
    value = tree.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
        raise StateError(f"expected a non-negative int, got {value!r}", path=f"{path}/{name}")
    return int(value)


def _number(value: Any, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
        raise StateError(f"expected a number, got {value!r}", path=path)
    return float(value)
