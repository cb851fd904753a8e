"""Metrics of a step: those of its micro-batches as one, and the sums that an update carries from step to step.

Needs a context whose hooks have logged; weighs by the rows (timesteps) that count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .context import StepContext

if TYPE_CHECKING:
    from .step import UpdateStep

__all__ = ["collect_metrics", "merge_parts"]


def merge_parts(
    step: UpdateStep,
    context: StepContext,
    ints: Any,
    parts: list[tuple[dict[str, Any], dict[tuple[str, str], Any], dict[str, Any]]],
) -> None:
    """Counts, metrics and stop margins of the whole minibatch, from those of its micro-batches.

    Where there are several learners, metrics and margins are this learner's share of them: they add up.
    """
    xp = step.xp
    even = xp.asarray(1.0 / step.num_parts, dtype=step.learner.float_dtype)
    shares: list[dict[str, Any]] = []
    for mid in {**step.feeds, **step.plans}:
        context.share[mid] = sum(counts[mid] for counts, _, _ in parts)
        context.count[mid] = step.total_count(ints, mid)
    for counts, _, _ in parts:
        share = {mid: counts[mid] / xp.maximum(total, xp.ones_like(total)) for mid, total in context.count.items()}
        shares.append({**share, "__all__": even})

    def mean(of: str, values: list[Any]) -> Any:
        summed = None
        for share, value in zip(shares, values, strict=True):
            part = xp.reshape(xp.astype(value, step.learner.float_dtype), ()) * share[of]
            # A micro-batch without rows may have computed anything.
            part = xp.where(share[of] > 0, part, xp.zeros_like(part))
            summed = part if summed is None else summed + part
        return summed

    context.metrics = {key: (mean(key[0], [m[key][0] for _, m, _ in parts]), None) for key in parts[0][1]}
    context.stop = {mid: mean(mid, [stop[mid] for _, _, stop in parts]) for mid in parts[0][2]}


def collect_metrics(
    step: UpdateStep, out: dict[str, Any], carry: Mapping[str, Any], context: StepContext, gate: Mapping[str, Any]
) -> None:
    """Add this step's metrics, weighted by rows, to the running sums."""
    xp, dtype = step.xp, step.learner.float_dtype
    for mid, plan in step.plans.items():
        active, go = gate[mid]["active"], gate[mid]["go"]
        rows = xp.where(go, xp.astype(context.count[mid], dtype), xp.zeros_like(context.count[mid]))
        if gate[mid]["loss"] is not None:
            context.metrics.setdefault((mid, "total_loss"), (gate[mid]["loss"], None))
        for name, norm in gate[mid]["norms"].items():
            label = "gradient_norm" if len(plan.optimizers) == 1 else f"gradient_norm/{name}"
            context.metrics[mid, label] = (norm, None)
        one = xp.ones_like(rows)
        skipped = xp.where(xp.logical_and(active, xp.logical_not(go)), one, xp.zeros_like(one))
        context.metrics[mid, "num_nonfinite_steps"] = (skipped, one)
        context.metrics[mid, "num_minibatch_steps"] = (xp.where(go, one, xp.zeros_like(one)), one)
        for key, (value, weight) in list(context.metrics.items()):
            if key[0] == mid and weight is None:
                context.metrics[key] = (value, rows)
    names = sorted(context.metrics)
    exploring = step.metrics is None
    if step.metrics is None:
        step.metrics = names
    one = xp.ones((), dtype=dtype)
    values, weights = [], []
    for key in step.metrics:
        value, weight = context.metrics[key]
        values.append(_scalar(step, value))
        weights.append(one if weight is None else _scalar(step, weight))
    value, weight = xp.stack(values, 0), xp.stack(weights, 0)
    usable, zero = xp.logical_and(weight > 0, xp.isfinite(value)), xp.zeros_like(value)
    sums = xp.stack([xp.where(usable, value * weight, zero), xp.where(usable, weight, zero)], 0)
    out["metrics"] = sums if exploring else carry["metrics"] + sums


def _scalar(step: UpdateStep, value: Any) -> Any:
    dtype = step.learner.float_dtype
    value = value if value.dtype == dtype else step.xp.astype(value, dtype)
    return value if len(value.shape) == 0 else step.xp.reshape(value, ())
