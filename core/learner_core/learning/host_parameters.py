"""Parameters outside a step: read as a module needs them, changed by a function of the user's, by name.

Needs a built Learner. Refuses changes of names and shapes. What is changed is still on the backend's device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, StateError
from .context import ConfigView, StepContext
from .hook_answers import refuse_others

if TYPE_CHECKING:
    from .hooks import LearnerHooks

__all__ = ["host_context", "trainable_variable", "update_parameters", "update_targets"]


def host_context(learner: LearnerHooks) -> StepContext:
    """A context on the current parameters, for uses outside a step."""
    xp = learner.xp
    context = StepContext(xp)
    context.compute_dtype = learner.compute_dtype
    for mid, plan in learner._build.plans.items():
        params: dict[str, Any] = {}
        for name, optimizer in plan.optimizers.items():
            params.update(optimizer.layout.split(xp, learner._carry[f"params/{mid}/{name}"]))
        if plan.frozen.names:
            params.update(plan.frozen.split(xp, learner._carry[f"frozen/{mid}"]))
        context.params[mid] = params
        context.targets[mid] = plan.targets.split(xp, learner._carry[f"targets/{mid}"]) if plan.targets.names else {}
        context.buffers[mid] = {name: learner._carry[f"buffers/{mid}/{name}"] for name in plan.buffers}
        context.batch[mid] = {}
        context.config[mid] = ConfigView(learner.config.for_module(mid), {})
        context.sequences[mid] = plan.sequences
    for mid, plan in learner._build.plans.items():
        context.params[mid].update({name: context.params[holder][name] for name, holder in plan.borrowed.items()})
    return context


def update_parameters(learner: LearnerHooks, fn: Callable[[str, dict[str, Any]], dict[str, Any]]) -> None:
    """See ``Learner.update_parameters``."""
    xp = learner.xp
    context = host_context(learner)
    changed: dict[str, Any] = {}
    for mid, plan in learner._build.plans.items():
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
            changed[f"params/{mid}/{name}"] = xp.stop_gradient(optimizer.layout.join(xp, after))
        if plan.frozen.names:
            changed[f"frozen/{mid}"] = xp.stop_gradient(plan.frozen.join(xp, after))
    learner._carry.update(changed)


def update_targets(learner: LearnerHooks, fn: Callable[[str, dict[str, Any], dict[str, Any]], dict[str, Any]]) -> None:
    """See ``Learner.update_targets``."""
    xp = learner.xp
    context = host_context(learner)
    changed: dict[str, Any] = {}
    if not any(plan.targets.names for plan in learner._build.plans.values()):
        raise ConfigError("update_targets: no module has targets; the class attribute `targets` of a module names them")
    for mid, plan in learner._build.plans.items():
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
        changed[f"targets/{mid}"] = xp.stop_gradient(plan.targets.join(xp, after))
    learner._carry.update(changed)


def trainable_variable(learner: LearnerHooks, module_id: str, name: str) -> Any:
    """The value of a trained variable on the host: a float, or an array if it has a shape."""
    if name not in learner._build.trainable_variables.get(module_id, {}):
        return None
    value = learner.backend.to_numpy({"x": host_context(learner).params[module_id][name]})["x"]
    return float(value) if value.ndim == 0 else value
