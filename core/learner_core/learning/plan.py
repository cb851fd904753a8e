"""The host-made plan of an update: which rows each minibatch step takes.

The plan depends on the seed, the lifetime update index and the batch size, never on the backend or on the number of
learners, so every backend and every rank walks through the same minibatches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..maths import noise

__all__ = ["MinibatchPlan", "make_plan", "statistics_of"]


@dataclass(frozen=True)
class MinibatchPlan:
    """Rows of every minibatch step of one module.

    Attributes:
        indices: int64[steps, minibatch], short steps padded with row 0.
        rows: int64[steps], how many of each line are real; 0 where the module takes no step.
    """

    indices: np.ndarray
    rows: np.ndarray

    @property
    def num_steps(self) -> int:
        """Number of lines."""
        return len(self.rows)

    def widened_to(self, minibatch: int) -> MinibatchPlan:
        """The plan with room for ``minibatch`` rows in every line."""
        extra = minibatch - self.indices.shape[1]
        if not extra:
            return self
        return MinibatchPlan(np.pad(self.indices, ((0, 0), (0, extra))), self.rows)

    def padded_to(self, steps: int) -> MinibatchPlan:
        """The plan followed by empty steps, ``steps`` lines in all."""
        extra = steps - self.num_steps
        if extra <= 0:
            return self
        indices = np.concatenate([self.indices, np.zeros((extra, self.indices.shape[1]), np.int64)])
        return MinibatchPlan(indices, np.concatenate([self.rows, np.zeros(extra, np.int64)]))


def make_plan(
    *, num_rows: int, minibatch: int, num_epochs: int, shuffle: bool, seed: int, update: int, stream: int
) -> MinibatchPlan:
    """Split ``num_rows`` rows into minibatches, ``num_epochs`` times.

    Args:
        num_rows: rows in the batch (sequences, for sequence batches).
        minibatch: rows a step; a last short step is used, not dropped.
        num_epochs: passes over the batch.
        shuffle: a new permutation each epoch; else the rows in order.
        seed: the run's seed.
        update: lifetime index of this update.
        stream: stable number of the module, so that modules are shuffled independently.
    """
    if not (num_rows and num_epochs):
        return MinibatchPlan(np.zeros((0, minibatch), np.int64), np.zeros(0, np.int64))
    per_epoch = -(-num_rows // minibatch)
    indices = np.zeros((num_epochs, per_epoch * minibatch), np.int64)
    for epoch in range(num_epochs):
        if shuffle:
            indices[epoch, :num_rows] = noise.permutation(seed, update * 4096 + epoch, stream, num_rows)
        else:
            indices[epoch, :num_rows] = np.arange(num_rows)
    rows = np.full((num_epochs, per_epoch), minibatch, np.int64)
    rows[:, -1] = num_rows - (per_epoch - 1) * minibatch
    return MinibatchPlan(indices.reshape(num_epochs * per_epoch, minibatch), rows.reshape(-1))


def statistics_of(column: np.ndarray, plan: MinibatchPlan, mask: np.ndarray | None) -> np.ndarray:
    """Mean and population standard deviation of a column over the rows of every minibatch that count.

    Args:
        column: [rows, ...].
        plan: the minibatches.
        mask: float[rows] or [rows, T], 1 where a row counts; ``None``: every row does.

    Returns:
        float64[steps, 2]; zeros for a step without rows.
    """
    weights = np.ones(column.shape[:1]) if mask is None else mask.astype(np.float64)
    weights = np.broadcast_to(weights.reshape(*weights.shape, *[1] * (column.ndim - weights.ndim)), column.shape)
    values, weights = column.astype(np.float64).reshape(len(column), -1), weights.reshape(len(column), -1)
    real = (np.arange(plan.indices.shape[1]) < plan.rows[:, None])[..., None]
    picked, counted = values[plan.indices], weights[plan.indices] * real
    total = np.maximum(counted.sum(axis=(1, 2)), 1.0)
    mean = (picked * counted).sum(axis=(1, 2)) / total
    deviation = picked - mean[:, None, None]
    std = np.sqrt((np.square(deviation) * counted).sum(axis=(1, 2)) / total)
    return np.stack([mean, std], axis=1)
