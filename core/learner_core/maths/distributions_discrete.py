"""Discrete action distributions: one of K, several such choices, independent bits.

Sampling takes two normal numbers per category: half their squared length is exponentially distributed, exactly, with
no tail to lose, and the category of the smallest ``exponential / probability`` is a sample.
"""

from __future__ import annotations

import math
from typing import ClassVar, Self

from ..spaces import AnySpace
from ..xp import Array, Namespace
from .distribution_base import Distribution

__all__ = ["Bernoulli", "Categorical", "MultiCategorical"]

# What a forbidden action's logit becomes: its probability is exactly 0, and every product with it stays finite.
_FORBIDDEN = -1e9


class Categorical(Distribution):
    """One of K actions, from logits [..., K]; actions int64[...] from ``start`` on."""

    event_shape: ClassVar[tuple[int, ...] | None] = ()
    start: ClassVar[int] = 0
    options: ClassVar[tuple[str, ...]] = ("start",)

    def __init__(self, logits: Array) -> None:
        self.log_probs: Array = self.xp.log_softmax(logits, axis=-1)

    @classmethod
    def masked(cls, inputs: Array, mask: Array) -> Array:
        return _masked(cls.xp, inputs, mask)

    @classmethod
    def from_logits(cls, inputs: Array, mask: Array | None = None) -> Self:
        return cls(_masked(cls.xp, inputs, mask))

    def logp(self, x: Array) -> Array:
        indices = self.xp.expand_dims(self.xp.astype(x, self.xp.int64), -1)
        if self.start:
            indices = indices - self.start
        return self.xp.squeeze(self.xp.take_along_axis(self.log_probs, indices, -1), -1)

    def entropy(self) -> Array:
        return -self.xp.sum(self.xp.exp(self.log_probs) * self.log_probs, axis=-1)

    def kl(self, other: Self) -> Array:
        return self.xp.sum(self.xp.exp(self.log_probs) * (self.log_probs - other.log_probs), axis=-1)

    def sample(self, noise: Array) -> Array:
        exponentials = _exponentials(self.xp, noise, self.log_probs)
        return self._action(self.xp.argmax(self.log_probs - self.xp.log(exponentials), -1))

    def mode(self) -> Array:
        return self._action(self.xp.argmax(self.log_probs, -1))

    def _action(self, indices: Array) -> Array:
        actions = self.xp.astype(indices, self.xp.int64)
        return actions + self.start if self.start else actions

    @staticmethod
    def noise_shape(space: AnySpace) -> tuple[int, ...]:
        return (2 * int(space.n),)

    @staticmethod
    def input_size(space: AnySpace) -> int:
        return int(space.n)


