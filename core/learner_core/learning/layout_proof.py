"""A network's outputs computed a second time as one channels last would compute them: what both backends need for it.

A second value is carried beside each array that a network computes: the same elements, its axes where the first has
them, but each axis in the order of a network channels last. What tells the two layouts apart is then the **nesting** of
an array's axes channels last, the outermost first: maps [row, channel, height, width] are nested (0, 2, 3, 1). Where a
reshape joins axes, the second value is joined in that order, and what follows is computed from it with the weights as
the state holds them. Both outputs agree to rounding, or a rule of ``element_order.py`` that said how the state holds
them is wrong. Nothing here uses those rules: axes are followed, not elements.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .element_order import axis_blocks

__all__ = [
    "TOLERANCES",
    "Nesting",
    "NotProvedError",
    "agree",
    "innermost",
    "inserted",
    "maps",
    "moved",
    "multiplied",
    "own_order",
    "proof_values",
    "removed",
    "reshaped",
    "together",
]

Nesting = tuple[int, ...]
Shape = Sequence[int]

#: How far both may differ, relative to the largest number: a wrong order is off by a tenth or more.
TOLERANCES = {"float64": 1e-8, "float32": 1e-3}
_PERIOD = 8191


class NotProvedError(Exception):
    """The second value of something cannot be computed; its text says why. It says nothing about the network."""


def own_order(ndim: int) -> Nesting:
    """Axes nested as they stand."""
    return tuple(range(ndim))


def maps(ndim: int, channel_axis: int) -> Nesting:
    """Rows of maps: channels are the innermost axis."""
    channel = channel_axis % ndim
    return (*(axis for axis in range(ndim) if axis != channel), channel)


def moved(nesting: Nesting, axes: Sequence[int]) -> Nesting:
    """Axes permuted: the new axis ``k`` is the old ``axes[k]``."""
    return tuple(list(axes).index(axis) for axis in nesting)


def innermost(nesting: Nesting, axis: int) -> Nesting:
    """What a layer makes of all elements along an axis is nested within all others."""
    own = axis % len(nesting)
    return (*(k for k in nesting if k != own), own)


def removed(nesting: Nesting, axes: Sequence[int]) -> Nesting:
    """Without these axes."""
    return tuple(axis - sum(gone < axis for gone in axes) for axis in nesting if axis not in axes)


def inserted(nesting: Nesting, axis: int) -> Nesting:
    """With a new axis: after those that stand before it, if those are the outermost ones; else the innermost."""
    before = [k for k in nesting if k < axis]
    place = len(before) if set(nesting[: len(before)]) == set(before) else len(nesting)
    shifted = [k + (k >= axis) for k in nesting]
    return (*shifted[:place], axis, *shifted[place:])


def together(nestings: Sequence[Nesting], shapes: Sequence[Shape], shape: Shape) -> Nesting:
    """Of what arrays make one by one, with broadcasting."""
    whole = [n for n, own in zip(nestings, shapes, strict=True) if tuple(own) == tuple(shape)]
    if whole:
        return next((nesting for nesting in whole if nesting != own_order(len(shape))), whole[0])
    if all(nesting == own_order(len(nesting)) for nesting in nestings):
        return own_order(len(shape))
    raise NotProvedError("it broadcasts several arrays over each other")


def multiplied(left: Nesting, right: Nesting) -> Nesting:
    """Of matrix products [..., i, k] x [..., k, j]: by the operand whose kept axis is the outer one of the two."""
    ndim = len(left)
    if left.index(ndim - 2) < left.index(ndim - 1) or ndim != len(right):
        return own_order(ndim)
    if right.index(ndim - 1) < right.index(ndim - 2):
        return (*range(ndim - 2), ndim - 1, ndim - 2)
    raise NotProvedError("it multiplies matrices whose rows are columns channels last")


def reshaped(nesting: Nesting, before: Shape, after: Shape) -> tuple[tuple[int, ...], Nesting]:
    """A reshape.

    Returns:
        (how the axes have to stand for it, the nesting of what it makes)
    """
    outer: dict[int, list[int]] = {}  # axis before, the outermost of its block -> axes after
    axes: list[int] = []
    single: list[int] = []
    for old, new in axis_blocks(tuple(before), tuple(after)):
        wide, made = [k for k in old if before[k] > 1], [k for k in new if after[k] > 1]
        single += [k for k in new if after[k] == 1]
        nested = [k for k in nesting if k in wide]
        places = [k for k in nesting if before[k] > 1]
        if len(wide) > 1:
            start = places.index(nested[0])
            if places[start : start + len(nested)] != nested:
                raise NotProvedError("it joins axes that lie apart channels last")
            if len(made) > 1 and nested != wide:
                raise NotProvedError("it cuts and joins axes that have another order channels last")
        if wide:
            outer[nested[0]] = made
        axes += [*nested, *(k for k in old if k not in wide)]
    return tuple(axes), (*(new for axis in nesting for new in outer.get(axis, ())), *single)


def proof_values(name: str, like: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Values to try a parameter with, of which no two lines are alike, that keep outputs moderate; variances positive.

    Returns:
        float64, as ``like``
    """
    # A large one repeats itself; no two of its lines do: the period is a prime.
    drawn = np.resize(rng.normal(size=min(like.size, _PERIOD)), like.shape)
    values = drawn / np.sqrt(max(1, like[0].size) if like.ndim > 1 else 4)
    return 0.5 + np.abs(values) if name.endswith(("running_var", "moving_variance")) else values


def agree(one: np.ndarray, other: np.ndarray, tolerance: float, *, anywhere: bool = False) -> bool:
    """Whether two arrays hold the same numbers to rounding.

    Args:
        one: floats.
        other: floats.
        tolerance: relative to the largest number.
        anywhere: in whatever order.

    Raises:
        NotProvedError: they are not finite.
    """
    if one.size != other.size:
        return False
    one, other = (np.asarray(values, np.float64).reshape(-1) for values in (one, other))
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise NotProvedError("with random weights it computes numbers that are not finite")
    if anywhere:
        one, other = np.sort(one), np.sort(other)
    return bool((np.abs(one - other) <= tolerance * max(1.0, float(np.abs(one).max(initial=0.0)))).all())
