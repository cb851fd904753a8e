"""Sums over all rows of a minibatch where each of several learners holds a part of them, inside a forward pass.

A layer that normalises by the statistics of a minibatch (BatchNorm) couples its rows. Learners that share a minibatch
compute what one would compute only if such a layer takes its sums over all of them, and their gradients likewise. A
backend's adapter asks ``rows`` for that while a step of several learners is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import CompileError, ConfigError
from .framework_modules import FrameworkModule

if TYPE_CHECKING:
    from .step import UpdateStep

__all__ = ["RowTotals", "check_row_layers", "totals_over_learners"]


@dataclass(frozen=True)
class RowTotals:
    """What a layer must know of the other learners' rows.

    Attributes:
        has_rows: whether this learner has rows of the minibatch; else those that it computes on must not count.
        total: the sum over the learners of a flat float vector of the backend, called by all of them in the same order.
            It may overwrite its argument, and knows nothing of gradients.
    """

    has_rows: bool
    total: Callable[[Any], Any]


def row_layers(step: UpdateStep) -> dict[str, tuple[str, ...]]:
    """module id -> its layers that couple rows and can take their sums over all learners."""
    modules = {mid: plan.module for mid, plan in step.plans.items()}
    found = {mid: module.row_layers for mid, module in modules.items() if isinstance(module, FrameworkModule)}
    return {mid: layers for mid, layers in found.items() if layers}


def check_row_layers(step: UpdateStep) -> str:
    """Why a step of several learners cannot be compiled: it takes sums over them in its middle; "" where it does not.

    Raises:
        ConfigError: minibatches are accumulated from parts, which are other parts where there are several learners.
    """
    for mid, layers in row_layers(step).items():
        if step.accumulate > 1:
            raise ConfigError(
                f"accumulate={step.accumulate} with {step.learner._ring.size} learners: {layers[0]} of module {mid!r} "
                "would normalise by the rows of one part, and parts are not the same for any number of learners; use "
                "accumulate=1"
            )
        size = step.learner._ring.size
        return (
            f"{layers[0]} of module {mid!r} normalises by a whole minibatch, of which each of {size} learners has a "
            "part: its sums are taken over the learners between two operations of the forward pass"
        )
    return ""


@contextmanager
def totals_over_learners(step: UpdateStep, sizes: Mapping[str, int] | None) -> Iterator[None]:
    """While it is open, layers that couple rows take their sums over all learners.

    Args:
        step: of one of several learners.
        sizes: module id -> this learner's rows of the minibatch; ``None`` while a step is traced.

    Raises:
        CompileError: the step is being traced and has such layers.
    """
    layers = row_layers(step)
    if layers and sizes is None:
        raise CompileError(check_row_layers(step))
    try:
        for mid in layers:
            assert sizes is not None
            step.plans[mid].module.rows = RowTotals(sizes[step.feed_of(mid)] > 0, step.learner._ring.total)
        yield
    finally:
        for mid in layers:
            step.plans[mid].module.rows = None
