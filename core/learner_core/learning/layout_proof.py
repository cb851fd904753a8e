"""A network's outputs computed a second time as one channels last would compute them: what both backends need for it.

A second value is carried beside each array that a network computes: the same elements, its axes where the first has
them, but each axis in the order of a network channels last. What tells the two layouts apart is then the **nesting** of
an array's axes channels last, the outermost first: maps [row, channel, height, width] are nested (0, 2, 3, 1). Where a
reshape joins axes, the second value is joined in that order, and what follows is computed from it with the weights as
the state holds them. Both outputs agree to rounding, or a rule of ``element_order.py`` that said how the state holds
them is wrong. Nothing here uses those rules: axes are followed, not elements. docs/decisions/exports.md says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .element_order import axis_blocks

__all__ = [
    "DIFFERS",
    "TOLERANCES",
    "Nesting",
    "NotProvedError",
    "Reshaped",
    "Within",
    "agree",
    "as_maps",
    "check_size",
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
#: axis -> (lengths of the axes joined in it, in the order of the framework's own layout; those axes as they are nested)
Within = Mapping[int, tuple[tuple[int, ...], tuple[int, ...]]]

#: How far both may differ, relative to the largest number: a wrong order is off by a tenth or more.
TOLERANCES = {"float64": 1e-8, "float32": 1e-3}
_PERIOD = 8191
_MAX_WEIGHTS = 2**26


#: What is said of weights, and of outputs where no weight is to blame.
DIFFERS = "computed in both layouts, with random numbers, it differs"


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


def multiplied(left: Nesting, right: Nesting, shapes: tuple[Shape, Shape]) -> Nesting:
    """Of matrix products [..., i, k] x [..., k, j]: by the operand whose kept axis is the outer one of the two."""
    ndim = len(left)
    if ndim != len(right) or 1 in (shapes[0][-2], shapes[1][-1]):
        return own_order(ndim)
    if shapes[0][-1] > 1 and left.index(ndim - 2) < left.index(ndim - 1):
        return own_order(ndim)
    if shapes[0][-1] > 1 and right.index(ndim - 1) < right.index(ndim - 2):
        return (*range(ndim - 2), ndim - 1, ndim - 2)
    raise NotProvedError("it multiplies matrices whose rows are columns channels last")


@dataclass(frozen=True)
class Reshaped:
    """What a reshape is for the second value: ``transpose(axes)``, ``reshape(shape)``, ``transpose(then)``.

    Attributes:
        axes: how the axes have to stand before.
        shape: of the reshape.
        then: how they have to stand afterwards.
        nesting: of what it makes.
        within: of what it makes: axis -> the axes that were joined in it.
    """

    axes: tuple[int, ...]
    shape: tuple[int, ...]
    then: tuple[int, ...]
    nesting: Nesting
    within: Within

    @property
    def moves_nothing(self) -> bool:
        """Whether it is the reshape alone."""
        return self.axes == own_order(len(self.axes)) and self.then == own_order(len(self.then))


def reshaped(nesting: Nesting, within: Within, before: Shape, after: Shape) -> Reshaped:
    """A reshape that joins axes as they are nested, and cuts them as they were joined."""
    made_of: dict[int, list[int]] = {}  # axis before, the outermost of its block -> axes after, as they are nested
    axes: list[int] = []
    placed: list[int] = []
    now: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    places = [k for k in nesting if before[k] > 1]
    for old, new in axis_blocks(tuple(before), tuple(after)):
        wide, made = [k for k in old if before[k] > 1], [k for k in new if after[k] > 1]
        nested = [k for k in nesting if k in wide]
        inner = list(made)
        if len(wide) > 1:
            start = places.index(nested[0])
            if places[start : start + len(nested)] != nested:
                raise NotProvedError("it joins axes that lie apart channels last")
            if len(made) > 1 and nested != wide:
                raise NotProvedError("it cuts and joins axes that have another order channels last")
            if len(made) == 1 and nested != wide:
                now[made[0]] = (tuple(before[k] for k in wide), tuple(wide.index(k) for k in nested))
        elif wide and wide[0] in within:
            sizes, order = within[wide[0]]
            if len(made) == 1:
                now[made[0]] = (sizes, order)
            elif sizes != tuple(after[k] for k in made):
                raise NotProvedError("it cuts an axis otherwise than it was joined")
            else:
                inner = [made[k] for k in order]
        if wide:
            made_of[nested[0]] = inner
        axes += [*nested, *(k for k in old if k not in wide)]
        placed += [*inner, *(k for k in new if k not in made)]
    shape = tuple(after[k] for k in placed)
    inside = (new for axis in nesting for new in made_of.get(axis, ()))
    single = (k for k, length in enumerate(after) if length == 1)
    return Reshaped(tuple(axes), shape, tuple(placed.index(k) for k in range(len(after))), (*inside, *single), now)


def as_maps(sizes: Sequence[int]) -> Within:
    """Of rows of features that are read as maps, channels first in the framework's own order."""
    wide = [k for k in range(len(sizes)) if sizes[k] > 1]
    nested = [wide.index(k) for k in (*range(1, len(sizes)), 0) if k in wide]
    return {1: (tuple(sizes[k] for k in wide), tuple(nested))} if nested != sorted(nested) else {}


def proof_values(name: str, like: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Values to try a parameter with, of which no two lines are alike, that keep outputs moderate; variances positive.

    Returns:
        float64, as ``like``
    """
    # A large one repeats itself; no two of its lines do: the period is a prime.
    drawn = np.resize(rng.normal(size=min(like.size, _PERIOD)), like.shape)
    values = drawn / np.sqrt(max(1, like[0].size) if like.ndim > 1 else 4)
    return np.asarray(0.5 + np.abs(values) if name.endswith(("running_var", "moving_variance")) else values)


def check_size(num_weights: int) -> None:
    """Refuse a network whose weights would take half a gigabyte more while it is built.

    Raises:
        NotProvedError: it has too many.
    """
    if num_weights > _MAX_WEIGHTS:
        raise NotProvedError(f"it has {num_weights} weights, more than {_MAX_WEIGHTS}")


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
