"""Refuses NaN and infinity from environments, before anything learns from them.

Needs one step's observations and rewards. The usual case costs one sum per array.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..errors import EnvError
from .columns import Columns, tree_paths
from .lanes import Step

__all__ = ["check_finite"]


def check_finite(obs: Columns, step: Step | None, *, whose: Callable[[int], str]) -> None:
    """Check what the environments gave.

    Args:
        obs: Observations [N, ...].
        step: Rewards and final observations; None after a reset.
        whose: Lane -> name of the environment, for the error.

    Raises:
        EnvError: A value that is not finite.
    """
    # A sum is finite if its terms are (it may overflow: then look closer).
    with np.errstate(over="ignore", invalid="ignore"):
        if step is not None and not math.isfinite(step.rewards.sum()):
            _refuse("reward", step.rewards, whose)
        for path, leaf in tree_paths(obs, "obs"):
            if leaf.dtype.kind == "f" and not math.isfinite(leaf.sum()):
                _refuse(f"observation ({path})", leaf, whose)
    if step is not None and step.finals:
        for lane, final in step.finals.items():
            for path, leaf in tree_paths(final, "obs"):
                if leaf.dtype.kind == "f" and not np.isfinite(leaf).all():
                    _refuse(f"final observation ({path})", leaf[np.newaxis], whose, lane)


def _refuse(what: str, values: np.ndarray, whose: Callable[[int], str], lane: int = 0) -> None:
    """Raise for the first bad row; ``lane`` is the first row's."""
    bad = ~np.isfinite(values.reshape(values.shape[0], -1)).all(axis=1)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise EnvError(f"{whose(lane + row)}: gave a {what} that is not finite: {values[row]}")
