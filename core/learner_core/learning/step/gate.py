"""Which modules a step counts for: those with rows, that have not stopped early, with finite losses and gradients."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

from ...backend import Backend
from ...xp import Array
from ..blueprint import ModulePlan
from .context import StepContext
from .line import StepLine

__all__ = ["Gate", "check_finite", "gates_of", "has_rows"]


@dataclass(slots=True)
class Gate:
    """One module in one step.

    Attributes:
        active: bool[], it has rows here and has not stopped.
        go: bool[], and its loss and gradients are finite: its arrays change.
        stopped: bool[], it takes no further step in this update.
        loss: its loss, detached; ``None``: it has none.
        norms: optimizer -> norm of its gradient.
    """

    active: Array
    go: Array
    stopped: Array
    loss: Array | None = None
    norms: dict[str, Array] = field(default_factory=dict)


def has_rows(line: StepLine, context: StepContext, module_id: str, plan: ModulePlan) -> Array:
    """bool[]: the module has rows in this step that it is to learn from."""
    columns = context.blueprint.table.ints
    found = line.ints[columns["count", plan.rows_from]] > 0
    if ("updated", module_id) not in columns:
        return found
    return context.xp.logical_and(found, line.ints[columns["updated", module_id]] > 0)


def gates_of(line: StepLine, context: StepContext, losses: Mapping[str, Array]) -> dict[str, Gate]:
    """module id -> its gate, as far as its rows, early stops and losses say."""
    xp, plans = context.xp, context.blueprint.learning
    gates: dict[str, Gate] = {}
    for position, (module_id, plan) in enumerate(plans.items()):
        if plan.shared_by:
            continue
        rows = has_rows(line, context, module_id, plan)
        stopped = line.carry.stopped[position]
        if module_id in context.stop:
            stopped = xp.logical_or(stopped, xp.logical_and(context.stop[module_id] > 0, rows))
        active = xp.logical_and(rows, xp.logical_not(stopped))
        finite = xp.isfinite(losses[module_id]) if module_id in losses else rows
        gates[module_id] = Gate(active, xp.logical_and(active, finite), stopped, losses.get(module_id))
    for module_id, plan in plans.items():
        if plan.shared_by:
            # Those that do not go have no part in its gradient, but for a loss that is not finite.
            sharers = [gates[sharer] for sharer in plan.shared_by if sharer in gates]
            active = functools.reduce(xp.logical_or, [one.active for one in sharers])
            gates[module_id] = Gate(active, active, functools.reduce(xp.logical_and, [one.stopped for one in sharers]))
    return gates


def check_finite(
    context: StepContext,
    backend: Backend,
    gradients: Mapping[str, Mapping[str, Array]],
    gates: Mapping[str, Gate],
) -> None:
    """Take the gradients' norms; a module whose gradient is not finite does not go.

    Args:
        context: of the step.
        backend: takes norms.
        gradients: module id -> optimizer -> flat vector.
        gates: changed in place.
    """
    xp = context.xp
    for module_id, vectors in gradients.items():
        gate = gates[module_id]
        for name, vector in vectors.items():
            norm = gate.norms[name] = xp.sqrt(backend.squared_norm(vector))
            if context.reads_values and bool(xp.isfinite(norm)):
                continue
            # A module steps with all of its optimizers or with none. Not by the norm: whether that overflows depends
            # on how a compiler arranges it.
            gate.go = xp.logical_and(gate.go, xp.all(xp.isfinite(vector)))
