"""Replay buffer: the past as a bag to draw minibatches from.

Needs columns [B, ...] (or rollouts) that keep their names, shapes and dtypes. Refuses to draw from an empty bag. Draws
are a function of (seed, key) and of what is in the buffer: nothing to remember, the same after a restore.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ..errors import BatchError, ConfigError
from ..maths.noise import stream_id, uniforms
from ..state.schema import COUNT, SEED, Anything, Array, Nullable, OneOf, Real, Record, Schema, refuse
from ..state.tree import Plain, Tree, describe, join
from .columns import Columns, tree_leaves, tree_map
from .priorities import SumTree
from .replay_storage import ReplayStorage, storage_schema
from .rollout import Rollout

__all__ = ["ReplayBuffer", "row_columns"]

_ROLLOUT_COLUMNS = ("obs", "actions", "rewards", "next_obs", "terminateds", "truncateds")
_ATTEMPTS = 8
_NORMALISED = (
    "an earlier version saved them, and what they were cannot be found again; give the learners their part of the "
    "checkpoint (learner_group.set_state(tree['state']['learner'])) and let the buffer fill anew, or go on with the "
    "version that saved it"
)


def row_columns(columns: Mapping[str, Schema]) -> dict[str, Schema]:
    """What is kept of the rows of rollouts, of what their columns are; next observations stand apart."""
    return {name: columns[name] for name in _ROLLOUT_COLUMNS if name != "next_obs"}


class ReplayBuffer:
    """The newest ``capacity`` rows of experience.

    With ``n_step`` > 1 a drawn row looks ahead along its own environment: ``rewards`` becomes
    ``sum_k gamma^k r_{t+k}`` over m steps, ``next_obs`` and ``terminateds`` those of the last one, and ``discounts``
    ``gamma^m``; m is ``n_step``, or less where the episode or the record ends. The target is in every case
    ``rewards + discounts * (1 - terminateds) * V(next_obs)``.

    With ``prioritized`` rows are drawn in proportion to ``priority^alpha``; new ones have the highest priority so far.
    The answer then has ``weights = (num_rows * probability)^-beta``, divided by the largest of the draw, and
    ``indices`` for ``update_priorities``.

    Rows are kept as they came. What changes in the course of a run, statistics by which observations and rewards are
    normalised, is applied when they are drawn (``drawn``), so that an old row means what a new one does.

    Args:
        capacity: Rows kept.
        seed: Seed of the draws.
        n_step: Steps looked ahead.
        gamma: Discount, for ``n_step`` > 1.
        prioritized: Draw by priority.
        alpha: How much priorities count; 0: not at all.
        beta: How much of the bias is corrected; 1: all of it. May be given to ``sample`` instead.
        drawn: {column: what is done to its rows [n, ...] when they are drawn}; to rewards, before they are summed.

    References:
        Schaul et al., "Prioritized Experience Replay" (2016); Sutton and Barto, section 7.1 (n-step returns).
    """

    def __init__(
        self,
        capacity: int,
        seed: int,
        *,
        n_step: int = 1,
        gamma: float = 0.99,
        prioritized: bool = False,
        alpha: float = 0.6,
        beta: float = 0.4,
        drawn: Mapping[str, Callable[[Columns], Columns]] | None = None,
    ) -> None:
        if capacity < 1 or n_step < 1:
            raise ConfigError(f"capacity={capacity}, n_step={n_step}: expected at least 1")
        if not (0 <= gamma <= 1 and alpha >= 0 and 0 <= beta <= 1):
            raise ConfigError(f"gamma={gamma}, alpha={alpha}, beta={beta}: expected [0, 1], >= 0 and [0, 1]")
        self.capacity = capacity
        self.seed: int = seed
        self.n_step = n_step
        self.gamma = gamma
        self.alpha = alpha
        self.beta = beta
        self.num_added: int = 0
        self._drawn = dict(drawn or {})
        self._storage: ReplayStorage | None = None
        self._prioritized = prioritized
        self._tree: SumTree | None = None
        self._max_priority = 1.0

    def __len__(self) -> int:
        """Rows that can be drawn."""
        return 0 if self._storage is None else self._storage.num_valid

    @property
    def num_bytes(self) -> int:
        """Memory that the rows take."""
        return 0 if self._storage is None else self._storage.num_bytes

    def add(self, columns: Mapping[str, Columns], *, lanes: int = 1, valid: np.ndarray | None = None) -> None:
        """Append rows.

        Args:
            columns: [B, ...] each. Stored in the dtypes they come in.
            lanes: Rows are of so many environments in turn: row b of environment ``b % lanes``, in order of time. 1
                for rows of one environment, or that have nothing to do with each other. Always the same number.
            valid: bool[B]: False for rows that only link others and must not be drawn; None: all are experience.

        Raises:
            BatchError: Other columns, shapes or lanes than the first time.
        """
        counts = {leaf.shape[0] for column in columns.values() for leaf in tree_leaves(column)}
        if len(counts) != 1:
            raise BatchError(f"expected columns of one length, got lengths {sorted(counts)}")
        count = counts.pop()
        if count == 0:
            return
        storage = self._storage
        if storage is None:
            # n-step draws follow lanes around the ring, so that it must hold whole steps of all lanes.
            storage = self._storage = self._new_storage(lanes)
        if storage.lanes != lanes or count % lanes:
            raise BatchError(f"expected a multiple of {storage.lanes} rows of so many lanes, got {count} of {lanes}")
        mask = np.ones(count, np.bool_) if valid is None else np.asarray(valid, np.bool_)
        self.num_added += int(np.count_nonzero(mask))
        newest = max(count - storage.capacity, 0)
        kept = {name: tree_map(lambda leaf: leaf[newest:], column) for name, column in columns.items()}
        slots = storage.add(kept, mask[newest:])
        if self._tree is not None:
            self._tree.set(slots, np.where(mask[newest:], self._max_priority**self.alpha, 0.0))

    def set_lanes(self, lanes: int) -> None:
        """Go on with rows of another number of environments.

        The rows so far stay (the oldest few may not, to fill whole steps), with their priorities; nothing continues
        them, so that n-step draws of them look one step ahead.

        Args:
            lanes: As for ``add``, from now on.
        """
        old, old_tree = self._storage, self._tree
        if old is None or old.lanes == lanes:
            return
        storage = self._new_storage(lanes)
        rows = (old.position + np.arange(-old.fill, 0)) % old.capacity
        rows = rows[old.valid[rows]]
        count = min(rows.size // lanes * lanes, storage.capacity)
        rows = rows[rows.size - count :]
        self._storage = storage if count else None
        if not count:
            return
        columns = {name: old.take(name, rows) for name in old.columns}
        following = old.next_obs(rows)
        if following is not None:
            columns["next_obs"] = following
        slots = storage.add(columns, np.ones(count, np.bool_))
        if following is not None:
            storage.separate(slots, following)
        if self._tree is not None and old_tree is not None:
            self._tree.set(slots, old_tree[rows])

    def add_rollout(self, rollout: Rollout, names: tuple[str, ...] = _ROLLOUT_COLUMNS) -> None:
        """Append a rollout; rows that are no experience are kept as links and never drawn.

        Args:
            rollout: From an ``EnvRunner``, always with the same number of environments.
            names: Its columns that are kept.
        """
        columns = {
            name: tree_map(lambda leaf: leaf.reshape((-1, *leaf.shape[2:])), rollout.columns[name]) for name in names
        }
        self.add(columns, lanes=rollout.num_envs, valid=rollout.columns["valid"].reshape(-1))

    def sample(self, n: int, key: int, *, beta: float | None = None) -> dict[str, Columns]:
        """Draw rows, with replacement.

        Args:
            n: How many.
            key: Number of the draw (an update counter): the same key draws the same rows from the same buffer.
            beta: Instead of the buffer's.

        Returns:
            The columns [n, ...] as they were added, or as ``drawn`` makes them, ``next_obs`` included; for
            ``n_step`` > 1 also ``discounts`` float32[n]; if prioritized also ``weights`` float32[n] and ``indices``
            int64[n].

        Raises:
            BatchError: There is nothing to draw from.
        """
        storage = self._storage
        if storage is None or storage.num_valid == 0:
            raise BatchError(f"cannot draw {n} rows: the replay buffer is empty")
        slots = self._uniform(storage, n, key) if self._tree is None else self._by_priority(self._tree, n, key)
        batch = {name: self._take(storage, name, slots) for name in storage.columns}
        last = slots
        if self.n_step > 1:
            last, batch["rewards"], batch["discounts"] = self._look_ahead(storage, slots)
            for name in ("terminateds", "truncateds"):
                if name in batch:
                    batch[name] = storage.take(name, last)
        following = storage.next_obs(last)
        if following is not None:
            batch["next_obs"] = self._as_drawn("next_obs", following)
        if self._tree is not None:
            probability = self._tree[slots] / self._tree.total
            weights = (storage.num_valid * probability) ** -(self.beta if beta is None else beta)
            batch["weights"] = (weights / weights.max()).astype(np.float32)
            batch["indices"] = slots
        return batch

    def update_priorities(self, indices: np.ndarray, priorities: np.ndarray) -> None:
        """Set the priorities of drawn rows, for instance to ``|td_error| + 1e-6``.

        Args:
            indices: int64[n], from ``sample``, before anything else was added.
            priorities: float[n], positive.

        Raises:
            BatchError: Not a prioritized buffer; indices outside; a priority that is not positive and finite.
        """
        if self._tree is None or self._storage is None:
            raise BatchError("update_priorities needs a buffer with prioritized=True that has rows")
        indices, priorities = np.asarray(indices), np.asarray(priorities, np.float64)
        if indices.shape != priorities.shape or (indices < 0).any() or (indices >= self._storage.fill).any():
            raise BatchError(f"indices must lie in 0..{self._storage.fill - 1}, one per priority", column="indices")
        if not (np.isfinite(priorities).all() and (priorities > 0).all()):
            raise BatchError("priorities must be positive and finite", column="priorities")
        if priorities.size:
            self._max_priority = max(self._max_priority, float(priorities.max()))
            live = self._storage.valid[indices]
            self._tree.set(indices, np.where(live, priorities**self.alpha, 0.0))

    # ----------------------------------------------------------------------------------------------------- internals

    def _new_storage(self, lanes: int) -> ReplayStorage:
        if lanes < 1 or lanes > self.capacity:
            raise BatchError(f"lanes={lanes}: expected 1 to capacity={self.capacity}")
        storage = ReplayStorage(self.capacity // lanes * lanes, lanes)
        self._tree = SumTree(storage.capacity) if self._prioritized else None
        return storage

    def _uniform(self, storage: ReplayStorage, n: int, key: int) -> np.ndarray:
        """Uniform over valid rows: draw again where a row is not; after a few attempts, among the valid ones alone."""
        slots = np.zeros(n, np.int64)
        missing = np.arange(n)
        for attempt in range(_ATTEMPTS):
            slots[missing] = (self._noise(n, key, f"replay/{attempt}")[missing] * storage.fill).astype(np.int64)
            missing = missing[~storage.valid[slots[missing]]]
            if not missing.size:
                return slots
        valid = np.flatnonzero(storage.valid)
        slots[missing] = valid[(self._noise(n, key, "replay/rest")[missing] * valid.size).astype(np.int64)]
        return slots

    def _by_priority(self, tree: SumTree, n: int, key: int) -> np.ndarray:
        """Stratified: one row out of each n-th of the total priority."""
        return tree.find((np.arange(n) + self._noise(n, key, "replay/priorities")) * (tree.total / n))

    def _noise(self, n: int, key: int, stream: str) -> np.ndarray:
        return uniforms(self.seed, key, stream_id(stream), n, (), np.float64)

    def _take(self, storage: ReplayStorage, name: str, slots: np.ndarray) -> Columns:
        return self._as_drawn(name, storage.take(name, slots))

    def _as_drawn(self, name: str, rows: Columns) -> Columns:
        return self._drawn[name](rows) if name in self._drawn else rows

    def _look_ahead(self, storage: ReplayStorage, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Follow each row through up to ``n_step`` steps: last slot, discounted reward sum, discount behind it."""
        rewards = self._take(storage, "rewards", slots)
        total = rewards.astype(np.float64)
        discount = np.full(slots.shape, self.gamma)
        last = slots.copy()
        going = np.ones(slots.shape, np.bool_)
        for _ in range(self.n_step - 1):
            going &= ~self._done(storage, last) & storage.continues(last)
            following = (last + storage.lanes) % storage.capacity
            going &= storage.valid[following]
            if not going.any():
                break
            last = np.where(going, following, last)
            total += np.where(going, discount * self._take(storage, "rewards", last), 0.0)
            discount = np.where(going, discount * self.gamma, discount)
        return last, total.astype(rewards.dtype), discount.astype(np.float32)

    @staticmethod
    def _done(storage: ReplayStorage, slots: np.ndarray) -> np.ndarray:
        done = np.zeros(slots.shape, np.bool_)
        for name in ("terminateds", "truncateds"):
            if name in storage.columns:
                done |= storage.take(name, slots).astype(np.bool_)
        return done

    # -------------------------------------------------------------------------------------------------------- state

    def get_state(self) -> dict[str, Plain]:
        """Rows (as far as filled), position and priorities, in arrays of their own."""
        storage, tree = self._storage, self._tree
        return {
            "seed": self.seed,
            "capacity": self.capacity,
            "num_added": self.num_added,
            "max_priority": self._max_priority,
            "is_raw": True,
            "storage": None if storage is None else storage.get_state(),
            "priorities": None if tree is None or storage is None else tree[np.arange(storage.fill)],
        }

    def state_schema(self, columns: Mapping[str, Schema] | None = None) -> Record:
        """What ``set_state`` takes.

        Args:
            columns: What the rows are, [B, ...] each, without ``next_obs``; ``None``: those that are here, or any.
        """
        if columns is None and self._storage is not None:
            columns = self._storage.row_schema()

        def rule(state: Tree, path: str) -> None:
            storage, place = state["storage"], join(path, "priorities")
            if self._drawn and storage is not None and "is_raw" not in state:
                refuse(
                    join(path, "is_raw"),
                    "rows as the environments gave them",
                    "rows that were normalised when they were stored",
                    _NORMALISED,
                )
            if (state["priorities"] is not None) != (self._prioritized and storage is not None):
                refuse(place, f"prioritized={self._prioritized}", describe(state["priorities"]))
            if storage is not None and state["priorities"] is not None:
                Array((storage["fill"],), least=0.0).check(state["priorities"], place)
                if not np.array_equal(np.asarray(state["priorities"]) > 0, np.asarray(storage["valid"], np.bool_)):
                    refuse(place, "a positive one of every row that can be drawn, and 0 of the others", "others")

        fields: dict[str, Schema] = {
            "seed": SEED,
            "capacity": OneOf((self.capacity,)),
            "num_added": COUNT,
            "max_priority": Real(least=0.0),
            "is_raw": OneOf((True,)),
            "storage": Nullable(storage_schema(self.capacity, columns)),
            "priorities": Anything(),
        }
        return Record(fields, ("is_raw",), rule=rule, what="the state of a replay buffer")

    def set_state(self, state: Tree, *, is_checked: bool = False) -> None:
        """Become the buffer that was saved: the same draws for the same keys.

        Args:
            state: What ``get_state`` returned.
            is_checked: It fits ``state_schema``, which need not be asked again.

        Raises:
            StateError: Another capacity, priorities where there are none (or the other way round), or parts that do
                not fit each other; nothing has changed.
        """
        if not is_checked:
            self.state_schema().check(state, "")
        saved = state["storage"]
        self.seed, self.num_added = int(state["seed"]), int(state["num_added"])
        self._max_priority = float(state["max_priority"])
        self._storage, self._tree = None, None
        if saved is not None:
            self._storage = ReplayStorage.from_state(saved)
            if self._prioritized:
                self._tree = SumTree(self._storage.capacity)
                self._tree.set(np.arange(self._storage.fill), np.asarray(state["priorities"], np.float64))
