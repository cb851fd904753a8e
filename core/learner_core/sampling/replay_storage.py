"""A ring of rows in which the next observation is stored only where it cannot be read off the next row.

Needs rows of ``lanes`` environments in order of time, then lane: row i + lanes continues row i. Most next observations
are then the following row's observation; the others (an episode ended and the environment was reset at once, a lane
was restarted, rows that continue nothing) stand in a small table beside. An image buffer so takes half the memory.
Refuses columns that change their name, shape or dtype.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..errors import BatchError, ConfigError
from ..state.memory import copy_into
from ..state.schema import Anything, Array, Int, MapOf, Record, Schema, as_array, refuse
from ..state.tree import Plain, Tree, describe, join
from .columns import Columns, columns_schema, tree_leaves, tree_map, tree_paths

__all__ = ["ReplayStorage", "storage_schema"]


class ReplayStorage:
    """Rows by slot.

    Args:
        capacity: Rows at most, a multiple of ``lanes``.
        lanes: How many environments' rows are interleaved.
    """

    def __init__(self, capacity: int, lanes: int) -> None:
        if capacity < lanes or capacity % lanes:
            raise ConfigError(f"capacity={capacity}: expected a multiple of lanes={lanes}")
        self.capacity = capacity
        self.lanes = lanes
        self.position: int = 0
        self.fill: int = 0
        self.valid: np.ndarray = np.zeros(capacity, np.bool_)
        self.num_valid: int = 0
        self.columns: dict[str, Columns] = {}
        self._head_next: Columns = None
        # Slot -> row of the table beside; -1 where the next row has it. The table grows as needed, freed rows first.
        self._beside = np.full(capacity, -1, np.int64)
        self._table: Columns = None
        self._free: list[int] = []

    # ------------------------------------------------------------------------------------------------------ writing

    def add(self, columns: Mapping[str, Columns], valid: np.ndarray) -> np.ndarray:
        """Append rows, over the oldest ones when full.

        Args:
            columns: [B, ...] each, ``next_obs`` among them or not; B a multiple of ``lanes`` and at most ``capacity``.
            valid: bool[B], rows that are experience.

        Returns:
            int64[B], the slots written.
        """
        count, lanes = valid.shape[0], self.lanes
        following = columns.get("next_obs")
        stored = {name: column for name, column in columns.items() if name != "next_obs"}
        self._check(stored, following, count)
        slots = (self.position + np.arange(count)) % self.capacity
        previous = (self.position + np.arange(-lanes, 0)) % self.capacity if self.fill else slots[:0]
        self._release(slots)
        self.num_valid += int(np.count_nonzero(valid)) - int(np.count_nonzero(self.valid[slots]))
        self.valid[slots] = valid
        for name, column in stored.items():
            tree_map(lambda leaf, rows: leaf.__setitem__(slots, rows), self.columns[name], column)
        if following is not None:
            obs = stored["obs"]
            if previous.size and count <= self.capacity - lanes:
                self._keep_beside(previous, self._head_next, tree_map(lambda leaf: leaf[:lanes], obs))
            inner = tree_map(lambda leaf: leaf[: count - lanes], following)
            self._keep_beside(slots[: count - lanes], inner, tree_map(lambda leaf: leaf[lanes:], obs))
            self._head_next = tree_map(lambda leaf: np.array(leaf[count - lanes :]), following)
        self.position = int((self.position + count) % self.capacity)
        self.fill = min(self.fill + count, self.capacity)
        return slots

    def _check(self, stored: dict[str, Columns], following: Columns, count: int) -> None:
        if not self.columns:
            if following is not None and "obs" not in stored:
                raise BatchError("next_obs without obs", column="next_obs")
            self.columns = {name: self._allocate(column, self.capacity) for name, column in stored.items()}
        elif (self._head_next is None) != (following is None) or set(stored) != set(self.columns):
            raise BatchError(f"expected the columns {sorted(self.columns)}, as in the first rows, got {sorted(stored)}")
        if following is not None and [leaf.shape for leaf in tree_leaves(following)] != [
            leaf.shape for leaf in tree_leaves(stored["obs"])
        ]:
            raise BatchError("expected the shapes of obs", column="next_obs")
        for name, column in stored.items():
            for (path, mine), (_, rows) in zip(tree_paths(self.columns[name], name), tree_paths(column), strict=True):
                if rows.shape != (count, *mine.shape[1:]) or not np.can_cast(rows.dtype, mine.dtype, "same_kind"):
                    raise BatchError(
                        f"expected {mine.dtype}[{count}, {', '.join(map(str, mine.shape[1:]))}], got "
                        f"{rows.dtype}{list(rows.shape)}",
                        column=path,
                    )

    @staticmethod
    def _allocate(column: Columns, capacity: int) -> Columns:
        # np.zeros takes address space, not memory: pages come into being when they are written.
        return tree_map(lambda leaf: np.zeros((capacity, *leaf.shape[1:]), leaf.dtype), column)

    def _keep_beside(self, slots: np.ndarray, following: Columns, next_row_obs: Columns) -> None:
        """Store the next observations of those slots for which the next row does not show it."""
        if not slots.size:
            return
        differs = np.zeros(slots.size, np.bool_)
        for kept, shown in zip(tree_leaves(following), tree_leaves(next_row_obs), strict=True):
            differs |= (_as_bytes(kept) != _as_bytes(shown.astype(kept.dtype, copy=False))).any(axis=1)
        rows = np.flatnonzero(differs & self.valid[slots])
        if rows.size:
            places = self._take_places(rows.size, following)
            self._beside[slots[rows]] = places
            tree_map(lambda leaf, new: leaf.__setitem__(places, new[rows]), self._table, following)

    def separate(self, slots: np.ndarray, following: Columns) -> None:
        """Let nothing continue these rows, whatever the following row shows: their next observations stand beside."""
        rows = np.flatnonzero(self._beside[slots] < 0)
        if rows.size:
            places = self._take_places(rows.size, following)
            self._beside[slots[rows]] = places
            tree_map(lambda leaf, new: leaf.__setitem__(places, new[rows]), self._table, following)

    def _take_places(self, count: int, like: Columns) -> np.ndarray:
        size = 0 if self._table is None else tree_leaves(self._table)[0].shape[0]
        if len(self._free) < count:
            larger = max(64, 2 * size, size + count)
            grown = self._allocate(like, larger)
            if self._table is not None:
                tree_map(lambda leaf, old: leaf.__setitem__(slice(size), old), grown, self._table)
            self._table = grown
            self._free.extend(range(larger - 1, size - 1, -1))
        return np.array([self._free.pop() for _ in range(count)], np.int64)

    def _release(self, slots: np.ndarray) -> None:
        places = self._beside[slots]
        used = places[places >= 0]
        if used.size:
            self._free.extend(int(place) for place in used)
            self._beside[slots] = -1

    # ------------------------------------------------------------------------------------------------------ reading

    def take(self, name: str, slots: np.ndarray) -> Columns:
        """Rows of a column, copied: [n, ...]."""
        return tree_map(lambda leaf: leaf[slots], self.columns[name])

    def next_obs(self, slots: np.ndarray) -> Columns:
        """The true next observations of rows, copied: [n, ...]; None if the buffer has none."""
        if self._head_next is None:
            return None
        found = self.take("obs", (slots + self.lanes) % self.capacity)
        age = self.age(slots)
        newest = np.flatnonzero(age < self.lanes)
        if newest.size:
            heads = self.lanes - 1 - age[newest]
            tree_map(lambda leaf, head: leaf.__setitem__(newest, head[heads]), found, self._head_next)
        places = self._beside[slots]
        kept = np.flatnonzero(places >= 0)
        if kept.size:
            tree_map(lambda leaf, table: leaf.__setitem__(kept, table[places[kept]]), found, self._table)
        return found

    def age(self, slots: np.ndarray) -> np.ndarray:
        """How many rows were written after these, int64[n]."""
        result: np.ndarray = (self.position - 1 - slots) % self.capacity
        return result

    def continues(self, slots: np.ndarray) -> np.ndarray:
        """bool[n]: the following row of the lane is there and goes on from this one's next observation."""
        result: np.ndarray = (self.age(slots) >= self.lanes) & (self._beside[slots] < 0)
        return result

    @property
    def num_bytes(self) -> int:
        """Memory that filled rows take, next observations included."""
        rows = sum(leaf.nbytes // self.capacity * self.fill for c in self.columns.values() for leaf in tree_leaves(c))
        table = 0 if self._table is None else sum(leaf.nbytes for leaf in tree_leaves(self._table))
        return rows + table

    # -------------------------------------------------------------------------------------------------------- state

    def get_state(self) -> dict[str, Plain]:
        """Filled rows as arrays of their own, and where the ring stands."""
        slots = np.flatnonzero(self._beside >= 0)
        places = self._beside[slots]
        return {
            "capacity": self.capacity,
            "lanes": self.lanes,
            "position": self.position,
            "fill": self.fill,
            "valid": self.valid[: self.fill].copy(),
            "columns": {n: tree_map(lambda leaf: leaf[: self.fill].copy(), c) for n, c in self.columns.items()},
            "head_next": None if self._head_next is None else tree_map(np.array, self._head_next),
            "beside_slots": slots,
            "beside": None if not slots.size else tree_map(lambda leaf: leaf[places], self._table),
        }

    def row_schema(self) -> dict[str, Schema]:
        """What rows must be to come in here: [B, ...] each."""
        examples = {name: tree_map(lambda leaf: leaf[0], column) for name, column in self.columns.items()}
        return {name: columns_schema(example, (None,), exactly=True) for name, example in examples.items()}

    @classmethod
    def from_state(cls, state: Tree) -> ReplayStorage:
        """Storage as it was saved: a state that fits ``storage_schema``."""
        storage = cls(int(state["capacity"]), int(state["lanes"]))
        fill, position = int(state["fill"]), int(state["position"])
        for name, column in state["columns"].items():
            storage.columns[name] = cls._allocate(column, storage.capacity)
            tree_map(_fill, storage.columns[name], column)
        storage.fill, storage.position = fill, position
        storage.valid[:fill] = state["valid"]
        storage.num_valid = int(np.count_nonzero(storage.valid))
        if state["head_next"] is not None:
            storage._head_next = tree_map(np.array, state["head_next"])
        slots = np.asarray(state["beside_slots"], np.int64)
        if slots.size:
            places = storage._take_places(slots.size, state["beside"])
            storage._beside[slots] = places
            tree_map(lambda leaf, rows: leaf.__setitem__(places, rows), storage._table, state["beside"])
        return storage


def storage_schema(capacity: int, columns: Mapping[str, Schema] | None) -> Record:
    """What ``ReplayStorage.from_state`` takes.

    Args:
        capacity: Rows at most, of any number of lanes.
        columns: What the rows are, [B, ...] each, without ``next_obs``; ``None``: any.
    """
    fields: dict[str, Schema] = {
        "capacity": Int(1, capacity),
        "lanes": Int(1, capacity),
        "position": Int(0, capacity - 1),
        "fill": Int(1, capacity),
        "valid": Array((None,), np.bool_),
        "columns": MapOf(Anything()) if columns is None else Record(columns),
        "head_next": Anything(),
        "beside_slots": Array((None,), np.int64, least=0),
        "beside": Anything(),
    }

    def rule(state: Tree, path: str) -> None:
        fill, lanes, size, position = (state[name] for name in ("fill", "lanes", "capacity", "position"))
        if size != capacity // lanes * lanes or fill > size or fill % lanes or position % lanes:
            refuse(join(path, "fill"), f"whole steps of {lanes} lanes in {capacity} rows", f"fill={fill}, {size} rows")
        if (position != fill % size and fill < size) or position >= size:
            refuse(join(path, "position"), f"the place behind {fill} rows of {size}", str(position))
        Array((fill,), np.bool_).check(state["valid"], join(path, "valid"))
        for name, column in state["columns"].items():
            for place, leaf in tree_paths(column, f"{join(path, 'columns')}/{name}"):
                if as_array(leaf, place).shape[:1] != (fill,):
                    refuse(place, f"{fill} rows", f"shape {np.shape(leaf)}")
        _check_following(state, path, columns)

    return Record(fields, rule=rule)


def _check_following(state: Tree, path: str, columns: Mapping[str, Schema] | None) -> None:
    """Next observations: of the newest step of all lanes, and of rows that the following row does not show."""
    slots, table, head = np.asarray(state["beside_slots"]), state["beside"], state["head_next"]
    if head is None and columns is None and not slots.size and table is None:
        return
    if "obs" not in state["columns"]:
        refuse(join(path, "head_next"), "None, for there are no observations", describe(head))
    shown = columns_schema(tree_map(lambda leaf: np.asarray(leaf)[0], state["columns"]["obs"]), (None,), exactly=True)
    _check_rows(head, shown, state["lanes"], join(path, "head_next"))
    if len(np.unique(slots)) != slots.size or (slots.size and slots.max() >= state["fill"]):
        refuse(join(path, "beside_slots"), f"different slots below {state['fill']}", "others")
    if (table is None) != (not slots.size):
        refuse(join(path, "beside"), f"{slots.size} rows, None for 0", describe(table))
    if table is not None:
        _check_rows(table, shown, slots.size, join(path, "beside"))


def _check_rows(columns: Columns, schema: Schema, rows: int, path: str) -> None:
    schema.check(columns, path)
    for place, leaf in tree_paths(columns, path):
        if np.shape(leaf)[0] != rows:
            refuse(place, f"{rows} rows", f"shape {np.shape(leaf)}")


def _fill(leaf: np.ndarray, rows: np.ndarray) -> None:
    copy_into(leaf[: len(rows)], rows)


def _as_bytes(rows: np.ndarray) -> np.ndarray:
    """Rows as bytes, uint8[B, n]: equality of numbers would take -0.0 for 0.0."""
    flat = np.ascontiguousarray(rows).reshape(rows.shape[0], -1)
    return flat.view(np.uint8).reshape(rows.shape[0], -1)
