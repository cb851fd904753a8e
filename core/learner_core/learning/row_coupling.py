"""Whether the rows of a minibatch know of each other in a module's forward pass, tried out at build.

Several learners each compute a part of a minibatch's rows. If a row's outputs depend on which others are there, they
would compute something else than one learner, and something else for every number of them. Layers that take their sums
over all learners (``row_totals``) are left out; everything else of the kind is refused by the module's name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ConfigError
from .batch import ColumnSpec
from .explore import dummy_inputs
from .framework_modules import FrameworkModule
from .minibatch import nested_columns

if TYPE_CHECKING:
    from .learner import Learner
    from .step import UpdateStep

__all__ = ["check_rows_apart"]

_ROWS = 8
#: precision -> difference that is no rounding any more, for numbers of about 1.
_TOLERANCE = {"float64": 1e-7, "float32": 1e-3, "bfloat16": 0.1}

Outputs = dict[str, np.ndarray]


def check_rows_apart(learner: Learner, step: UpdateStep, specs: Mapping[str, Mapping[str, ColumnSpec]]) -> None:
    """Refuse modules whose rows depend on each other, or whose buffers do not come together from parts.

    Args:
        learner: one of several; its state does not change.
        step: its step.
        specs: module id -> column -> what it holds.

    Raises:
        ConfigError: names the module and what depends.
    """
    inputs = dummy_inputs(learner, step, specs, _ROWS)
    tolerance = _TOLERANCE[learner.config.precision]
    for mid, plan in step.plans.items():
        if plan.shared_by:
            continue  # it computes nothing
        whole = _forward(learner, step, inputs, mid, slice(0, _ROWS))
        again = _forward(learner, step, inputs, mid, slice(0, _ROWS))
        if any(not _close(whole[name], again[name], 0.0) for name in whole):
            continue  # dropout and the like: no two forward passes are alike
        halves = [_forward(learner, step, inputs, mid, part) for part in (slice(0, 4), slice(4, _ROWS))]
        for name, value in whole.items():
            first, second = (half[name] for half in halves)
            if name.startswith("buffers/"):
                together = (first.astype(np.float64) + second.astype(np.float64)) / 2.0
            elif value.ndim and value.shape[0] == _ROWS and first.shape[:1] == (_ROWS // 2,):
                together = np.concatenate([first, second])
            else:
                continue
            if not _close(value, together, tolerance):
                raise ConfigError(
                    f"{learner._ring.size} learners cannot train module {mid!r} as one would: its {name} of a row "
                    "depends on the other rows of the minibatch, of which each learner has a part. BatchNorm of Torch "
                    "and BatchNormalization of Keras are computed over all learners; write it with them, or train with "
                    "one learner"
                )


def _forward(learner: Learner, step: UpdateStep, inputs: Mapping[str, Any], mid: str, rows: slice) -> Outputs:
    """Name -> array of what ``forward_train`` answers for these rows; new buffers under "buffers/"."""
    module, prefix = step.plans[mid].module, f"data/{step.feed_of(mid)}/"
    columns = {key.removeprefix(prefix): value[rows] for key, value in inputs.items() if key.startswith(prefix)}
    with step.context() as context:
        step._bind(learner._carry, context, *step.lines(inputs, 0))
        context.batch[mid] = nested_columns(columns)
        holds = isinstance(module, FrameworkModule)
        if holds:
            module.holds_statistics = True
        try:
            outputs = learner.module[mid].forward_train(context.batch[mid])
        finally:
            if holds:
                module.holds_statistics = False
        found: dict[str, np.ndarray] = learner.backend.to_numpy(dict(_leaves(outputs)))
        return found


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, f"{path}/{key}" if path else str(key))
    elif hasattr(tree, "shape"):
        yield path, tree


def _close(first: np.ndarray, second: np.ndarray, tolerance: float) -> bool:
    one, other = first.astype(np.float64), second.astype(np.float64)
    scale = max(1.0, float(np.abs(one).max(initial=0.0)))
    return np.allclose(one, other, rtol=0.0, atol=tolerance * scale, equal_nan=True)
