"""The step of several learners, cut where their gradients meet.

``gradient`` ends with one flat vector: every gradient, then losses, stop margins, metrics and buffers, each already
weighed by this learner's share of the minibatch's rows. The vectors of all learners add up to what one learner would
have computed, so ``apply`` takes the sum and goes on as if it were alone, and every learner arrives at the same state.
docs/decisions/several-learners.md says why.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ...xp import Array, DType, Namespace
from ..arrays import Carry, StepInputs
from ..ranks import Ranks
from .context import StepContext
from .line import StepLine
from .minibatch import total_count
from .row_totals import totals_over_learners
from .step import UpdateStep

__all__ = ["SplitStep"]


class SplitStep:
    """An UpdateStep in two halves.

    Args:
        step: the whole step.
        ranks: this learner's place among the others.
    """

    def __init__(self, step: UpdateStep, ranks: Ranks) -> None:
        self._step = step
        self._ranks = ranks
        # Order of the vector after the gradients: (kind, key, shape). Found by ``gradient``, the same on every learner.
        self._tail: list[tuple[str, Any, tuple[int, ...]]] = []

    def gradient(
        self,
        s: int | Array,
        carry: Carry,
        inputs: StepInputs,
        *,
        masked: bool = True,
        sizes: Mapping[str, int] | None = None,
    ) -> Array:
        """This learner's addend; arguments as in ``UpdateStep.body``, ``inputs`` with this learner's rows.

        Returns:
            float[n], n the same on every learner and in every step.
        """
        step, xp, blueprint = self._step, self._step.xp, self._step.blueprint
        reads_values = sizes is not None
        with step.context(reads_values=reads_values) as context, totals_over_learners(blueprint, self._ranks, sizes):
            line = StepLine.of(xp, s, carry, inputs, masked=masked, sizes=sizes)
            gradients, losses = step.gradient_half(line, context)
            parts: list[Array] = []
            for mid, plan in blueprint.learning.items():
                for optimizer in plan.optimizers.values():
                    pieces = [xp.reshape(gradients[mid][name], (-1,)) for name in optimizer.layout.names]
                    parts += [_own(context, mid, piece) for piece in pieces]
            tail: list[tuple[str, Any, tuple[int, ...]]] = []
            for kind, key, value in _rest(context, losses):
                tail.append((kind, key, tuple(xp.shape(value))))
                parts.append(xp.reshape(xp.astype(value, context.float_dtype), (-1,)))
            self._tail = tail
            return xp.concat(parts, 0)

    def apply(self, s: int | Array, carry: Carry, inputs: StepInputs, flat: Array, *, eager: bool = False) -> Carry:
        """The next carry, from the sum of all learners' vectors; the same on each of them."""
        step, xp, blueprint = self._step, self._step.xp, self._step.blueprint
        with step.context(reads_values=eager) as context:
            line = StepLine.of(xp, s, carry, inputs)
            step.bind(line, context)
            sizes = [o.layout.size for plan in blueprint.learning.values() for o in plan.optimizers.values()]
            sizes += [math.prod(shape) for _, _, shape in self._tail]
            pieces = iter(xp.split(flat, sizes, 0))
            raw: dict[str, dict[str, Array]] = {}
            gradients: dict[str, dict[str, Array]] = {}
            for mid in {**blueprint.feeds, **blueprint.learning}:
                context.batch[mid], context.mask[mid] = {}, None
                context.count[mid] = total_count(line, context, mid)
            for mid, plan in blueprint.learning.items():
                raw[mid], gradients[mid] = {}, {}
                for name, optimizer in plan.optimizers.items():
                    raw[mid][name] = next(pieces)
                    gradients[mid].update(optimizer.layout.split(xp, raw[mid][name]))
            losses: dict[str, Array] = {}
            for (kind, key, shape), piece in zip(self._tail, pieces, strict=True):
                value = xp.reshape(piece, shape)
                if kind == "loss":
                    losses[key] = value
                elif kind == "stop":
                    context.stop[key] = value
                elif kind == "metric":
                    context.metrics[key] = (value, None)
                else:
                    mid, name = key
                    new = value if kind == "buffer" else _whole(xp, value, carry.modules[mid].buffers[name].dtype)
                    context.new_buffers.setdefault(mid, {})[name] = new
            return step.apply_half(line, context, gradients, raw, losses)


def _rest(context: StepContext, losses: Mapping[str, Array]) -> list[tuple[str, Any, Array]]:
    """(kind, key, addend) of everything but the gradients. Metrics and margins are shares already."""
    xp = context.xp
    rest: list[tuple[str, Any, Array]] = []
    rest += [("loss", mid, _own(context, mid, losses[mid])) for mid in sorted(losses)]
    rest += [("stop", mid, context.stop[mid]) for mid in sorted(context.stop)]
    rest += [("metric", key, context.metrics[key][0]) for key in sorted(context.metrics)]
    for mid in sorted(context.new_buffers):
        total = context.count[mid]
        share = context.share[mid] / xp.maximum(total, xp.ones_like(total))
        for name in sorted(context.new_buffers[mid]):
            value, kind = context.new_buffers[mid][name], "buffer"
            if value.dtype not in _floats(xp):
                value, kind = _words(xp, value), "whole"
            value = xp.astype(value, context.float_dtype)
            rest.append((kind, (mid, name), _own(context, mid, value * share)))
    return rest


def _own(context: StepContext, module_id: str, value: Array) -> Array:
    """The value, or zero where no row of the module is this learner's: it may have computed anything then."""
    counts = context.share[module_id] > 0
    if context.reads_values and bool(counts):
        return value
    return context.xp.where(counts, value, context.xp.zeros_like(value))


#: Whole numbers of buffers travel as two of which float32 holds a weighted mean to less than a half.
_WORD = 65536.0


def _floats(xp: Namespace) -> tuple[DType, ...]:
    return xp.float32, xp.float64, getattr(xp, "bfloat16", xp.float32)


def _words(xp: Namespace, value: Array) -> Array:
    """float64[2, ...] of whole numbers: what they are over 65536, and the rest."""
    wide = xp.astype(value, xp.float64)
    high = xp.floor(wide / _WORD)
    return xp.stack([high, wide - high * _WORD], 0)


def _whole(xp: Namespace, words: Array, dtype: DType) -> Array:
    """The whole numbers back, from the mean of all learners' words."""
    words = xp.floor(xp.astype(words, xp.float64) + 0.5)
    return xp.astype(words[0] * _WORD + words[1], dtype)
