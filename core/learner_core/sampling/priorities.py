"""A sum tree: numbers by index, and draws in proportion to them, for many indices at once.

Needs non-negative finite priorities. Refuses others. Sums are recomputed from the children, never updated by
differences, so rounding cannot pile up.
"""

from __future__ import annotations

import numpy as np

from ..errors import BatchError

__all__ = ["SumTree"]


class SumTree:
    """Priorities of ``capacity`` rows, all 0 at first.

    A heap in one array: node k is the sum of nodes 2k and 2k+1, the rows are the leaves from ``size`` on.

    Args:
        capacity: Number of rows.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.size: int = 1 << max(capacity - 1, 1).bit_length()
        self._nodes = np.zeros(2 * self.size, np.float64)

    @property
    def total(self) -> float:
        """Sum of all priorities."""
        return float(self._nodes[1])

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """Priorities of rows, float64[n]."""
        result: np.ndarray = self._nodes[self.size + np.asarray(indices)]
        return result

    def set(self, indices: np.ndarray, priorities: np.ndarray) -> None:
        """Set priorities; of an index given twice the last one counts.

        Args:
            indices: int64[n].
            priorities: float64[n], not negative.

        Raises:
            BatchError: A priority is negative or not finite.
        """
        if not (np.isfinite(priorities).all() and (priorities >= 0).all()):
            raise BatchError("priorities must be finite and not negative", column="priorities")
        nodes = self.size + np.asarray(indices, np.int64)
        self._nodes[nodes] = priorities
        while nodes.size and nodes[0] > 1:
            nodes = np.unique(nodes >> 1)
            self._nodes[nodes] = self._nodes[2 * nodes] + self._nodes[2 * nodes + 1]

    def find(self, positions: np.ndarray) -> np.ndarray:
        """The rows in which positions on [0, total) fall when priorities are laid end to end.

        Args:
            positions: float64[n].

        Returns:
            int64[n]; a row of priority 0 is never found.
        """
        positions = positions.astype(np.float64)
        nodes = np.ones(positions.shape, np.int64)
        while nodes.size and nodes[0] < self.size:
            left = 2 * nodes
            below = self._nodes[left]
            # Rounding may leave a position just beyond the last row: what has nothing is never entered.
            go_right = (positions >= below) & (self._nodes[left + 1] > 0)
            positions = np.where(go_right, positions - below, positions)
            nodes = left + go_right
        return nodes - self.size
