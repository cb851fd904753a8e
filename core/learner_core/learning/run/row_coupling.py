"""Whether the rows of a minibatch know of each other in a module's forward pass, tried out at build.

Several learners each compute a part of a minibatch's rows. If a row's outputs depend on which others are there, they
would compute something else than one learner, and something else for every number of them. Layers that take their sums
over all learners (``row_totals``) are left out; everything else of the kind is refused by the module's name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from ...errors import ConfigError
from ...xp import Array, ArrayTree
from ..arrays import StepInputs
from ..batch import nested_columns
from ..framework_modules import FrameworkModule
from ..ranks import Ranks
from ..rl_module import RLModule
from .explore import Trial

__all__ = ["check_rows_apart"]

_ROWS = 8
#: precision -> difference that is no rounding any more, for numbers of about 1.
_TOLERANCE = {"float64": 1e-7, "float32": 1e-3, "bfloat16": 0.1}

Outputs = dict[tuple[str, ...], np.ndarray]


def check_rows_apart(trial: Trial, ranks: Ranks) -> None:
    """Refuse modules whose rows depend on each other, or whose buffers do not come together from parts.

    Args:
        trial: of one of several learners; its state does not change.
        ranks: its place among them.

    Raises:
        ConfigError: names the module and what depends.
    """
    inputs = trial.inputs(_ROWS)
    tolerance = _TOLERANCE[trial.learner.config.precision]
    for mid, plan in trial.blueprint.learning.items():
        if plan.shared_by:
            continue  # it computes nothing
        whole = _forward(trial, inputs, mid, slice(0, _ROWS))
        again = _forward(trial, inputs, mid, slice(0, _ROWS))
        if any(not _close(whole[name], again[name], 0.0) for name in whole):
            continue  # dropout and the like: no two forward passes are alike
        halves = [_forward(trial, inputs, mid, part) for part in (slice(0, 4), slice(4, _ROWS))]
        for path, value in whole.items():
            first, second = (half[path] for half in halves)
            if path[0] == "buffers":
                together = (first.astype(np.float64) + second.astype(np.float64)) / 2.0
            elif value.ndim and value.shape[0] == _ROWS and first.shape[:1] == (_ROWS // 2,):
                together = np.concatenate([first, second])
            else:
                continue
            if not _close(value, together, tolerance):
                raise ConfigError(
                    f"{ranks.size} learners cannot train module {mid!r} as one would: its {'/'.join(path)} of a row "
                    "depends on the other rows of the minibatch, of which each learner has a part. BatchNorm of Torch "
                    "and BatchNormalization of Keras are computed over all learners; write it with them, or train with "
                    "one learner"
                )


def _forward(trial: Trial, inputs: StepInputs, mid: str, rows: slice) -> Outputs:
    """path -> array of what ``forward_train`` answers for these rows; new buffers under "buffers"."""
    learner, step = trial.learner, trial.step()
    module = trial.blueprint.plans[mid].module
    columns = {name: column[rows] for name, column in inputs.columns[trial.blueprint.feed_of(mid)].items()}
    with step.context() as context:
        step.bind(trial.line(inputs), context)
        context.batch[mid] = nested_columns(columns)
        with _holding_statistics(module):
            outputs = learner.module[mid].forward_train(context.batch[mid])
        leaves = dict(_leaves(outputs))
        host = learner.backend.to_numpy(dict(enumerate(leaves.values())))
        return {path: host[position] for position, path in enumerate(leaves)}


@contextmanager
def _holding_statistics(module: RLModule) -> Iterator[None]:
    """While it is open, layers that couple rows use the statistics that they hold."""
    if not isinstance(module, FrameworkModule):
        yield
        return
    module.holds_statistics = True
    try:
        yield
    finally:
        module.holds_statistics = False


def _leaves(tree: ArrayTree, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Array]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, (*path, str(key)))
    elif hasattr(tree, "shape"):
        yield path, tree


def _close(first: np.ndarray, second: np.ndarray, tolerance: float) -> bool:
    one, other = first.astype(np.float64), second.astype(np.float64)
    scale = max(1.0, float(np.abs(one).max(initial=0.0)))
    return np.allclose(one, other, rtol=0.0, atol=tolerance * scale, equal_nan=True)
