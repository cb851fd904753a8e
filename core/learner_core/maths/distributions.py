"""Action distributions over ``xp``: log-probability, entropy, divergence, sampling from given noise.

Needs arrays on the last axis and noise from the host; draws nothing itself. Refuses spaces it cannot act in.

A distribution class is bound to an array namespace once, at build::

    Dist = distribution_for(action_space, xp)                # or Categorical.bind(xp)
    dist = Dist.from_logits(inputs)                          # inputs: float[..., Dist.input_size(action_space)]
    actions = dist.sample(noise)                             # noise: float[..., *Dist.noise_shape(action_space)]

Discrete sampling takes two normal numbers per category: half their squared length is exponentially distributed,
exactly, with no tail to lose, and the category of the smallest ``exponential / probability`` is a sample.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

from ..errors import SpaceError
from ..xp import Array, Namespace

__all__ = [
    "Bernoulli",
    "Categorical",
    "DiagGaussian",
    "Distribution",
    "MultiCategorical",
    "SquashedGaussian",
    "distribution_for",
]

# What a forbidden action's logit becomes: its probability is exactly 0, and every product with it stays finite.
_FORBIDDEN = -1e9
_LOG_2 = math.log(2.0)
_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
_BOUND: dict[tuple[Any, ...], type[Any]] = {}


class Distribution:
    """A batch of distributions over one action space; the base class.

    A subclass says which ``options`` it takes (static, hashable), how it is made from network outputs, and the
    methods below. ``event_shape`` is the shape of one action: a subclass computes on the flat last axis, this
    class folds and unfolds.
    """

    xp: ClassVar[Any]
    event_shape: ClassVar[tuple[int, ...] | None] = None  # None: one-dimensional, of whatever length the inputs say
    options: ClassVar[tuple[str, ...]] = ("event_shape",)

    @classmethod
    def bind(cls, xp: Namespace, **options: Any) -> type[Self]:
        """A subclass bound to an array namespace, the same one each time it is asked for.

        Args:
            xp: The array namespace.
            options: The class's own, see :attr:`options`; lists become tuples.

        Returns:
            The bound class.

        Raises:
            SpaceError: For an option the class does not have.
        """
        frozen = {name: _frozen(value) for name, value in options.items()}
        for name in frozen:
            if name not in cls.options:
                raise SpaceError(f"{cls.__name__}.bind: no option {name!r}; there is: {', '.join(cls.options)}")
        key = (cls, xp, *sorted(frozen.items(), key=lambda item: item[0]))
        if key not in _BOUND:
            _BOUND[key] = type(cls.__name__, (cls,), {"xp": xp, "__module__": cls.__module__, **frozen})
        return _BOUND[key]

    @classmethod
    def from_logits(cls, inputs: Array, mask: Array | None = None) -> Self:
        """Make the distributions from network outputs.

        Args:
            inputs: float[..., P], logits, or [mean, log_std] concatenated.
            mask: bool[..., K], False where an action is forbidden; discrete distributions only.

        Returns:
            A batch of distributions of shape [...].

        Raises:
            SpaceError: If a mask is given to a continuous distribution.
        """
        raise NotImplementedError

    def logp(self, x: Array) -> Array:
        """Log-probability (density) of actions.

        Args:
            x: [..., *event_shape], actions as :meth:`sample` gives them.

        Returns:
            float[...], in nats.
        """
        raise NotImplementedError

    def entropy(self) -> Array:
        """Entropy (differential for continuous actions).

        Returns:
            float[...], in nats.
        """
        raise NotImplementedError

    def kl(self, other: Self) -> Array:
        """Kullback-Leibler divergence KL(self || other).

        Args:
            other: Distributions of the same class and shape.

        Returns:
            float[...], in nats.
        """
        raise NotImplementedError

    def sample(self, noise: Array) -> Array:
        """Actions, as a function of the parameters and of noise; reparametrised where actions are continuous.

        Args:
            noise: float[..., *noise_shape(space)], standard normal.

        Returns:
            [..., *event_shape]: int64 for discrete actions, else the inputs' dtype.
        """
        raise NotImplementedError

    def mode(self) -> Array:
        """The most likely actions.

        Returns:
            [..., *event_shape].
        """
        raise NotImplementedError

    def sample_with_logp(self, noise: Array) -> tuple[Array, Array]:
        """Actions and their log-probability, more exact than :meth:`logp` of them where the two differ.

        Args:
            noise: float[..., *noise_shape(space)], standard normal.

        Returns:
            Actions [..., *event_shape] and float[...].
        """
        x = self.sample(noise)
        return x, self.logp(x)

    @staticmethod
    def noise_shape(space: Any) -> tuple[int, ...]:
        """The shape of one row's noise for a gymnasium action space."""
        raise NotImplementedError

    @staticmethod
    def input_size(space: Any) -> int:
        """The number of network outputs, P, for a gymnasium action space."""
        raise NotImplementedError

    @classmethod
    def _fold(cls, flat: Array) -> Array:
        """[..., A] -> [..., *event_shape]."""
        if cls.event_shape is None or len(cls.event_shape) == 1:
            return flat
        return cls.xp.reshape(flat, (*cls.xp.shape(flat)[:-1], *cls.event_shape))

    @classmethod
    def _flat(cls, x: Array) -> Array:
        """[..., *event_shape] -> [..., A]."""
        if cls.event_shape is None or len(cls.event_shape) == 1:
            return x
        shape = cls.xp.shape(x)
        return cls.xp.reshape(x, (*shape[: len(shape) - len(cls.event_shape)], math.prod(cls.event_shape)))


