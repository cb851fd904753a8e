"""A learner's place among several: which rows of a minibatch are its own, and the sum over all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .plan import MinibatchPlan

__all__ = ["ALONE", "Ring"]


def _alone(flat: Any) -> Any:
    return flat


@dataclass(frozen=True)
class Ring:
    """Learners that compute one update together, each on its slice of every minibatch.

    Attributes:
        rank: this learner.
        size: number of learners.
        reduce: ``reduce(flat) -> flat``: the sum over all learners of a vector of the backend, called by all of them.
    """

    rank: int = 0
    size: int = 1
    reduce: Callable[[Any], Any] = _alone

    def width(self, minibatch: int) -> int:
        """Most rows that one learner takes of a minibatch."""
        return -(-minibatch // self.size)

    def bounds(self, rows: Any) -> tuple[Any, Any]:
        """This learner's slice of a line with ``rows`` rows (int or int array): (first, one after the last)."""
        return self.rank * rows // self.size, (self.rank + 1) * rows // self.size

    def share(self, plan: MinibatchPlan) -> MinibatchPlan:
        """This learner's slice of every line of a plan, which may be empty."""
        if self.size == 1:
            return plan
        first, last = self.bounds(plan.rows)
        width = self.width(plan.indices.shape[1])
        columns = np.minimum(first[:, None] + np.arange(width), plan.indices.shape[1] - 1)
        indices = np.take_along_axis(plan.indices, columns, axis=1) if plan.num_steps else plan.indices[:, :width]
        rows = last - first
        # Padding points to row 0, as in every plan.
        return MinibatchPlan(np.where(np.arange(width) < rows[:, None], indices, 0), rows)


#: The place of a learner that has no others beside it.
ALONE = Ring()
