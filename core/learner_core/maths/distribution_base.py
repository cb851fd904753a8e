"""The base of all action distributions: what each must answer, and how a class is bound to an array namespace."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

from ..errors import SpaceError
from ..spaces import AnySpace
from ..xp import Array, Namespace

__all__ = ["Distribution"]

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
    def bind(cls, xp: Namespace, **options: object) -> type[Self]:
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

    @classmethod
    def masked(cls, inputs: Array, mask: Array) -> Array:
        """Network outputs with those of forbidden actions put out of reach: ``from_logits(inputs, mask)`` in two steps.

        Args:
            inputs: float[..., K], logits.
            mask: bool[..., K], False where an action is forbidden.

        Returns:
            float[..., K]: no gradient goes where an action is forbidden.

        Raises:
            SpaceError: The distribution is continuous.
        """
        raise SpaceError(f"{cls.__name__}: an action mask needs discrete actions")

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
    def noise_shape(space: AnySpace) -> tuple[int, ...]:
        """The shape of one row's noise for a gymnasium action space."""
        raise NotImplementedError

    @staticmethod
    def input_size(space: AnySpace) -> int:
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


def _frozen(value: Any) -> Any:
    """Lists and arrays as tuples, so that an option can be part of a key."""
    plain = value.tolist() if hasattr(value, "tolist") else value
    return tuple(plain) if isinstance(plain, list) else plain
