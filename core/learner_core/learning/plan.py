"""The host-made plan of an update: which rows each minibatch step takes.

The plan depends on the seed, the lifetime update index and the rows of every data shard, never on the backend or on
the number of learners, so every backend and every rank walks through the same minibatches.

A batch is its shards, one after the other; by default there is one. Every minibatch takes from each shard in proportion
to its rows, in an order of that shard's own. A learner that holds only some shards therefore knows, from the sizes of
the others, what the minibatches are and which of their rows are its own. docs/decisions/several-learners.md says why.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import BatchError, did_you_mean
from ..maths import noise

__all__ = [
    "MinibatchPlan",
    "RowOrder",
    "ShardRows",
    "even_shards",
    "make_plan",
    "shards_of",
    "shares_of",
    "statistics_of",
]

#: Rows of each data shard, of the only module or by module id.
ShardRows = Mapping[str, Sequence[int]] | Sequence[int]


@dataclass(frozen=True)
class MinibatchPlan:
    """Rows of every minibatch step of one module.

    Attributes:
        indices: int64[steps, minibatch], short steps padded with row 0.
        rows: int64[steps], how many of each line are real; 0 where the module takes no step.
        shares: int64[steps, shards], how many of each line are of which shard, in this order; ``None``: not known.
    """

    indices: np.ndarray
    rows: np.ndarray
    shares: np.ndarray | None = None

    @property
    def num_steps(self) -> int:
        """Number of lines."""
        return len(self.rows)

    def widened_to(self, minibatch: int) -> MinibatchPlan:
        """The plan with room for ``minibatch`` rows in every line."""
        extra = minibatch - self.indices.shape[1]
        if not extra:
            return self
        return MinibatchPlan(np.pad(self.indices, ((0, 0), (0, extra))), self.rows, self.shares)

    def padded_to(self, steps: int) -> MinibatchPlan:
        """The plan followed by empty steps, ``steps`` lines in all."""
        extra = steps - self.num_steps
        if extra <= 0:
            return self
        indices = np.concatenate([self.indices, np.zeros((extra, self.indices.shape[1]), np.int64)])
        shares = None if self.shares is None else np.pad(self.shares, ((0, extra), (0, 0)))
        return MinibatchPlan(indices, np.concatenate([self.rows, np.zeros(extra, np.int64)]), shares)

    def lines(self, start: int, stop: int) -> MinibatchPlan:
        """The steps start..stop-1."""
        shares = None if self.shares is None else self.shares[start:stop]
        return MinibatchPlan(self.indices[start:stop], self.rows[start:stop], shares)


def even_shards(num_rows: int, num_shards: int) -> list[int]:
    """Rows of each shard where nothing else is said: as even as can be, whole."""
    return [(k + 1) * num_rows // num_shards - k * num_rows // num_shards for k in range(num_shards)]


def shards_of(
    columns: Mapping[str, Mapping[str, np.ndarray]], num_shards: int, given: ShardRows | None
) -> dict[str, list[int]]:
    """module id -> rows of each of ``num_shards`` shards, which stand one after the other in the columns.

    Args:
        columns: checked columns.
        num_shards: how many there are here.
        given: ``shard_rows`` as the caller gave it: a list for the only module, {module id: list}, or ``None`` for
            shards as even as can be.

    Raises:
        BatchError: a list has the wrong length, or does not add up to the module's rows.
    """
    rows = {mid: len(next(iter(arrays.values()))) for mid, arrays in columns.items()}
    if given is None:
        return {mid: even_shards(count, num_shards) for mid, count in rows.items()}
    if not isinstance(given, Mapping):
        if len(rows) > 1:
            raise BatchError(f"shard_rows: there are rows of {', '.join(rows)}: give {{module_id: rows of each shard}}")
        given = dict.fromkeys(rows, given)
    for mid in given:
        if mid not in rows and any(given[mid]):
            raise BatchError(f"shard_rows: the batch has no rows of module {mid!r}.{did_you_mean(mid, list(rows))}")
    return {mid: _checked(given.get(mid), mid, count, num_shards) for mid, count in rows.items()}


def _checked(given: object, module_id: str, count: int, num_shards: int) -> list[int]:
    values = list(given) if isinstance(given, (Sequence, np.ndarray)) and not isinstance(given, str) else None
    whole = values is not None and all(
        isinstance(v, (int, np.integer)) and not isinstance(v, bool) and v >= 0 for v in values
    )
    if values is None or not whole or len(values) != num_shards or sum(values) != count:
        raise BatchError(
            f"shard_rows={given!r}: expected {num_shards} whole number{'s' if num_shards > 1 else ''}, the rows of "
            f"every data shard here, which add up to {count}",
            module_id=module_id,
        )
    return [int(v) for v in values]


@functools.lru_cache(maxsize=64)
def shares_of(shard_rows: tuple[int, ...], minibatch: int) -> np.ndarray:
    """How many rows each minibatch of one pass takes from each shard.

    After every step each shard has given its proportion of all rows so far, to within about a row: what it lacks is
    taken in whole rows, by largest remainders (of the lower shard where two are equal), in whole numbers throughout. So
    every step is full but the last, and the last empties every shard.

    Args:
        shard_rows: rows of each shard.
        minibatch: rows of a step.

    Returns:
        int64[steps, shards].
    """
    total, num_shards = sum(shard_rows), len(shard_rows)
    steps = -(-total // minibatch)
    shares = np.zeros((steps, num_shards), np.int64)
    given = [0] * num_shards
    for step in range(steps):
        done = min((step + 1) * minibatch, total)
        # What each shard lacks, in units of 1 / total rows.
        lacks = [rows * done - had * total for rows, had in zip(shard_rows, given, strict=True)]
        taken = [max(lack // total, 0) for lack in lacks]
        rest = done - step * minibatch - sum(taken)
        while rest:
            sign = 1 if rest > 0 else -1
            able = (k for k in range(num_shards) if (given[k] + taken[k] < shard_rows[k] if rest > 0 else taken[k]))
            best = max(able, key=lambda k: (sign * (lacks[k] - taken[k] * total), -k))
            taken[best] += sign
            rest -= sign
        shares[step] = taken
        given = [had + new for had, new in zip(given, taken, strict=True)]
    shares.flags.writeable = False
    return shares


@dataclass(frozen=True)
class RowOrder:
    """What decides the order of a batch's rows.

    Attributes:
        seed: the run's seed.
        update: lifetime index of this update.
        stream: stable number of the module, so that modules are shuffled independently.
        shuffle: a new permutation each epoch; else the rows in order.
    """

    seed: int
    update: int
    stream: int
    shuffle: bool = True


def make_plan(
    shard_rows: Sequence[int],
    *,
    minibatch: int,
    num_epochs: int,
    order: RowOrder,
    own: tuple[int, int] | None = None,
) -> MinibatchPlan:
    """Split a batch into minibatches, ``num_epochs`` times.

    Args:
        shard_rows: rows of each data shard (sequences, for sequence batches).
        minibatch: rows a step; a last short step is used, not dropped.
        num_epochs: passes over the batch.
        order: of the rows.
        own: (first, one after the last) shard that is held here: indices count from its first row on, and are 0 for
            rows of other shards; ``None``: all are.
    """
    sizes, num_rows = tuple(shard_rows), sum(shard_rows)
    if not (num_rows and num_epochs):
        empty = np.zeros((0, len(sizes)), np.int64)
        return MinibatchPlan(np.zeros((0, minibatch), np.int64), np.zeros(0, np.int64), empty)
    shares = shares_of(sizes, minibatch) if len(sizes) > 1 else _whole_shares(num_rows, minibatch)
    per_epoch = len(shares)
    starts = np.cumsum(shares, axis=1) - shares  # where a shard's rows begin in each line
    indices = np.zeros((num_epochs, per_epoch * minibatch), np.int64)
    offset = 0
    for shard in range(*(own or (0, len(sizes)))):
        size, taken = sizes[shard], shares[:, shard]
        name = order.stream if len(sizes) == 1 else noise.stream_id(f"{order.stream}/{shard}")
        # The i-th row that is drawn from this shard stands in this place of the flat plan.
        first = np.arange(per_epoch) * minibatch + starts[:, shard] - (np.cumsum(taken) - taken)
        place = np.arange(size) + np.repeat(first, taken)
        for epoch in range(num_epochs):
            rows = np.arange(size)
            if order.shuffle and size:
                rows = noise.permutation(order.seed, order.update * 4096 + epoch, name, size)
            indices[epoch, place] = offset + rows
        offset += size
    return MinibatchPlan(
        indices.reshape(num_epochs * per_epoch, minibatch),
        np.tile(shares.sum(axis=1), num_epochs),
        np.tile(shares, (num_epochs, 1)),
    )


def _whole_shares(num_rows: int, minibatch: int) -> np.ndarray:
    """``shares_of`` for one shard."""
    steps = -(-num_rows // minibatch)
    shares = np.full((steps, 1), minibatch, np.int64)
    shares[-1] = num_rows - (steps - 1) * minibatch
    return shares


def statistics_of(
    column: np.ndarray,
    plan: MinibatchPlan,
    mask: np.ndarray | None,
    reduce: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Mean and population standard deviation of a column over the rows of every minibatch that count.

    Args:
        column: [rows, ...].
        plan: the minibatches.
        mask: float[rows] or [rows, T], 1 where a row counts; ``None``: every row does.
        reduce: the sum of a float64 array over all learners that hold rows of it; called twice.

    Returns:
        float64[steps, 2]; zeros for a step without rows.
    """
    weights = np.ones(column.shape[:1]) if mask is None else mask.astype(np.float64)
    weights = np.broadcast_to(weights.reshape(*weights.shape, *[1] * (column.ndim - weights.ndim)), column.shape)
    if not len(column):  # other learners have rows
        column, weights = np.zeros((1, *column.shape[1:])), np.zeros((1, *column.shape[1:]))
    values, weights = column.astype(np.float64).reshape(len(column), -1), weights.reshape(len(column), -1)
    real = (np.arange(plan.indices.shape[1]) < plan.rows[:, None])[..., None]
    picked, counted = values[plan.indices], weights[plan.indices] * real
    sums = reduce(np.stack([counted.sum(axis=(1, 2)), (picked * counted).sum(axis=(1, 2))], axis=1))
    total = np.maximum(sums[:, 0], 1.0)
    mean = sums[:, 1] / total
    deviation = picked - mean[:, None, None]
    squares = reduce((np.square(deviation) * counted).sum(axis=(1, 2)))
    return np.stack([mean, np.sqrt(squares / total)], axis=1)