class Categorical(Distribution):
    """One of K actions, from logits [..., K]; actions int64[...] from ``start`` on."""

    event_shape = ()
    start: ClassVar[int] = 0
    options: ClassVar[tuple[str, ...]] = ("start",)

    def __init__(self, logits: Array) -> None:
        self.log_probs = self.xp.log_softmax(logits, axis=-1)

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
    def noise_shape(space: Any) -> tuple[int, ...]:
        return (2 * int(space.n),)

    @staticmethod
    def input_size(space: Any) -> int:
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
    def bind(cls, xp: Namespace, **options: Any) -> type[Self]:
        bound = super().bind(xp, **options)
        starts = bound.start or (0,) * len(bound.nvec)
        bound._choices = tuple(Categorical.bind(xp, start=start) for start in starts)
        return bound

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
    def noise_shape(space: Any) -> tuple[int, ...]:
        return (2 * int(space.nvec.sum()),)

    @staticmethod
    def input_size(space: Any) -> int:
        return int(space.nvec.sum())


class Bernoulli(Distribution):
    """Independent bits, from the logits of a one; actions int64[..., *event_shape] of 0 and 1. A mask forbids ones."""

    def __init__(self, logits: Array) -> None:
        # log p(1) and log p(0): softplus of either sign stays exact where the probability rounds to 0 or 1.
        self.log_one = -self.xp.softplus(-logits)
        self.log_zero = -self.xp.softplus(logits)

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
    def noise_shape(space: Any) -> tuple[int, ...]:
        return (2 * math.prod(space.shape),)

    @staticmethod
    def input_size(space: Any) -> int:
        return math.prod(space.shape)


class DiagGaussian(Distribution):
    """Independent normal numbers, from [mean, log_std] [..., 2A]; actions are not bounded.

    Options: ``log_std_range``, None or (low, high) bounds of the logarithm of the standard deviation; ``event_shape``.
    """

    log_std_range: ClassVar[tuple[float, float] | None] = None
    options: ClassVar[tuple[str, ...]] = ("event_shape", "log_std_range")

    def __init__(self, mean: Array, log_std: Array) -> None:
        if self.log_std_range is not None:
            log_std = self.xp.clip(log_std, *self.log_std_range)
        self.mean, self.log_std = mean, log_std

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
    def noise_shape(space: Any) -> tuple[int, ...]:
        return (math.prod(space.shape),)

    @staticmethod
    def input_size(space: Any) -> int:
        return 2 * int(math.prod(space.shape))


class SquashedGaussian(DiagGaussian):
    """Normal numbers u through tanh onto [low, high], from [mean, log_std] [..., 2A].

    ::

        x = centre + half * tanh(u),      log p(x) = log N(u) - sum log half + 2 (log 2 - u - softplus(-2u))

    :meth:`sample_with_logp` keeps u. :meth:`logp` of an action must find it again through atanh, with the action
    held one rounding step inside the bounds: where tanh has rounded to 1 it is wrong by whatever was lost, so a
    loss that needs the log-probability of its own samples uses the former. :meth:`mode` is the squashed mean (the
    median, not the maximum of the density). The divergence is that of the normal distributions: the map is the same.

    Options: ``low`` and ``high`` (numbers, or tuples of A, finite), ``log_std_range`` and ``event_shape``.

    References:
        Haarnoja et al., Soft actor-critic, https://arxiv.org/abs/1801.01290, appendix C
    """

    low: ClassVar[float | tuple[float, ...]] = -1.0
    high: ClassVar[float | tuple[float, ...]] = 1.0
    log_std_range: ClassVar[tuple[float, float] | None] = (-20.0, 2.0)
    options: ClassVar[tuple[str, ...]] = ("event_shape", "high", "log_std_range", "low")

    def logp(self, x: Array) -> Array:
        xp = self.xp
        centre, half = self._affine()
        y = (self._flat(x) - centre) / half
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
        centre, half = self._affine()
        return self._fold(centre + half * self.xp.tanh(u))

    def _squashed_logp(self, u: Array, standardised: Array | None) -> Array:
        xp = self.xp
        if standardised is None:
            standardised = (u - self.mean) * xp.exp(-self.log_std)
        # log(1 - tanh(u)^2) without the cancellation.
        log_slope = 2.0 * (_LOG_2 - u - xp.softplus(-2.0 * u))
        return self._normal_logp(standardised) - xp.sum(log_slope, axis=-1) - self._log_half_sum()

    def _affine(self) -> tuple[Any, Any]:
        """Centre and half width: numbers, or float[1.., A] made on the parameters' own device."""
        pairs = _pairs(self.low, self.high)
        centres, halves = [0.5 * (low + high) for low, high in pairs], [0.5 * (high - low) for low, high in pairs]
        return self._constant(centres), self._constant(halves)

    def _constant(self, values: list[float]) -> Any:
        if all(value == values[0] for value in values):
            return values[0]
        columns = [self.xp.full_like(self.mean[..., i : i + 1], value) for i, value in enumerate(values)]
        return self.xp.concat(columns, axis=-1)

    def _log_half_sum(self) -> float:
        pairs = _pairs(self.low, self.high)
        logs = [math.log(0.5 * (high - low)) for low, high in pairs]
        return sum(logs) if isinstance(self.low, tuple) or isinstance(self.high, tuple) else logs[0] * self._size()

    def _size(self) -> int:
        return int(self.xp.shape(self.mean)[-1])


