"""Sums over all rows of a minibatch where each of several learners holds a part of them, inside a forward pass.

A layer that normalises by the statistics of a minibatch (BatchNorm) couples its rows. Learners that share a minibatch
compute what one would compute only if such a layer takes its sums over all of them, and their gradients likewise. A
backend's adapter asks ``rows`` for that while a step of several learners is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ...errors import CompileError, ConfigError
from ..blueprint import Blueprint
from ..framework_modules import FrameworkModule, RowTotals
from ..ranks import Ranks

__all__ = ["check_row_layers", "totals_over_learners"]


def row_layers(blueprint: Blueprint) -> dict[str, tuple[str, ...]]:
    """module id -> its layers that couple rows and can take their sums over all learners."""
    modules = {mid: plan.module for mid, plan in blueprint.learning.items()}
    found = {mid: module.row_layers for mid, module in modules.items() if isinstance(module, FrameworkModule)}
    return {mid: layers for mid, layers in found.items() if layers}


def check_row_layers(blueprint: Blueprint, ranks: Ranks) -> str:
    """Why a step of several learners cannot be compiled: it takes sums over them in its middle; "" where it does not.

    Raises:
        ConfigError: minibatches are accumulated from parts, which are other parts where there are several learners.
    """
    for mid, layers in row_layers(blueprint).items():
        if blueprint.accumulate > 1:
            raise ConfigError(
                f"accumulate={blueprint.accumulate} with {ranks.size} learners: {layers[0]} of module {mid!r} "
                "would normalise by the rows of one part, and parts are not the same for any number of learners; use "
                "accumulate=1"
            )
        return (
            f"{layers[0]} of module {mid!r} normalises by a whole minibatch, of which each of {ranks.size} learners "
            "has a part: its sums are taken over the learners between two operations of the forward pass"
        )
    return ""


@contextmanager
def totals_over_learners(blueprint: Blueprint, ranks: Ranks, sizes: Mapping[str, int] | None) -> Iterator[None]:
    """While it is open, layers that couple rows take their sums over all learners.

    Args:
        blueprint: of one of several learners.
        ranks: its place among them.
        sizes: module id -> this learner's rows of the minibatch; ``None`` while a step is traced.

    Raises:
        CompileError: the step is being traced and has such layers.
    """
    layers = row_layers(blueprint)
    if layers and sizes is None:
        raise CompileError(check_row_layers(blueprint, ranks))
    modules = [(mid, blueprint.plans[mid].module) for mid in layers]
    try:
        for mid, module in modules:
            assert sizes is not None and isinstance(module, FrameworkModule)
            module.rows = RowTotals(sizes[blueprint.feed_of(mid)] > 0, ranks.total)
        yield
    finally:
        for _, module in modules:
            assert isinstance(module, FrameworkModule)
            module.rows = None
