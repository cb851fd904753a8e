"""Metrics of a step: those of its micro-batches as one, and the sums that an update carries from step to step.

Needs a context whose hooks have logged; weighs by the rows (timesteps) that count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...xp import Array
from .context import StepContext
from .gate import Gate
from .line import StepLine
from .minibatch import total_count

__all__ = ["Part", "collect_metrics", "merge_parts"]


@dataclass(frozen=True, slots=True)
class Part:
    """What hooks have said of one micro-batch; as in ``StepContext``."""

    count: dict[str, Array]
    metrics: dict[tuple[str, str], tuple[Array, Array | None]]
    stop: dict[str, Array]


def merge_parts(line: StepLine, context: StepContext, parts: Sequence[Part]) -> None:
    """Counts, metrics and stop margins of the whole minibatch, from those of its micro-batches.

    Where there are several learners, metrics and margins are this learner's share of them: they add up.
    """
    xp, blueprint, dtype = context.xp, context.blueprint, context.float_dtype
    even = xp.asarray(1.0 / context.num_parts, dtype=dtype)
    shares: list[dict[str, Array]] = []
    for mid in {**blueprint.feeds, **blueprint.learning}:
        context.share[mid] = sum(part.count[mid] for part in parts)
        context.count[mid] = total_count(line, context, mid)
    for part in parts:
        share = {mid: part.count[mid] / xp.maximum(total, xp.ones_like(total)) for mid, total in context.count.items()}
        shares.append({**share, "__all__": even})

    def mean(of: str, values: Sequence[Array]) -> Array:
        summed = None
        for share, value in zip(shares, values, strict=True):
            part = xp.reshape(xp.astype(value, dtype), ()) * share[of]
            # A micro-batch without rows may have computed anything.
            part = xp.where(share[of] > 0, part, xp.zeros_like(part))
            summed = part if summed is None else summed + part
        return summed

    context.metrics = {key: (mean(key[0], [part.metrics[key][0] for part in parts]), None) for key in parts[0].metrics}
    context.stop = {mid: mean(mid, [part.stop[mid] for part in parts]) for mid in parts[0].stop}


def collect_metrics(line: StepLine, context: StepContext, gates: Mapping[str, Gate]) -> Array:
    """This step's metrics, weighted by rows, added to the running sums: float[2, metrics]."""
    xp, dtype = context.xp, context.float_dtype
    for mid, plan in context.blueprint.learning.items():
        gate = gates[mid]
        rows = xp.where(gate.go, xp.astype(context.count[mid], dtype), xp.zeros_like(context.count[mid]))
        if gate.loss is not None:
            context.metrics.setdefault((mid, "total_loss"), (gate.loss, None))
        for name, norm in gate.norms.items():
            label = "gradient_norm" if len(plan.optimizers) == 1 else f"gradient_norm/{name}"
            context.metrics[mid, label] = (norm, None)
        one = xp.ones_like(rows)
        skipped = xp.where(xp.logical_and(gate.active, xp.logical_not(gate.go)), one, xp.zeros_like(one))
        context.metrics[mid, "num_nonfinite_steps"] = (skipped, one)
        context.metrics[mid, "num_minibatch_steps"] = (xp.where(gate.go, one, xp.zeros_like(one)), one)
        for key, (value, weight) in list(context.metrics.items()):
            if key[0] == mid and weight is None:
                context.metrics[key] = (value, rows)
    names = context.blueprint.metrics
    if context.probe is not None:
        names = context.probe.metrics = context.probe.metrics or tuple(sorted(context.metrics))
    one = xp.ones((), dtype=dtype)
    values, weights = [], []
    for key in names:
        value, weight = context.metrics[key]
        values.append(_scalar(context, value))
        weights.append(one if weight is None else _scalar(context, weight))
    value, weight = xp.stack(values, 0), xp.stack(weights, 0)
    usable, zero = xp.logical_and(weight > 0, xp.isfinite(value)), xp.zeros_like(value)
    sums = xp.stack([xp.where(usable, value * weight, zero), xp.where(usable, weight, zero)], 0)
    return sums if context.probe is not None else line.carry.metrics + sums


def _scalar(context: StepContext, value: Array) -> Array:
    value = value if value.dtype == context.float_dtype else context.xp.astype(value, context.float_dtype)
    return value if len(value.shape) == 0 else context.xp.reshape(value, ())
