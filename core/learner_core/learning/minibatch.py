"""The rows of one (micro-)batch as hooks see them: gathered, masked, with their noise and statistics.

Needs the step's line of the index plan. Changes nothing but the context that it fills.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .context import StepContext

if TYPE_CHECKING:
    from .step import UpdateStep

__all__ = ["load_batch", "nested_columns", "table_line"]


def load_batch(
    step: UpdateStep,
    s: Any,
    context: StepContext,
    inputs: Mapping[str, Any],
    indices: Mapping[str, Any],
    noise: Mapping[str, Any],
    ints: Any,
    padded: Mapping[str, bool],
    part: int,
) -> dict[str, Any]:
    """Gather this (micro-)batch; returns module id -> weight of its loss in the minibatch's mean, or None for 1."""
    xp = step.xp
    weights: dict[str, Any] = {}
    chunk: dict[str, slice] = {}
    for mid, plan in step.feeds.items():
        rows = indices[mid]
        size = xp.shape(rows)[0]
        take = slice(part * size // step.accumulate, (part + 1) * size // step.accumulate)
        # Fewer rows than micro-batches: this one takes a row that does not count.
        spare = take.start == take.stop
        take = slice(0, 1) if spare else take
        chunk[mid] = take
        rows = rows[take]
        columns = {c: xp.take(inputs[key], rows, 0) for c in plan.columns if (key := f"data/{mid}/{c}") in inputs}
        valid = ints[step.table.ints["rows", mid]]
        mask = columns.pop("loss_mask", None)
        if padded[mid] or spare:
            first = xp.arange(take.stop - take.start) + take.start
            inside = xp.astype(first < (valid * 0 if spare else valid), step.learner.float_dtype)
            mask = inside if mask is None else mask * _expand(xp, inside, mask)
        count = xp.sum(mask) if mask is not None else xp.astype(valid, step.learner.float_dtype)
        if mask is None and step.accumulate > 1:
            count = xp.asarray(float(take.stop - take.start), dtype=step.learner.float_dtype)
        context.mask[mid], context.count[mid] = mask, count
        columns["loss_mask"] = mask if mask is not None else _ones(xp, columns, step.learner.float_dtype)
        context.batch[mid] = step.learner._wrap_batch(mid, nested_columns(columns))
        whole = xp.astype(ints[step.table.ints["count", mid]], step.learner.float_dtype)
        weights[mid] = None if step.num_parts == 1 else count / xp.maximum(whole, xp.ones_like(whole))
    for mid, plan in step.plans.items():
        if plan.rows_from:
            for of in (context.batch, context.mask, context.count, weights, chunk):
                of[mid] = of[plan.rows_from]
    for mid, plan in step.plans.items():
        if plan.shared_by:
            # What a module without rows computes on does not count.
            counts = [(context.count[one], step.total_count(ints, one)) for one in plan.shared_by if one in step.plans]
            own = [xp.where(total > 0, count, xp.zeros_like(count)) for count, total in counts]
            context.count[mid] = functools.reduce(operator.add, own)

    def draw(module_id: str, name: str, shape: tuple[int, ...]) -> Any:
        return noise[f"{module_id}/{name}"][chunk[module_id]]

    def statistics(module_id: str, column: str) -> tuple[Any, Any]:
        if step.learner._noise_requests is None:
            line = table_line(xp, inputs[f"statistics/{step.feed_of(module_id)}/{column}"], s)
            return line[0], line[1]
        step.statistics.add((step.feed_of(module_id), column))
        values = context.batch[module_id]
        for key in column.split("/"):
            values = values[key]
        values = xp.astype(values, step.learner.float_dtype)
        mean = context.mean(values, module_id)
        return mean, xp.sqrt(context.mean(xp.square(values - mean), module_id))

    context.noise = step.learner._noise_source(draw, chunk)
    context.statistics = statistics
    return weights


def nested_columns(columns: Mapping[str, Any]) -> dict[str, Any]:
    """``{"obs/x": a}`` as ``{"obs": {"x": a}}``."""
    out: dict[str, Any] = {}
    for path, value in columns.items():
        *parents, leaf = path.split("/")
        node = out
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return out


def table_line(xp: Any, table: Any, s: Any) -> Any:
    """Line ``s`` of a table; an index on the device is gathered, so that nothing synchronises."""
    if isinstance(s, int):
        return table[s]
    return xp.squeeze(xp.take(table, xp.reshape(s, (1,)), 0), 0)


def _expand(xp: Any, rows: Any, like: Any) -> Any:
    return xp.reshape(rows, (xp.shape(rows)[0], *([1] * (len(xp.shape(like)) - 1))))


def _ones(xp: Any, columns: Mapping[str, Any], dtype: Any) -> Any:
    shape = xp.shape(next(iter(columns.values())))
    return xp.ones(shape[:1], dtype=dtype)
