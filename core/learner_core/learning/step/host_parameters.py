"""Parameters outside a step: read as a module needs them, changed by a function of the user's, by name.

Needs a built Learner. Refuses changes of names and shapes. What is changed is still on the backend's device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from ...backend import Backend
from ...config.algorithm_settings import AlgorithmSettings
from ...errors import ConfigError, StateError
from ...xp import Array, DType
from ..blueprint import Blueprint
from ..train_state import TrainState
from .context import ConfigView, StepContext
from .hook_answers import refuse_others

__all__ = ["Trained", "host_context", "trained_variable", "update_parameters", "update_targets"]


Arrays = dict[str, Array]
#: ``fn(module_id, params) -> params``.
ParameterFunction = Callable[[str, Arrays], Arrays]
#: ``fn(module_id, params, targets) -> targets``.
TargetFunction = Callable[[str, Arrays, Arrays], Arrays]


class Trained(Protocol):
    """What of a Learner is needed here."""

    config: AlgorithmSettings
    backend: Backend
    float_dtype: DType
    compute_dtype: DType | None
    blueprint: Blueprint
    train_state: TrainState


def host_context(learner: Trained) -> StepContext:
    """A context on the current parameters, for uses outside a step."""
    xp, plans = learner.backend.xp, learner.blueprint.plans
    context = StepContext(xp, learner.blueprint, learner.float_dtype, learner.compute_dtype)
    for mid, plan in plans.items():
        arrays = learner.train_state.arrays[mid]
        params: dict[str, Array] = {}
        for name, optimizer in plan.optimizers.items():
            params.update(optimizer.layout.split(xp, arrays.params[name]))
        context.params[mid] = {**params, **plan.frozen.split(xp, arrays.frozen)}
        context.targets[mid] = plan.targets.split(xp, arrays.targets)
        context.buffers[mid] = dict(arrays.buffers)
        context.batch[mid] = {}
        context.config[mid] = ConfigView(learner.config.for_module(mid), {})
        context.sequences[mid] = plan.sequences
    for mid, plan in plans.items():
        context.params[mid].update({name: context.params[holder][name] for name, holder in plan.borrowed.items()})
    return context


def update_parameters(learner: Trained, fn: ParameterFunction) -> None:
    """See ``Learner.update_parameters``."""
    xp = learner.backend.xp
    context = host_context(learner)
    changed = {mid: arrays.copy() for mid, arrays in learner.train_state.arrays.items()}
    for mid, plan in learner.blueprint.plans.items():
        # What others hold for a module is changed where it is held.
        before = {name: value for name, value in context.params[mid].items() if name not in plan.borrowed}
        after = fn(mid, dict(before))
        if not isinstance(after, Mapping) or set(after) != set(before):
            raise StateError("update_parameters: fn must return the same parameter names", path=f"rl_module/{mid}")
        after = dict(after)
        for name, old in before.items():
            new = after[name] = xp.astype(xp.asarray(after[name]), old.dtype)
            if tuple(xp.shape(new)) != tuple(xp.shape(old)):
                raise StateError(
                    f"update_parameters: shape {tuple(xp.shape(new))} instead of {tuple(xp.shape(old))}",
                    path=f"rl_module/{mid}/{name}",
                )
        for name, optimizer in plan.optimizers.items():
            changed[mid].params[name] = xp.stop_gradient(optimizer.layout.join(xp, after))
        if plan.frozen.names:
            changed[mid].frozen = xp.stop_gradient(plan.frozen.join(xp, after))
    learner.train_state.arrays = changed


def update_targets(learner: Trained, fn: TargetFunction) -> None:
    """See ``Learner.update_targets``."""
    xp = learner.backend.xp
    context = host_context(learner)
    changed = {mid: arrays.copy() for mid, arrays in learner.train_state.arrays.items()}
    if not any(plan.targets.names for plan in learner.blueprint.plans.values()):
        raise ConfigError("update_targets: no module has targets; the class attribute `targets` of a module names them")
    for mid, plan in learner.blueprint.plans.items():
        if not plan.targets.names:
            continue
        before = context.targets[mid]
        after = dict(fn(mid, dict(context.params[mid]), dict(before)))
        refuse_others("update_targets: fn returns", f"targets/{mid}", after, before)
        if all(after.get(name) is old for name, old in before.items()):
            continue
        for name, old in before.items():
            shape = tuple(xp.shape(after[name])) if name in after else None
            if shape != tuple(xp.shape(old)):
                raise StateError(
                    f"update_targets: shape {shape} instead of {tuple(xp.shape(old))}", path=f"targets/{mid}/{name}"
                )
        changed[mid].targets = xp.stop_gradient(plan.targets.join(xp, after))
    learner.train_state.arrays = changed


def trained_variable(learner: Trained, module_id: str, name: str) -> float | np.ndarray | None:
    """The value of a trained variable on the host: a float, or an array if it has a shape; ``None``: there is none."""
    plan = learner.blueprint.plans.get(module_id)
    if plan is None or name not in plan.trained_variables:
        return None
    value: np.ndarray = learner.backend.to_numpy({"x": host_context(learner).params[module_id][name]})["x"]
    return float(value) if value.ndim == 0 else value
