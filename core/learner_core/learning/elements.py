"""The elements of a network's arrays, numbered as a network channels last has them: what every rule starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

__all__ = [
    "Elements", "Grid", "Lost", "NotFollowedError", "NotMapsError", "Shape", "axis_blocks", "fresh", "grid_of",
    "is_whole", "kept_along", "lines", "order_along", "settled",
]  # fmt: skip

Shape = tuple[int, ...]


class NotFollowedError(Exception):
    """The order of an operation's results is not known; its text says why."""


class NotMapsError(NotFollowedError):
    """Something is read as maps that a network channels last would not have as maps."""


@dataclass(frozen=True)
class Elements:
    """The elements of an array that a network computes from observations.

    Attributes:
        numbers: int64, the array's shape: the place of each element with channels last, counted over the whole array
            (the batch too); equal numbers are copies of one element.
        shifted: with channels last the array might have another shape (axes of length 1 elsewhere), though the
            numbers are in order.
        raw: observations' own elements, perhaps moved: their layout is the environment's.
        shuffled: channels were spread over places or gathered from them, which frameworks do in orders of their own:
            the elements are known, but lines of them are others channels last.
        cut: an axis was cut into axes that are nested otherwise channels last: nothing but maps can be read there.
    """

    numbers: np.ndarray
    shifted: bool = False
    raw: bool = False
    shuffled: bool = False
    cut: bool = False

    @property
    def shape(self) -> Shape:
        """Of the array."""
        return tuple(self.numbers.shape)

    @property
    def in_order(self) -> bool:
        """Whether both layouts have these elements in one order."""
        return bool(np.array_equal(self.numbers.reshape(-1), np.arange(self.numbers.size)))

    @property
    def plain(self) -> bool:
        """Whether both layouts have this array alike."""
        return not self.shifted and not self.shuffled and not self.cut and self.in_order


@dataclass(frozen=True)
class Lost:
    """An array computed from observations in a way that could not be followed.

    Attributes:
        reason: which operation, and why.
    """

    reason: str


def fresh(shape: Sequence[int], *, raw: bool = False) -> Elements:
    """A plain array."""
    return Elements(np.arange(int(np.prod(shape, dtype=np.int64))).reshape(tuple(shape)), raw=raw)


def settled(numbers: np.ndarray, *, shifted: bool, raw: bool, shuffled: bool = False, cut: bool = False) -> Elements:
    """Numbers without gaps; and no longer shifted where the shape leaves no doubt."""
    if numbers.size:
        present = np.zeros(int(numbers.max()) + 1, bool)
        present[numbers] = True
        numbers = np.asarray((np.cumsum(present) - 1)[numbers])
    elements = Elements(numbers, shifted, raw, shuffled, cut and numbers.ndim > 2)
    if shifted and (numbers.ndim <= 2 or 1 not in numbers.shape) and elements.in_order:
        return replace(elements, shifted=False)
    return elements


def axis_blocks(before: Shape, after: Shape) -> list[tuple[list[int], list[int]]]:
    """Axes that become axes: the smallest runs of both shapes that hold as many elements."""
    blocks: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        old, new = [i] if i < len(before) else [], [j] if j < len(after) else []
        i, j = i + len(old), j + len(new)
        left, right = (int(np.prod([s[k] for k in run])) for s, run in ((before, old), (after, new)))
        while left != right:
            if left < right:
                left *= before[i]
                old.append(i)
                i += 1
            else:
                right *= after[j]
                new.append(j)
                j += 1
        blocks.append((old, new))
    return blocks


def is_whole(elements: Elements, axis: int) -> bool:
    """Whether each line along an axis holds elements that follow each other channels last, in some order."""
    numbers = elements.numbers
    return bool((numbers.max(axis) - numbers.min(axis) == numbers.shape[axis] - 1).all())


def order_along(elements: Elements, axis: int) -> np.ndarray | None:
    """The place, channels last, of each entry along an axis; ``None`` where it is not the same everywhere.

    Returns:
        int64 [length of the axis]
    """
    lines = np.moveaxis(elements.numbers, axis, -1)
    lines = lines.reshape(-1, lines.shape[-1])
    sorted_lines = np.argsort(lines, axis=1, kind="stable")
    first = sorted_lines[:1]
    if not len(lines) or (sorted_lines != first).any():
        return None
    if (np.diff(np.take_along_axis(lines, sorted_lines, 1), axis=1) <= 0).any():
        return None
    return np.argsort(first[0])


def lines(elements: Elements, what: str) -> Elements:
    """Refuse an operation on whole lines of an array whose lines are others channels last; else the array as it is."""
    if elements.shuffled or elements.cut:
        raise NotFollowedError(f"{what} goes along lines that a network channels last does not have")
    return elements


def kept_along(elements: Elements, axis: int, what: str) -> Elements:
    """Refuse an operation along an axis whose entries have another order channels last; else the array as it is."""
    lines(elements, what)
    order = order_along(elements, axis)
    if order is None or (np.diff(order) < 0).any():
        raise NotFollowedError(f"{what} goes along elements that have another order channels last")
    return elements


@dataclass(frozen=True)
class Grid:
    """Numbers that count through the axes one inside the other.

    Attributes:
        axes: those along which elements differ, the outermost first.
        places: axis -> the place of each entry along it.
    """

    axes: tuple[int, ...]
    places: dict[int, np.ndarray]

    def numbers(self, shape: Shape) -> np.ndarray:
        total = np.zeros(shape, np.int64)
        for axis in self.axes:
            along = self.places[axis].reshape([-1 if k == axis else 1 for k in range(len(shape))])
            total = total * shape[axis] + along
        return total


def grid_of(elements: Elements) -> Grid | None:
    numbers = elements.numbers
    if not numbers.size:
        return None
    steps: dict[int, int] = {}
    places: dict[int, np.ndarray] = {}
    for axis, length in enumerate(numbers.shape):
        line = numbers[tuple(slice(None) if k == axis else 0 for k in range(numbers.ndim))]
        if length > 1 and (line != line[0]).any():
            places[axis] = np.argsort(np.argsort(line, kind="stable"), kind="stable")
            steps[axis] = int(np.diff(np.sort(line)).min())
    grid = Grid(tuple(sorted(steps, key=lambda axis: -steps[axis])), places)
    return (
        grid
        if np.array_equal(settled(grid.numbers(elements.shape), shifted=True, raw=False).numbers, numbers)
        else None
    )