def distribution_for(
    space: Any, xp: Namespace, squash: bool = False, log_std_range: tuple[float, float] | None = None
) -> type[Distribution]:
    """The distribution of a gymnasium action space.

    Args:
        space: Discrete, MultiDiscrete, MultiBinary, or Box of floats.
        xp: The array namespace to bind it to.
        squash: For a Box: tanh onto its bounds (which must be finite) instead of an unbounded normal.
        log_std_range: For a Box: clip the logarithm of the standard deviation. None: (-20, 2) when squashed, else
            no clipping.

    Returns:
        The bound class; the same one each time.

    Raises:
        SpaceError: For any other space, for integer boxes, and for squashing onto infinite or empty bounds.
    """
    import numpy as np
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        return Categorical.bind(xp, start=int(space.start))
    if isinstance(space, spaces.MultiDiscrete):
        start = np.asarray(getattr(space, "start", np.zeros_like(space.nvec)))
        return MultiCategorical.bind(
            xp,
            nvec=tuple(int(n) for n in space.nvec.ravel()),
            start=tuple(int(s) for s in start.ravel()),
            event_shape=space.nvec.shape,
        )
    if isinstance(space, spaces.MultiBinary):
        return Bernoulli.bind(xp, event_shape=tuple(space.shape))
    if not isinstance(space, spaces.Box):
        raise SpaceError(
            f"action space {space!r} has no distribution: expected Discrete, MultiDiscrete, MultiBinary or Box; "
            "flatten Dict and Tuple actions in an environment wrapper"
        )
    if not np.issubdtype(space.dtype, np.floating):
        raise SpaceError(f"action space {space!r}: a Box of {space.dtype} has no distribution; use MultiDiscrete")
    options: dict[str, Any] = {"event_shape": tuple(int(size) for size in space.shape)}
    if log_std_range is not None:
        options["log_std_range"] = tuple(float(bound) for bound in log_std_range)
    if not squash:
        return DiagGaussian.bind(xp, **options)
    low, high = space.low.astype(np.float64).ravel(), space.high.astype(np.float64).ravel()
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        raise SpaceError(f"action space {space!r}: squashing needs finite bounds with low < high in every dimension")
    return SquashedGaussian.bind(xp, low=tuple(low.tolist()), high=tuple(high.tolist()), **options)


def _masked(xp: Namespace, logits: Array, mask: Array | None) -> Array:
    if mask is None:
        return logits
    return xp.where(xp.astype(mask, xp.bool), logits, xp.full_like(logits, _FORBIDDEN))


def _exponentials(xp: Namespace, noise: Array, like: Array) -> Array:
    """Half the squared length of two normals is exponential with mean 1; never exactly 0."""
    size = xp.shape(noise)[-1] // 2
    noise = xp.astype(noise, like.dtype)
    return 0.5 * (xp.square(noise[..., :size]) + xp.square(noise[..., size:])) + 1e-30


def _rounding_step(xp: Namespace, x: Array) -> float:
    """Half the spacing of numbers just above 1, which is the spacing just below."""
    if x.dtype == xp.float64:
        return 2.0**-53
    return 2.0**-24 if x.dtype == xp.float32 else 2.0**-8


def _total(parts: list[Array]) -> Array:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _frozen(value: Any) -> Any:
    """Lists and arrays as tuples, so that an option can be part of a key."""
    plain = value.tolist() if hasattr(value, "tolist") else value
    return tuple(plain) if isinstance(plain, list) else plain


def _pairs(low: float | tuple[float, ...], high: float | tuple[float, ...]) -> list[tuple[float, float]]:
    lows = low if isinstance(low, tuple) else (low,)
    highs = high if isinstance(high, tuple) else (high,)
    size = max(len(lows), len(highs))
    return list(zip(lows * (size // len(lows)), highs * (size // len(highs)), strict=True))
