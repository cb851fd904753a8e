"""Actions of several kinds at once (Dict and Tuple spaces) as one row of numbers, and back.

Batches, rollouts and recordings hold such an action as float32[K]: the numbers of its parts one after the other, in the
space's order, a choice as its number. float32 holds whole numbers up to 2**24. Needs a gymnasium space. Refuses parts
that have no distribution, and choices beyond 2**24. docs/decisions/observations-and-actions.md says why.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from .errors import SpaceError
from .xp import ArrayTree

if TYPE_CHECKING:
    from gymnasium import Space

__all__ = ["ActionPart", "NestedActions", "action_parts", "has_parts", "nested", "row_of", "with_open_boxes"]

_Path = tuple[str | int, ...]
#: Whole numbers from here on are not all float32s.
_LARGEST: Final = 1 << 24


@dataclass(frozen=True)
class ActionPart:
    """One part of an action.

    Attributes:
        path: keys of Dicts and places in Tuples that lead to it.
        space: its own space.
        start: where in the row its numbers begin.
        size: how many there are.
    """

    path: _Path
    space: Space[object]
    start: int
    size: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the part alone."""
        return tuple(self.space.shape or ())

    @property
    def is_box(self) -> bool:
        """Whether its numbers are any in between, and no choices."""
        return type(self.space).__name__ == "Box"

    def of(self, rows: np.ndarray) -> np.ndarray:
        """[B, *shape] of rows [B, K], in the part's own dtype."""
        piece = rows[..., self.start : self.start + self.size].reshape((*rows.shape[:-1], *self.shape))
        return piece.astype(self.space.dtype if self.is_box else np.int64)


def has_parts(space: Space[object]) -> bool:
    """Whether actions of the space have several parts: a Dict or a Tuple."""
    return type(space).__name__ in ("Dict", "Tuple")


def action_parts(space: Space[object]) -> list[ActionPart]:
    """The parts of an action, in the order of their numbers.

    Args:
        space: a Dict or Tuple of Box, Discrete, MultiDiscrete, MultiBinary, and of Dicts and Tuples of these.

    Raises:
        SpaceError: there is none, or a part of another kind.
    """
    found: list[ActionPart] = []
    start = 0
    for path, leaf in _leaves(space, ()):
        kind = type(leaf).__name__
        where = f"action space {space}: {'/'.join(map(str, path))}"
        if kind not in ("Box", "Discrete", "MultiDiscrete", "MultiBinary"):
            raise SpaceError(f"{where}: expected Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple, got {leaf}")
        if kind == "Box" and not np.issubdtype(leaf.dtype, np.floating):
            raise SpaceError(f"{where}: a Box of {leaf.dtype} has no distribution; use MultiDiscrete")
        if kind in ("Discrete", "MultiDiscrete"):
            sizes = np.asarray(leaf.n if kind == "Discrete" else leaf.nvec, np.int64)
            starts = np.abs(np.asarray(getattr(leaf, "start", 0), np.int64))
            if int((sizes + starts).max()) >= _LARGEST:
                raise SpaceError(f"{where}: choices beyond {_LARGEST} cannot stand in a row of float32 numbers")
        size = math.prod(leaf.shape or ())
        found.append(ActionPart(path, leaf, start, size))
        start += size
    if not start:
        raise SpaceError(f"action space {space} has no parts")
    return found


def nested(space: Space[object], take: Callable[[ActionPart], object]) -> ArrayTree:
    """A nested action: ``take(part)`` of every part, in the dicts and tuples of the space."""
    by_path = {part.path: part for part in action_parts(space)}
    return _rebuilt(space, (), lambda path: take(by_path[path]))


def row_of(space: Space[object], action: ArrayTree) -> npt.NDArray[np.float32]:
    """float32[K] of one action as an environment takes it."""
    row = np.empty(sum(part.size for part in action_parts(space)), np.float32)
    for part in action_parts(space):
        value = action
        for key in part.path:
            value = value[key]
        row[part.start : part.start + part.size] = np.asarray(value, np.float64).reshape(-1)
    return row


def with_open_boxes(space: Space[object]) -> Space[object]:
    """The space with the bounds of its boxes taken away: what a policy that samples beyond them is held to."""
    from gymnasium import spaces

    def opened(part: ActionPart) -> Space[object]:
        return spaces.Box(-np.inf, np.inf, part.shape, part.space.dtype) if part.is_box else part.space

    by_path = {part.path: opened(part) for part in action_parts(space)}
    return _rebuilt_space(space, (), by_path)


class NestedActions(Sequence[ArrayTree]):
    """The actions of N environments, from rows: each by its index, or batched, as a vector environment takes them.

    Args:
        space: of one environment.
        rows: [N, K], within the bounds.
    """

    #: As of an array of rows: an item is no number.
    ndim: Final = 2

    def __init__(self, space: Space[object], rows: np.ndarray) -> None:
        self._space = space
        self._rows = rows

    @functools.cached_property
    def batched(self) -> ArrayTree:
        """The parts [N, *shape] in the dicts and tuples of the space."""
        return nested(self._space, lambda part: part.of(self._rows))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, lane: slice | int) -> ArrayTree:
        row = self._rows[lane]
        return nested(self._space, lambda part: part.of(row)[()])

    def __iter__(self) -> Iterator[ArrayTree]:
        return (self[lane] for lane in range(len(self)))


def _leaves(space: Space[object], path: _Path) -> Iterator[tuple[_Path, Space[object]]]:
    kind = type(space).__name__
    if kind == "Dict":
        for key, inner in space.spaces.items():
            yield from _leaves(inner, (*path, key))
    elif kind == "Tuple":
        for place, inner in enumerate(space.spaces):
            yield from _leaves(inner, (*path, place))
    else:
        yield path, space


def _rebuilt(space: Space[object], path: _Path, make: Callable[[_Path], object]) -> ArrayTree:
    kind = type(space).__name__
    if kind == "Dict":
        return {key: _rebuilt(inner, (*path, key), make) for key, inner in space.spaces.items()}
    if kind == "Tuple":
        return tuple(_rebuilt(inner, (*path, place), make) for place, inner in enumerate(space.spaces))
    return make(path)


def _rebuilt_space(space: Space[object], path: _Path, leaves: dict[_Path, Space[object]]) -> Space[object]:
    kind = type(space).__name__
    if kind == "Dict":
        return type(space)({key: _rebuilt_space(inner, (*path, key), leaves) for key, inner in space.spaces.items()})
    if kind == "Tuple":
        return type(space)([_rebuilt_space(inner, (*path, i), leaves) for i, inner in enumerate(space.spaces)])
    return leaves[path]
