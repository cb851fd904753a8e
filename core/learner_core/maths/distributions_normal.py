"""Continuous action distributions: independent normal numbers, as they are or through tanh onto bounds."""

from __future__ import annotations

import math
from typing import ClassVar, Self

from ..errors import SpaceError
from ..spaces import AnySpace
from ..xp import Array, Namespace
from .distribution_base import Distribution
from .unit_box import UnitBox

__all__ = ["DiagGaussian", "SquashedGaussian"]

_LOG_2 = math.log(2.0)
_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


class DiagGaussian(Distribution):
    """Independent normal numbers, from [mean, log_std] [..., 2A]; actions are not bounded.

    Options: ``log_std_range``, None or (low, high) bounds of the logarithm of the standard deviation; ``event_shape``.
    """

    log_std_range: ClassVar[tuple[float, float] | None] = None
    options: ClassVar[tuple[str, ...]] = ("event_shape", "log_std_range")

    def __init__(self, mean: Array, log_std: Array) -> None:
        if self.log_std_range is not None:
            log_std = self.xp.clip(log_std, *self.log_std_range)
        self.mean: Array = mean
        self.log_std: Array = log_std

    @classmethod
    def from_logits(cls, inputs: Array, mask: Array | None = None) -> Self:
        if mask is not None:
            raise SpaceError(f"{cls.__name__}: an action mask needs discrete actions")
        size = cls.xp.shape(inputs)[-1] // 2
        return cls(inputs[..., :size], inputs[..., size:])

    def logp(self, x: Array) -> Array:
        return self._normal_logp((self._flat(x) - self.mean) * self.xp.exp(-self.log_std))

    def entropy(self) -> Array:
        return self.xp.sum(self.log_std + (0.5 + _HALF_LOG_2PI), axis=-1)

    def kl(self, other: Self) -> Array:
        xp = self.xp
        ratio = xp.exp(self.log_std - other.log_std)
        distance = (self.mean - other.mean) * xp.exp(-other.log_std)
        return xp.sum(other.log_std - self.log_std + 0.5 * (xp.square(ratio) + xp.square(distance)) - 0.5, axis=-1)

    def sample(self, noise: Array) -> Array:
        return self._fold(self._normal(noise))

    def mode(self) -> Array:
        return self._fold(self.mean)

    def sample_with_logp(self, noise: Array) -> tuple[Array, Array]:
        # (x - mean) / std is the noise itself: no rounding, and no gradient where there is none.
        return self._fold(self._normal(noise)), self._normal_logp(self._as_noise(noise))

    def _normal(self, noise: Array) -> Array:
        return self.mean + self.xp.exp(self.log_std) * self._as_noise(noise)

    def _as_noise(self, noise: Array) -> Array:
        return self.xp.astype(noise, self.mean.dtype)

    def _normal_logp(self, standardised: Array) -> Array:
        return self.xp.sum(-0.5 * self.xp.square(standardised) - self.log_std - _HALF_LOG_2PI, axis=-1)

    @staticmethod
    def noise_shape(space: AnySpace) -> tuple[int, ...]:
        return (math.prod(space.shape),)

    @staticmethod
    def input_size(space: AnySpace) -> int:
        return 2 * int(math.prod(space.shape))


class SquashedGaussian(DiagGaussian):
    """Normal numbers u through tanh onto [low, high], from [mean, log_std] [..., 2A].

    ::

        y = tanh(u),    x = centre + half * y
        log p(y) = log N(u) - sum 2 (log 2 - u - softplus(-2u)),    log p(x) = log p(y) - sum log half

    :meth:`sample_with_logp` keeps u. :meth:`logp` of an action must find it again through atanh, with the action
    held one rounding step inside the bounds: where tanh has rounded to 1 it is wrong by whatever was lost, so a
    loss that needs the log-probability of its own samples uses the former. :meth:`mode` is the squashed mean (the
    median, not the maximum of the density). The divergence is that of the normal distributions: the map is the same.

    Options: ``low`` and ``high`` (numbers, or tuples of A, finite), ``log_std_range`` and ``event_shape``;
    ``unit_density``: log-probability and entropy are those of y, which are the same in whatever unit x is given.
    Actions are x in any case.

    References:
        Haarnoja et al., Soft actor-critic, https://arxiv.org/abs/1801.01290, appendix C
    """

    low: ClassVar[float | tuple[float, ...]] = -1.0
    high: ClassVar[float | tuple[float, ...]] = 1.0
    log_std_range: ClassVar[tuple[float, float] | None] = (-20.0, 2.0)
    unit_density: ClassVar[bool] = False
    options: ClassVar[tuple[str, ...]] = ("event_shape", "high", "log_std_range", "low", "unit_density")

    _box: ClassVar[UnitBox]

    @classmethod
    def bind(cls, xp: Namespace, **options: object) -> type[Self]:
        bound = super().bind(xp, **options)
        bound._box = UnitBox.of(bound.low, bound.high)
        return bound

    def logp(self, x: Array) -> Array:
        xp = self.xp
        y = self._box.to_unit(xp, self._flat(x))
        limit = 1.0 - _rounding_step(xp, y)
        y = xp.clip(y, -limit, limit)
        return self._squashed_logp(0.5 * (xp.log1p(y) - xp.log1p(-y)), None)

    def entropy(self, noise: Array | None = None) -> Array:
        """Estimate the entropy from one sample: -log p(x); there is no closed form.

        Args:
            noise: float[..., A], standard normal.

        Returns:
            float[...], unbiased, in nats.

        Raises:
            SpaceError: Without noise, instead of answering with something that is not the entropy.
        """
        if noise is None:
            raise SpaceError(
                "SquashedGaussian has no closed-form entropy: pass noise for a one-sample estimate, "
                "or use -logp of a sample"
            )
        return -self.sample_with_logp(noise)[1]

    def sample(self, noise: Array) -> Array:
        return self._squash(self._normal(noise))

    def mode(self) -> Array:
        return self._squash(self.mean)

    def sample_with_logp(self, noise: Array) -> tuple[Array, Array]:
        u = self._normal(noise)
        return self._squash(u), self._squashed_logp(u, self._as_noise(noise))

    def _squash(self, u: Array) -> Array:
        return self._fold(self._box.from_unit(self.xp, self.xp.tanh(u)))

    def _squashed_logp(self, u: Array, standardised: Array | None) -> Array:
        xp = self.xp
        if standardised is None:
            standardised = (u - self.mean) * xp.exp(-self.log_std)
        # log(1 - tanh(u)^2) without the cancellation.
        log_slope = 2.0 * (_LOG_2 - u - xp.softplus(-2.0 * u))
        logp = self._normal_logp(standardised) - xp.sum(log_slope, axis=-1)
        return logp if self.unit_density else logp - self._box.log_half_sum(int(xp.shape(self.mean)[-1]))


def _rounding_step(xp: Namespace, x: Array) -> float:
    """Half the spacing of numbers just above 1, which is the spacing just below."""
    if x.dtype == xp.float64:
        return 2.0**-53
    return 2.0**-24 if x.dtype == xp.float32 else 2.0**-8
