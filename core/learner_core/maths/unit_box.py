"""The numbers of a bounded box as numbers of [-1, 1], and back.

Needs finite bounds with low < high. Plain Python numbers inside, so that a compiled step meets no arrays that it has
not made itself. Where centre and half width are powers of two, nothing is rounded on the way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from ..xp import Array, Namespace

__all__ = ["UnitBox"]

Numbers = float | tuple[float, ...]


@dataclass(frozen=True)
class UnitBox:
    """``x = centre + half * y`` with y in [-1, 1], for each of A dimensions, or the same for all where there is one.

    Attributes:
        centres: Middle of each dimension.
        halves: Half its width.
    """

    centres: tuple[float, ...]
    halves: tuple[float, ...]

    @classmethod
    def of(cls, low: Numbers, high: Numbers) -> Self:
        """From bounds: numbers, or tuples of A."""
        lows = low if isinstance(low, tuple) else (low,)
        highs = high if isinstance(high, tuple) else (high,)
        size = max(len(lows), len(highs))
        pairs = list(zip(lows * (size // len(lows)), highs * (size // len(highs)), strict=True))
        return cls(tuple(0.5 * (low + high) for low, high in pairs), tuple(0.5 * (high - low) for low, high in pairs))

    @property
    def is_unit(self) -> bool:
        """Whether the box is [-1, 1] already, in every dimension."""
        return set(self.centres) == {0.0} and set(self.halves) == {1.0}

    def to_unit(self, xp: Namespace, x: Array) -> Array:
        """float[..., A] in the box's unit to float[..., A] in [-1, 1]."""
        return (x - _constant(xp, self.centres, x)) / _constant(xp, self.halves, x)

    def from_unit(self, xp: Namespace, y: Array) -> Array:
        """float[..., A] in [-1, 1] to float[..., A] in the box's unit."""
        return _constant(xp, self.centres, y) + _constant(xp, self.halves, y) * y

    def log_half_sum(self, size: int) -> float:
        """Sum of log(half width) over ``size`` dimensions: what the density of x is smaller by than that of y."""
        return sum(map(math.log, self.halves)) if len(self.halves) > 1 else math.log(self.halves[0]) * size


def _constant(xp: Namespace, values: tuple[float, ...], like: Array) -> Array:
    """A number where all are equal, else float[1.., A] made on the parameters' own device."""
    if all(value == values[0] for value in values):
        return values[0]
    columns = [xp.full_like(like[..., i : i + 1], value) for i, value in enumerate(values)]
    return xp.concat(columns, axis=-1)
