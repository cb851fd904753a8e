"""A learner's place among several: which rows of a minibatch are its own, and the sum over all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .meeting import Meeting
from .plan import MinibatchPlan

__all__ = ["ALONE", "Ring"]


def _alone(flat: Any, *, name: str = "") -> Any:
    return flat


@dataclass(frozen=True)
class Ring:
    """Learners that compute one update together, each on its slice of every minibatch.

    All have the whole batch, and a slice is the ``rank``-th of ``size`` equal ones; or, where there is a ``meeting``,
    each learner has rows of its own, which are its data shards, and its slice is what the plan takes from those.

    Attributes:
        rank: this learner.
        size: number of learners.
        reduce: ``reduce(flat, name=...) -> flat``: the sum over all learners of a vector of the backend, called by all
            of them; ``Collective.allreduce_flat_``.
        meeting: where learners that hold different rows tell each other what must be known of all rows.
    """

    rank: int = 0
    size: int = 1
    reduce: Callable[..., Any] = _alone
    meeting: Meeting | None = None

    def total(self, flat: Any) -> Any:
        """The sum over all learners of a short vector, besides the gradients'."""
        # Under a name of its own for every length: collectives remember what they know of a name.
        return self.reduce(flat, name=f"rows_{flat.shape[0]}")

    def width(self, minibatch: int) -> int:
        """Rows that one learner takes of a minibatch when the learners' shares are even, rounded up."""
        return -(-minibatch // self.size)

    def room(self, minibatch: int) -> int:
        """Rows that a compiled step of one learner is made for: an even share, and an eighth more where shares differ.

        Learners with rows of their own hardly ever have equally many; a few more do not need another executable.
        """
        even = self.width(minibatch)
        return even if self.meeting is None else min(even + -(-even // 8), minibatch)

    def own_shards(self, num_shards: int) -> tuple[int, int] | None:
        """(first, one after the last) shard that this learner holds; ``None``: it has the whole batch."""
        if self.meeting is None:
            return None
        each = num_shards // self.size
        return self.rank * each, (self.rank + 1) * each

    def bounds(self, plan: MinibatchPlan) -> tuple[np.ndarray, np.ndarray]:
        """This learner's slice of every line: (first, one after the last), int64[steps] each."""
        edges = self._edges(plan)
        return edges[:, self.rank], edges[:, self.rank + 1]

    def extent(self, plan: MinibatchPlan) -> tuple[np.ndarray, np.ndarray]:
        """(fewest, most) rows that any learner takes of every line; the same on all of them."""
        counts = np.diff(self._edges(plan), axis=1)
        return counts.min(axis=1), counts.max(axis=1)

    def share(self, plan: MinibatchPlan) -> MinibatchPlan:
        """This learner's slice of every line of a plan, which may be empty."""
        if self.size == 1:
            return plan
        first, last = self.bounds(plan)
        rows = last - first
        width = max(self.width(plan.indices.shape[1]), int(rows.max(initial=0)))
        columns = np.minimum(first[:, None] + np.arange(width), plan.indices.shape[1] - 1)
        indices = np.take_along_axis(plan.indices, columns, axis=1) if plan.num_steps else plan.indices[:, :width]
        # Padding points to row 0, as in every plan.
        return MinibatchPlan(np.where(np.arange(width) < rows[:, None], indices, 0), rows)

    def _edges(self, plan: MinibatchPlan) -> np.ndarray:
        """int64[steps, size + 1]: where the learners' slices of every line begin and end."""
        if self.meeting is None or plan.shares is None:
            edges: np.ndarray = np.arange(self.size + 1) * plan.rows[:, None] // self.size
            return edges
        ends = np.pad(np.cumsum(plan.shares, axis=1), ((0, 0), (1, 0)))
        return ends[:, :: plan.shares.shape[1] // self.size]


#: The place of a learner that has no others beside it.
ALONE = Ring()
