"""The rows of one (micro-)batch as hooks see them: gathered, masked, with their noise and statistics.

Needs the step's line of the index plan. Changes nothing but the context that it fills.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping

from ...xp import Array, DType, Namespace
from ..batch import column_of, nested_columns
from .context import StepContext
from .line import StepLine, table_line

__all__ = ["load_batch", "total_count"]


def load_batch(line: StepLine, context: StepContext, part: int) -> dict[str, Array | None]:
    """Gather a (micro-)batch.

    Args:
        line: the step.
        context: is filled.
        part: which micro-batch.

    Returns:
        module id -> weight of its loss in the minibatch's mean, ``None`` for 1.
    """
    xp, blueprint, dtype = context.xp, context.blueprint, context.float_dtype
    weights: dict[str, Array | None] = {}
    chunks: dict[str, slice] = {}
    for mid in blueprint.feeds:
        rows = _own_rows(line, context, mid)
        size = xp.shape(rows)[0]
        take = slice(part * size // blueprint.accumulate, (part + 1) * size // blueprint.accumulate)
        # Fewer rows than micro-batches: this one takes a row that does not count.
        spare = take.start == take.stop
        take = slice(0, 1) if spare else take
        chunks[mid] = take
        rows = rows[take]
        columns = {name: xp.take(column, rows, 0) for name, column in line.inputs.columns[mid].items()}
        valid = line.ints[blueprint.table.ints["rows", mid]]
        mask = columns.pop("loss_mask", None)
        # One row that does not count is padding, too.
        padded = line.masked or (line.sizes is not None and not line.sizes[mid])
        if padded or spare:
            first = xp.arange(take.stop - take.start) + take.start
            inside = xp.astype(first < (valid * 0 if spare else valid), dtype)
            mask = inside if mask is None else mask * _expand(xp, inside, mask)
        count = xp.sum(mask) if mask is not None else xp.astype(valid, dtype)
        if mask is None and blueprint.accumulate > 1:
            count = xp.asarray(float(take.stop - take.start), dtype=dtype)
        context.mask[mid], context.count[mid] = mask, count
        columns["loss_mask"] = mask if mask is not None else _ones(xp, columns, dtype)
        nested = nested_columns(columns)
        context.batch[mid] = nested if context.probe is None else context.probe.watched(mid, nested)
        whole = xp.astype(line.ints[blueprint.table.ints["count", mid]], dtype)
        weights[mid] = None if context.num_parts == 1 else count / xp.maximum(whole, xp.ones_like(whole))
    for mid, plan in blueprint.learning.items():
        if feed := plan.rows_from:
            context.batch[mid], context.mask[mid], context.count[mid] = (
                context.batch[feed],
                context.mask[feed],
                context.count[feed],
            )
            weights[mid], chunks[mid] = weights[feed], chunks[feed]
    for mid, plan in blueprint.learning.items():
        if plan.shared_by:
            # What a module without rows computes on does not count.
            sharers = [one for one in plan.shared_by if one in blueprint.learning]
            counts = [(context.count[one], total_count(line, context, one)) for one in sharers]
            own = [xp.where(total > 0, count, xp.zeros_like(count)) for count, total in counts]
            context.count[mid] = functools.reduce(operator.add, own)
    context.noise = functools.partial(_noise, line, context, chunks)
    context.statistics = functools.partial(_statistics, line, context)
    return weights


def total_count(line: StepLine, context: StepContext, module_id: str) -> Array:
    """float[]: rows (timesteps) of the whole minibatch that count for a module, over all learners."""
    blueprint = context.blueprint
    plan = blueprint.learning.get(module_id) or blueprint.feeds[module_id]
    sharers = [blueprint.learning[mid].rows_from for mid in plan.shared_by if mid in blueprint.learning]
    columns = [blueprint.table.ints["count", mid] for mid in sharers or [plan.rows_from]]
    return functools.reduce(operator.add, [context.xp.astype(line.ints[i], context.float_dtype) for i in columns])


def _own_rows(line: StepLine, context: StepContext, module_id: str) -> Array:
    """int64[rows]: rows of the columns that are this step's; a module without any takes one, which its gate ignores."""
    rows = table_line(context.xp, line.inputs.indices[module_id], line.s)
    return rows if line.sizes is None else rows[: max(line.sizes[module_id], 1)]


def _noise(
    line: StepLine,
    context: StepContext,
    chunks: Mapping[str, slice],
    module_id: str,
    name: str,
    shape: tuple[int, ...],
) -> Array:
    """This (micro-)batch's noise."""
    chunk = chunks[module_id]
    if context.probe is not None:
        return context.probe.noise_of(module_id, name, chunk, shape)
    drawn = table_line(context.xp, line.inputs.noise[module_id][name], line.s)
    if line.sizes is not None:
        drawn = drawn[: max(line.sizes[context.blueprint.feed_of(module_id)], 1)]
    return drawn[chunk]


def _statistics(line: StepLine, context: StepContext, module_id: str, path: str) -> tuple[Array, Array]:
    """(mean, standard deviation) of a column over the whole minibatch; while it is probed over the rows at hand."""
    feed = context.blueprint.feed_of(module_id)
    if context.probe is None:
        found = table_line(context.xp, line.inputs.statistics[feed][path], line.s)
        return found[0], found[1]
    context.probe.statistics.add((feed, path))
    values = context.xp.astype(column_of(context.batch[module_id], path), context.float_dtype)
    mean = context.mean(values, module_id)
    return mean, context.xp.sqrt(context.mean(context.xp.square(values - mean), module_id))


def _expand(xp: Namespace, rows: Array, like: Array) -> Array:
    return xp.reshape(rows, (xp.shape(rows)[0], *([1] * (len(xp.shape(like)) - 1))))


def _ones(xp: Namespace, columns: Mapping[str, Array], dtype: DType) -> Array:
    shape = xp.shape(next(iter(columns.values())))
    return xp.ones(shape[:1], dtype=dtype)
