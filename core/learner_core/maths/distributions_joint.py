"""Actions of several kinds at once: independent distributions side by side, over one row of numbers.

Needs bound distributions of the parts. Refuses masks. What is said of a row (log-probability, entropy, divergence) is
the sum of what is said of its parts, which are independent given the observation.
"""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple, Self

from ..errors import SpaceError
from ..spaces import AnySpace
from ..xp import Array, DType
from .distribution_base import Distribution

__all__ = ["Joint", "JointPart"]


class JointPart(NamedTuple):
    """One part of a joint distribution.

    Attributes:
        kind: its distribution, bound.
        size: numbers in the row.
        shape: of the part's own action.
        is_box: whether these are any numbers; else they are choices.
        num_inputs: network outputs.
        noise_shape: of a row's noise.
    """

    kind: type[Distribution]
    size: int
    shape: tuple[int, ...]
    is_box: bool
    num_inputs: int
    noise_shape: tuple[int, ...]


class Joint(Distribution):
    """Parts side by side, from their inputs concatenated; actions float[..., K], see ``learner_core.action_parts``.

    Options: ``parts``, a tuple of :class:`JointPart`.
    """

    event_shape: ClassVar[tuple[int, ...] | None] = None
    parts: ClassVar[tuple[JointPart, ...]] = ()
    options: ClassVar[tuple[str, ...]] = ("parts",)

    def __init__(self, distributions: list[Distribution], dtype: DType) -> None:
        self._distributions = distributions
        self._dtype = dtype

    @classmethod
    def from_logits(cls, inputs: Array, mask: Array | None = None) -> Self:
        if mask is not None:
            raise SpaceError("an action mask needs discrete actions alone, not a Dict or Tuple of several kinds")
        pieces = cls.xp.split(inputs, [part.num_inputs for part in cls.parts], -1)
        made = [part.kind.from_logits(piece) for part, piece in zip(cls.parts, pieces, strict=True)]
        return cls(made, inputs.dtype)

    def logp(self, x: Array) -> Array:
        xp = self.xp
        pieces = xp.split(x, [part.size for part in self.parts], -1)
        rows = tuple(xp.shape(x)[:-1])
        found = []
        for part, piece, distribution in zip(self.parts, pieces, self._distributions, strict=True):
            own = xp.reshape(piece, (*rows, *part.shape))
            found.append(distribution.logp(own if part.is_box else xp.astype(own, xp.int64)))
        return _total(found)

    def entropy(self) -> Array:
        return _total([distribution.entropy() for distribution in self._distributions])

    def kl(self, other: Self) -> Array:
        pairs = zip(self._distributions, other._distributions, strict=True)
        return _total([mine.kl(its) for mine, its in pairs])

    def sample(self, noise: Array) -> Array:
        pieces = self.xp.split(noise, [math.prod(part.noise_shape) for part in self.parts], -1)
        rows = tuple(self.xp.shape(noise)[:-1])
        return self._row(
            [
                distribution.sample(self.xp.reshape(piece, (*rows, *part.noise_shape)))
                for part, piece, distribution in zip(self.parts, pieces, self._distributions, strict=True)
            ]
        )

    def mode(self) -> Array:
        return self._row([distribution.mode() for distribution in self._distributions])

    def _row(self, actions: list[Array]) -> Array:
        xp = self.xp
        flat = []
        for part, action in zip(self.parts, actions, strict=True):
            shape = tuple(xp.shape(action))
            rows = shape[: len(shape) - len(part.shape)]
            flat.append(xp.reshape(xp.astype(action, self._dtype), (*rows, part.size)))
        return xp.concat(flat, -1)

    @classmethod
    def noise_shape(cls, space: AnySpace) -> tuple[int, ...]:
        return (sum(math.prod(part.noise_shape) for part in cls.parts),)

    @classmethod
    def input_size(cls, space: AnySpace) -> int:
        return sum(part.num_inputs for part in cls.parts)


def _total(parts: list[Array]) -> Array:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