class MultiCategorical(Distribution):
    """Independent choices among nvec[0], nvec[1], ... actions, from logits concatenated on the last axis.

    Options: ``nvec`` (flat), ``start`` (flat, zeros by default) and ``event_shape``. Actions int64[..., *event_shape].
    """

    nvec: ClassVar[tuple[int, ...]] = ()
    start: ClassVar[tuple[int, ...]] = ()
    options: ClassVar[tuple[str, ...]] = ("nvec", "start", "event_shape")

    _choices: ClassVar[tuple[type[Categorical], ...]] = ()

    def __init__(self, parts: list[Categorical]) -> None:
        self.parts = parts

    @classmethod
    def bind(cls, xp: Namespace, **options: object) -> type[Self]:
        bound = super().bind(xp, **options)
        starts = bound.start or (0,) * len(bound.nvec)
        bound._choices = tuple(Categorical.bind(xp, start=start) for start in starts)
        return bound

    @classmethod
    def masked(cls, inputs: Array, mask: Array) -> Array:
        return _masked(cls.xp, inputs, mask)

    @classmethod
    def from_logits(cls, inputs: Array, mask: Array | None = None) -> Self:
        logits = cls.xp.split(_masked(cls.xp, inputs, mask), list(cls.nvec), -1)
        return cls([choice(part) for choice, part in zip(cls._choices, logits, strict=True)])

    def logp(self, x: Array) -> Array:
        flat = self._flat(x)
        return _total([part.logp(flat[..., index]) for index, part in enumerate(self.parts)])

    def entropy(self) -> Array:
        return _total([part.entropy() for part in self.parts])

    def kl(self, other: Self) -> Array:
        return _total([mine.kl(its) for mine, its in zip(self.parts, other.parts, strict=True)])

    def sample(self, noise: Array) -> Array:
        noises = self.xp.split(noise, [2 * n for n in self.nvec], -1)
        return self._join([part.sample(its) for part, its in zip(self.parts, noises, strict=True)])

    def mode(self) -> Array:
        return self._join([part.mode() for part in self.parts])

    def _join(self, actions: list[Array]) -> Array:
        return self._fold(self.xp.stack(actions, axis=-1))

    @staticmethod
    def noise_shape(space: AnySpace) -> tuple[int, ...]:
        return (2 * int(space.nvec.sum()),)

    @staticmethod
    def input_size(space: AnySpace) -> int:
        return int(space.nvec.sum())


class Bernoulli(Distribution):
    """Independent bits, from the logits of a one; actions int64[..., *event_shape] of 0 and 1. A mask forbids ones."""

    def __init__(self, logits: Array) -> None:
        # log p(1) and log p(0): softplus of either sign stays exact where the probability rounds to 0 or 1.
        self.log_one: Array = -self.xp.softplus(-logits)
        self.log_zero: Array = -self.xp.softplus(logits)

    @classmethod
    def masked(cls, inputs: Array, mask: Array) -> Array:
        return _masked(cls.xp, inputs, mask)

    @classmethod
    def from_logits(cls, inputs: Array, mask: Array | None = None) -> Self:
        return cls(_masked(cls.xp, inputs, mask))

    def logp(self, x: Array) -> Array:
        is_one = self.xp.astype(self._flat(x), self.xp.bool)
        return self.xp.sum(self.xp.where(is_one, self.log_one, self.log_zero), axis=-1)

    def entropy(self) -> Array:
        return -self._expected(self.log_one, self.log_zero)

    def kl(self, other: Self) -> Array:
        return self._expected(self.log_one - other.log_one, self.log_zero - other.log_zero)

    def _expected(self, if_one: Array, if_zero: Array) -> Array:
        xp = self.xp
        return xp.sum(xp.exp(self.log_one) * if_one + xp.exp(self.log_zero) * if_zero, axis=-1)

    def sample(self, noise: Array) -> Array:
        # P(exponential > -log p) = p.
        is_one = _exponentials(self.xp, noise, self.log_one) > -self.log_one
        return self._fold(self.xp.astype(is_one, self.xp.int64))

    def mode(self) -> Array:
        return self._fold(self.xp.astype(self.log_one > self.log_zero, self.xp.int64))

    @staticmethod
    def noise_shape(space: AnySpace) -> tuple[int, ...]:
        return (2 * math.prod(space.shape),)

    @staticmethod
    def input_size(space: AnySpace) -> int:
        return math.prod(space.shape)


def _masked(xp: Namespace, logits: Array, mask: Array | None) -> Array:
    if mask is None:
        return logits
    return xp.where(xp.astype(mask, xp.bool), logits, xp.full_like(logits, _FORBIDDEN))


def _exponentials(xp: Namespace, noise: Array, like: Array) -> Array:
    """Half the squared length of two normals is exponential with mean 1; never exactly 0."""
    size = xp.shape(noise)[-1] // 2
    noise = xp.astype(noise, like.dtype)
    return 0.5 * (xp.square(noise[..., :size]) + xp.square(noise[..., size:])) + 1e-30


def _total(parts: list[Array]) -> Array:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
