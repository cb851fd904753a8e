"""Which element of a network's arrays is which, whatever the framework's layout: numbers and the rules they follow.

A framework that computes images channels first holds the same elements as one that computes them channels last, in
another order. Each element of an array that a network computes has a **number**: its place in the array that a network
channels last would hold. Moving elements moves their numbers; a layer whose inputs have their numbers out of order has
its weights stored in order, so that the same weights fit both. The backends call the rules for the operations they see.

Every rule refuses (``NotFollowedError``) what it does not know for certain: what follows from such an array is said to
be not portable. An array is **plain** where both layouts have the same shape and order: there any operation of both
frameworks does the same, known here or not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from .elements import (
    Elements,
    Grid,
    Lost,
    NotFollowedError,
    NotMapsError,
    Shape,
    axis_blocks,
    fresh,
    grid_of,
    is_whole,
    kept_along,
    lines,
    order_along,
    settled,
)

__all__ = [
    "Elements",
    "Lost",
    "NotFollowedError",
    "NotMapsError",
    "aligned",
    "axis_blocks",
    "combined",
    "fresh",
    "is_whole",
    "joined",
    "kept_along",
    "lines",
    "mapped",
    "mixed",
    "moved",
    "multiplied",
    "order_along",
    "padded",
    "ranked",
    "reduced",
    "reshaped",
    "spread",
]


def moved(
    elements: Elements,
    move: Callable[[np.ndarray], np.ndarray],
    *,
    axes: bool = False,
    along: Sequence[int] = (),
    shuffles: bool = False,
) -> Elements:
    """What ``move`` makes of the array: an operation that moves or picks elements.

    Args:
        elements: before.
        move: the operation, for an int64 array of the same shape.
        axes: it reorders axes.
        along: the axes along which it tells entries apart by their places.
        shuffles: it spreads channels over places, or gathers them.
    """
    if not elements.in_order or elements.shuffled:
        for axis in along:
            kept_along(elements, axis, "it")
    return settled(
        np.asarray(move(elements.numbers)),
        shifted=elements.shifted or axes,
        raw=elements.raw,
        shuffled=elements.shuffled or shuffles,
        cut=elements.cut,
    )


def reshaped(elements: Elements, shape: Sequence[int]) -> Elements:
    """The array in another shape.

    Whole maps may be flattened, and axes joined or cut that have the same order in both layouts. What else a reshape
    puts together, a network channels last would put together otherwise. Flattened maps may be cut again as they were.
    """
    numbers = elements.numbers.reshape(tuple(shape))
    as_it_was = elements.cut
    if not elements.in_order:
        for before, after in axis_blocks(elements.shape, tuple(shape)):
            cut = [axis for axis in after if shape[axis] > 1]
            joined_axes = [axis for axis in before if elements.shape[axis] > 1]
            if len(cut) > 1 and len(joined_axes) > 1:
                raise NotFollowedError("it cuts and joins axes that have another order channels last")
            if len(cut) > 1:
                try:
                    kept_along(elements, joined_axes[0], "it cuts an axis that")
                except NotFollowedError:
                    if not _counts_through(numbers):
                        raise
                    as_it_was = True
            elif len(joined_axes) > 1 and not is_whole(Elements(numbers), cut[0]):
                joined_order = order_along(Elements(numbers), cut[0])
                if joined_order is None or (np.diff(joined_order) < 0).any():
                    raise NotFollowedError("it joins axes that have another order channels last")
    return settled(
        numbers, shifted=elements.shifted or as_it_was, raw=elements.raw, shuffled=elements.shuffled, cut=as_it_was
    )


def _counts_through(numbers: np.ndarray) -> bool:
    """Whether they are those of maps: each axis counts upwards, one inside the other."""
    grid = grid_of(Elements(numbers))
    return grid is not None and all((np.diff(along) > 0).all() for along in grid.places.values())


def ranked(elements: Elements, axis: int, length: int) -> tuple[Elements, Elements | Lost]:
    """The first ``length`` values along an axis when they are sorted, and where they stood.

    They are the same in whatever order the entries are; their places are not.
    """
    lines(elements, "it")
    order = order_along(elements, axis)
    if order is None:
        raise NotFollowedError("it goes along elements that are not in one order in all places")
    numbers = np.take(np.sort(elements.numbers, axis), range(length), axis)
    made = settled(numbers, shifted=elements.shifted, raw=elements.raw)
    if (np.diff(order) < 0).any():
        return made, Lost("its places count elements that have another order channels last")
    return made, made


def _ranks(firsts: np.ndarray, what: str) -> np.ndarray:
    """Places of groups of elements, by their first numbers."""
    unique, ranks = np.unique(firsts, return_inverse=True)
    if len(unique) != firsts.size:
        raise NotFollowedError(f"{what} of copies of the same elements, whose order is not known")
    return ranks.reshape(firsts.shape)


def mixed(elements: Elements, axis: int, outputs: int) -> tuple[np.ndarray, Elements]:
    """A layer that makes ``outputs`` numbers of all elements along an axis, in each place of the others.

    Returns:
        (the order its weights have along that axis, int64 [length]; what it makes)
    """
    order = order_along(elements, axis)
    if order is None:
        raise NotFollowedError("its inputs are not in one order in all places")
    if not is_whole(elements, axis):
        lines(elements, "it")
    places = _ranks(elements.numbers.min(axis), "it makes something")
    numbers = np.moveaxis(places[..., None] * outputs + np.arange(outputs), -1, axis)
    return order, settled(numbers, shifted=elements.shifted and numbers.ndim > 2, raw=False)


def multiplied(left: Elements, right: Elements) -> Elements:
    """Matrix products [..., i, k] x [..., k, j] of arrays with the same leading axes.

    What comes out stands in rows as the one operand has them, and within each as the other has its columns; where each
    framework would have the product the other way round, so has this.
    """
    if left.plain and right.plain:
        return fresh((*left.shape[:-1], right.shape[-1]))
    for side in (left, right):
        lines(side, "it")
    order, other = order_along(left, -1), order_along(right, -2)
    if order is None or other is None or not np.array_equal(order, other):
        raise NotFollowedError("it multiplies elements that are not the same ones channels last")
    if _is_outer(left, -2):
        rows, columns = left.numbers.min(-1), order_along(Elements(right.numbers.min(-2)), -1)
        turned = False
    elif _is_outer(right, -1):
        rows, columns = right.numbers.min(-2), order_along(Elements(left.numbers.min(-1)), -1)
        turned = True
    else:
        raise NotFollowedError("it multiplies matrices whose rows are columns channels last")
    if columns is None:
        raise NotFollowedError("it multiplies elements that are not in one order in all places")
    numbers = _ranks(rows, "products")[..., None] * len(columns) + columns
    return settled(
        np.swapaxes(numbers, -1, -2) if turned else numbers, shifted=left.shifted or right.shifted, raw=False
    )


def _is_outer(elements: Elements, axis: int) -> bool:
    """Whether, of the last two axes, this one is the outer one: each of its entries stands apart from the others."""
    matrices = np.moveaxis(elements.numbers, axis, -1)
    matrices = matrices.reshape(-1, *matrices.shape[-2:])  # [leading, inner, outer]
    low, high = matrices.min(1), matrices.max(1)
    by_low = np.argsort(low, axis=1)
    low, high = np.take_along_axis(low, by_low, 1), np.take_along_axis(high, by_low, 1)
    return bool((high[:, :-1] < low[:, 1:]).all())


def reduced(elements: Elements, axes: Sequence[int], *, keepdims: bool) -> Elements:
    """A mean, maximum, ... over axes."""
    lines(elements, "it")
    numbers = elements.numbers.min(tuple(axes), keepdims=keepdims) if len(axes) else elements.numbers
    # One that keeps axes of length 1 keeps the doubt about where they are, too.
    return settled(np.asarray(numbers), shifted=elements.shifted, raw=elements.raw)


def mapped(
    elements: Elements, channel_axis: int, spatial: Sequence[int], outputs: int | None = None
) -> tuple[np.ndarray, Elements]:
    """A convolution or pooling over maps whose first axis is the batch.

    Args:
        elements: the maps.
        channel_axis: 1 or -1.
        spatial: what lengths the other axes have afterwards.
        outputs: how many channels it makes of all; ``None``: each channel by itself.

    Returns:
        (the order of the channels that it reads; what it makes)
    """
    maps = np.moveaxis(elements.numbers, channel_axis, -1)
    order = order_along(Elements(maps), -1)
    if order is None:
        raise NotFollowedError("the channels that it reads are not in one order in all places")
    rows, channels = len(maps), len(order)
    maps = maps[..., np.argsort(order)].reshape(rows, -1, channels)
    # The environment's own images are what they are; other maps must be those that a network channels last would have.
    if not elements.raw:
        lines(replace(elements, cut=False), "it")
    steps = np.diff(maps, axis=1) if elements.raw else np.diff(maps.reshape(rows, -1), axis=1)
    if (steps <= 0).any():
        raise NotMapsError(
            "it reads as images what a network channels last would not have as images (its axes have another order)"
        )
    row = _ranks(maps.reshape(rows, -1).min(1), "maps are made")
    last = np.arange(outputs) if outputs is not None else order
    places = np.arange(int(np.prod(spatial, dtype=np.int64))).reshape(*spatial, 1) * len(last) + last
    numbers = row.reshape(rows, *(1,) * places.ndim) * places.size + places
    first = channel_axis == 1
    made = np.moveaxis(numbers, -1, 1) if first else numbers
    return order, settled(made, shifted=first, raw=False)


def combined(operands: Sequence[Elements | None], shapes: Sequence[Shape], shape: Shape) -> Elements:
    """An operation on the elements of several arrays, one by one, with broadcasting.

    Args:
        operands: one for each array; ``None``: it does not depend on observations.
        shapes: of the arrays.
        shape: of the result.
    """
    known = [operand for operand in operands if operand is not None]
    raw = all(operand.raw for operand in known)
    whole = [operand for operand in known if operand.shape == shape]
    if whole:
        for other in known:
            if not _fits(other, whole[0]):
                raise NotFollowedError("it combines elements that are not the same ones channels last")
        shifted, shuffled, cut = (any(getattr(o, mark) for o in whole) for mark in ("shifted", "shuffled", "cut"))
        return Elements(whole[0].numbers, shifted, raw, shuffled, cut)
    if not all(operand.plain for operand in known):
        raise NotFollowedError("it broadcasts elements that are in another order channels last")
    # Along [features, 1, 1] x [height, width], who writes channels first has another order than who writes them last.
    trailing = len(shape) > 3 and any(len(o.shape) == len(shape) and _trails(o.shape, shape) for o in known)
    if trailing or (len(known) > 1 and len(shape) > 3):
        raise NotFollowedError("it spreads features over the places of an image")
    return fresh(shape, raw=raw)


def _fits(one: Elements, whole: Elements) -> bool:
    """Whether an array, broadcast, meets the same elements of another one in both layouts."""
    if one.shape == whole.shape:
        return np.array_equal(one.numbers, whole.numbers)
    for axis in range(-len(one.shape), 0):
        if one.shape[axis] > 1:
            own, other = order_along(one, axis), order_along(whole, axis)
            if own is None or other is None or not np.array_equal(own, other):
                return False
    return True


def aligned(elements: Elements, shape: Shape) -> bool:
    """Whether a weight of this shape, broadcast over the elements, meets the same ones in both layouts."""
    for axis in range(-min(len(shape), len(elements.shape)), 0):
        if shape[axis] > 1:
            order = order_along(elements, axis)
            if order is None or (np.diff(order) < 0).any():
                return False
    return True


def _trails(before: Shape, after: Shape) -> bool:
    """Whether the last axis grows from 1 while there are features before it."""
    return before[-1] == 1 and after[-1] > 1 and any(length > 1 for length in before[1:-1])


def spread(elements: Elements, copy: Callable[[np.ndarray], np.ndarray]) -> Elements:
    """What ``copy`` makes of the array: an operation that repeats elements (expand, repeat, tile)."""
    numbers = np.asarray(copy(elements.numbers))
    before = (1,) * (numbers.ndim - elements.numbers.ndim) + elements.shape
    if elements.plain and not (numbers.ndim > 2 and _trails(before, numbers.shape)):
        return fresh(numbers.shape, raw=elements.raw)
    lines(replace(elements, shuffled=False), "it")
    return settled(numbers, shifted=elements.shifted, raw=elements.raw, shuffled=elements.shuffled)


# ---------------------------------------------------------------------------------------- numbers as a grid of axes


def _inserted(axes: tuple[int, ...], axis: int, what: str, *, shifted: bool) -> tuple[int, ...]:
    """``axes`` with one more, where there is one place for it: after all that stand before it, before all after it."""
    before = [k for k in axes if k < axis]
    if shifted or set(axes[: len(before)]) != set(before):
        raise NotFollowedError(f"{what} along an axis that has no certain place channels last")
    return (*axes[: len(before)], axis, *axes[len(before) :])


def joined(parts: Sequence[tuple[Elements | None, Shape]], axis: int, *, stacked: bool = False) -> Elements:
    """Arrays joined along an axis.

    Args:
        parts: (elements or ``None`` where it does not depend on observations, shape) of each.
        axis: 0 or more.
        stacked: it is a new one, where both layouts have it: after the axes that stand before it.
    """
    known = [part for part, _ in parts if part is not None]
    raw = all(part.raw for part in known)
    shape = list(parts[0][1])
    shape[axis] = sum(part_shape[axis] for _, part_shape in parts)
    if all(part.plain for part in known):
        return fresh(shape, raw=raw)
    grids = [None if part is None or part.shuffled or part.cut else grid_of(part) for part, _ in parts]
    present = [grid for grid in grids if grid is not None]
    if len(present) < len(known):
        raise NotFollowedError("it joins arrays whose elements are not in the order of their axes")
    axes = max((grid.axes for grid in present), key=lambda some: (axis in some, len(some)))
    places: dict[int, np.ndarray] = {}
    for grid in present:
        if tuple(k for k in axes if k in grid.axes) != grid.axes:
            raise NotFollowedError("it joins arrays whose axes have different orders channels last")
        for k, along in grid.places.items():
            if k != axis and not np.array_equal(places.setdefault(k, along), along):
                raise NotFollowedError("it joins arrays whose entries have different orders channels last")
    shifted = any(part.shifted for part in known)
    if axis not in axes:
        certain = stacked and all(length > 1 for length in shape[:axis])
        axes = _inserted(axes, axis, "it joins arrays", shifted=shifted and not certain)
    entries: list[np.ndarray] = []
    for (_, part_shape), own in zip(parts, grids, strict=True):
        length = part_shape[axis]
        if own is not None and axis not in own.places and length > 1:
            raise NotFollowedError("it joins copies of the same elements, whose order is not known")
        here = np.arange(length) if own is None else own.places.get(axis, np.zeros(1, np.int64))
        entries.append(here + sum(map(len, entries)))
    places[axis] = np.concatenate(entries)
    if any(k not in axes for k, length in enumerate(shape) if length > 1):
        raise NotFollowedError("it joins copies of the same elements, whose order is not known")
    return settled(Grid(axes, places).numbers(tuple(shape)), shifted=shifted, raw=raw)


def padded(elements: Elements, shape: Shape) -> Elements:
    """An array that grows along some axes, on either side, by elements that are no others' copies.

    Args:
        elements: before.
        shape: afterwards.
    """
    if elements.plain:
        return fresh(shape, raw=elements.raw)
    grid = None if elements.shuffled or elements.cut else grid_of(elements)
    if grid is None:
        raise NotFollowedError("it pads an array whose elements are not in the order of their axes")
    axes, places = grid.axes, dict(grid.places)
    for axis, (before, after) in enumerate(zip(elements.shape, shape, strict=True)):
        if before == after:
            continue
        if axis in places and (np.diff(places[axis]) < 0).any():
            raise NotFollowedError("it pads along elements that have another order channels last")
        if axis not in axes:
            axes = _inserted(axes, axis, "it pads", shifted=elements.shifted)
        places[axis] = np.arange(after)
    return settled(Grid(axes, places).numbers(shape), shifted=elements.shifted, raw=elements.raw)
