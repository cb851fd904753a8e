"""What a Learner's state must be: its modules, optimizers and variables by their present structure.

Needs a built Learner. Arrays may be of another precision, device or backend; what no run could have left (NaN weights,
negative second moments, counters below 0) is refused as much as another structure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..state.schema import COUNT, PLAIN, SEED, Also, Array, MapOf, OneOf, Real, Record, Schema, refuse
from ..xp import Array as DeviceArray
from .step.hooks import LearnerHooks

__all__ = ["MODULE_PARTS", "STATE_SCHEMA", "learner_schema", "modules_schema", "weights_schema"]

STATE_SCHEMA = 1
MODULE_PARTS = ("rl_module", "targets", "buffers", "variables", "optimizer")


@dataclass(frozen=True)
class _Version(Schema):
    """What a state means, by number: the learner's own version, or an earlier one that means the same to it."""

    learner: LearnerHooks

    @property
    def expected(self) -> str:
        """In words."""
        return repr(self.learner.state_version)

    def check(self, value: Any, path: str) -> None:
        """As ``Schema.check``."""
        version = self.learner.state_version
        if type(value) is int and STATE_SCHEMA <= value < version:
            reason = self.learner.why_not_earlier(value)
            if reason:
                refuse(path, self.expected, str(value), reason)
        else:
            OneOf((version,), f"this version reads schema {version}").check(value, path)


def learner_schema(learner: LearnerHooks, modules: Collection[str] | None = None) -> Record:
    """What ``Learner.set_state`` takes, with these of its modules; ``None``: all."""
    fields: dict[str, Schema] = {
        "schema": _Version(learner),
        **modules_schema(learner, learner.blueprint.plans if modules is None else modules),
        "timesteps": MapOf(COUNT),
        "counters": Record({"num_updates": COUNT, "num_minibatch_steps": COUNT}),
        "noise": Record({"seed": SEED}),
        "plugins": MapOf(PLAIN),
    }
    return Record(fields, what="a learner's state")


def modules_schema(learner: LearnerHooks, module_ids: Collection[str]) -> dict[str, Record]:
    """{part of the state: what it is of these modules}."""
    parts = {mid: _module_parts(learner, mid) for mid in module_ids}
    return {name: Record({mid: parts[mid][name] for mid in parts}) for name in MODULE_PARTS}


def weights_schema(learner: LearnerHooks, weights: object) -> MapOf:
    """What ``Learner.set_module_state`` takes; buffers may be there or not."""
    plans = learner.blueprint.plans
    named = [mid for mid in weights if mid in plans] if isinstance(weights, Mapping) else []
    parts = {mid: _module_parts(learner, mid) for mid in named}

    def rule(value: Mapping[str, Any], path: str) -> None:
        for mid, arrays in value.items():
            buffers = parts[mid]["buffers"].fields
            fields = {**parts[mid]["rl_module"].fields, **buffers}
            Record(fields, optional=tuple(buffers)).check(arrays, f"{path}/{mid}")

    return MapOf(Record({}, is_open=True), known=plans, rule=rule)


def _module_parts(learner: LearnerHooks, mid: str) -> dict[str, Record]:
    """{part of the state: what it is of one module}."""
    plan = learner.blueprint.plans[mid]
    dtype = learner.backend.numpy_float_dtype
    arrays = learner.train_state.arrays[mid]
    weights: dict[str, Schema] = {}
    optimizers: dict[str, Schema] = {}
    for name, optimizer in plan.optimizers.items():
        shapes = optimizer.layout.shapes
        weights.update({n: Array(shape, dtype) for n, shape in shapes.items()})
        slots: dict[str, Schema] = {
            slot: Record({n: _moment(shape, dtype, slot in optimizer.spec.squares) for n, shape in shapes.items()})
            for slot in optimizer.spec.slot_names
        }
        optimizers[name] = Record({"kind": OneOf((optimizer.spec.kind,)), "step": COUNT, "slots": Record(slots)})
    if plan.frozen.names:
        frozen = plan.frozen.to_host(_host(learner, arrays.frozen))
        weights.update({n: _like(value) for n, value in frozen.items()})
    variables: dict[str, Schema] = {
        name: Also(weights.pop(name), partial(_check_bounds, *plan.bounds[name]))
        for name in plan.trained_variables
        if name in weights
    }
    variables.update({name: Real(*plan.bounds[name]) for name in plan.host_variables})
    return {
        "rl_module": Record(weights),
        "targets": Record({name: Array(shape, dtype) for name, shape in plan.targets.shapes.items()}),
        "buffers": Record({name: _like(_host(learner, arrays.buffers[name])) for name in plan.buffers}),
        "variables": Record(variables),
        "optimizer": Record(optimizers),
    }


def _check_bounds(least: float, most: float, value: Any, path: str) -> None:
    array = np.asarray(value)
    if not (np.all(array >= least) and np.all(array <= most)):
        refuse(path, f"values from {least:g} to {most:g}", f"values from {array.min():g} to {array.max():g}")


def _moment(shape: tuple[int, ...], dtype: Any, is_square: bool) -> Array:
    # The square of a large gradient is an infinity in an honest run; the step is none then.
    return Array(shape, dtype, least=0.0 if is_square else None, allow_inf=is_square)


def _like(value: np.ndarray) -> Array:
    """What nobody trains may hold infinities on purpose (a mask of attention): where it does here, it may there."""
    return Array(value.shape, value.dtype, finite=value.dtype.kind not in "iub" and bool(np.isfinite(value).all()))


def _host(learner: LearnerHooks, array: DeviceArray) -> np.ndarray:
    value: np.ndarray = learner.backend.view_numpy({"x": array})["x"]
    return value
