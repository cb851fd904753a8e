"""Gradient descent, written once for every backend, in the form torch gives it.

Needs arrays and numbers, no framework. Frameworks disagree on where epsilon stands, on what a momentum buffer
holds and on defaults, so a run could not move between them if each used its own optimizer; hence these.

Nothing here depends on the step number inside the compiled step: what does (Adam's bias corrections) is
computed on the host in float64 by :meth:`OptimizerSpec.corrections` and enters as arrays, as the rate does.

References:
    Kingma and Ba, Adam, https://arxiv.org/abs/1412.6980
    Loshchilov and Hutter, Decoupled weight decay, https://arxiv.org/abs/1711.05101
    Graves, RMSprop with centring and momentum, https://arxiv.org/abs/1308.0850
    Sutskever et al., On the importance of initialization and momentum, ICML 2013
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, did_you_mean
from ..xp import Array, Namespace

__all__ = ["OptimizerSpec", "clip_by_global_norm", "clip_by_norm", "clip_by_value", "clip_factor"]

_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "adam": {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0},
    "adamw": {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01},
    "rmsprop": {"alpha": 0.99, "eps": 1e-8, "weight_decay": 0.0, "momentum": 0.0, "centered": False},
    "sgd": {"momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False},
}


class OptimizerSpec:
    """Which optimizer, with which constants; immutable, hashable, picklable. The learning rate is not part of it.

    With gradient g (plus ``weight_decay * p`` except for adamw), rate lr, 1-based step t::

        adam     m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2
                 u = lr/(1-b1^t) * m / (sqrt(v)/sqrt(1-b2^t) + eps);  p = p - u
        adamw    u as adam;  p = p - (lr*weight_decay*p + u)
        sgd      buf = momentum*buf + (1-dampening) g (the first step: buf = g);  p = p - lr*buf
                 (nesterov: p = p - lr*(g + momentum*buf);  momentum 0: p = p - lr*g)
        rmsprop  v = alpha v + (1-alpha) g^2;  centered: m = alpha m + (1-alpha) g, v' = v - m^2, else v' = v
                 d = g / (sqrt(v') + eps);  momentum: buf = momentum*buf + d, p = p - lr*buf;  else p = p - lr*d

    Epsilon is added to the root, not under it. The delta form of adamw rounds alike under every compiler.

    Args:
        kind: ``"adam"``, ``"adamw"``, ``"sgd"`` or ``"rmsprop"``.
        hyper: The constants to change, by torch's names: ``betas``, ``eps``, ``weight_decay``, ``alpha``,
            ``momentum``, ``dampening``, ``nesterov``, ``centered``; torch's defaults otherwise.

    Raises:
        ConfigError: For an unknown kind or constant (with the nearest name), or one out of range.
    """

    __slots__ = ("hyper", "kind")
    kind: str
    hyper: Mapping[str, Any]

    def __init__(self, kind: str = "adam", **hyper: object) -> None:
        if kind not in tuple(_DEFAULTS):
            raise ConfigError(f"optimizer kind={kind!r} does not exist.{did_you_mean(kind, _DEFAULTS)}")
        values = dict(_DEFAULTS[kind])
        for name, value in hyper.items():
            if name in ("lr", "learning_rate"):
                raise ConfigError(
                    f"OptimizerSpec({kind!r}, {name}={value!r}): the rate is not part of the optimizer; "
                    "give it to register_optimizer(lr_or_lr_schedule=...)"
                )
            if name not in values:
                raise ConfigError(f"optimizer {kind!r} has no setting {name!r}.{did_you_mean(name, values)}")
            values[name] = _checked(kind, name, value)
        if values.get("nesterov") and (values["momentum"] == 0 or values["dampening"] != 0):
            raise ConfigError(
                f"optimizer 'sgd': nesterov=True needs momentum > 0 and dampening == 0, "
                f"got momentum={values['momentum']}, dampening={values['dampening']}"
            )
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "hyper", MappingProxyType(values))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"OptimizerSpec is immutable; make a new one to change {name!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"OptimizerSpec is immutable; cannot delete {name!r}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, OptimizerSpec):
            return NotImplemented
        return self.kind == other.kind and dict(self.hyper) == dict(other.hyper)

    def __hash__(self) -> int:
        return hash((self.kind, tuple(sorted(self.hyper.items()))))

    def __repr__(self) -> str:
        changed = {k: v for k, v in self.hyper.items() if v != _DEFAULTS[self.kind][k]}
        return f"OptimizerSpec({', '.join([repr(self.kind), *(f'{k}={v!r}' for k, v in changed.items())])})"

    def __reduce__(self) -> tuple[object, ...]:
        return (OptimizerSpec.from_dict, (self.to_dict(),))

    def to_dict(self) -> dict[str, Any]:
        """Plain data: ``{"kind": ..., constant: value, ...}``, with ``betas`` as a list."""
        return {"kind": self.kind, **{k: list(v) if isinstance(v, tuple) else v for k, v in self.hyper.items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> OptimizerSpec:
        """The inverse of :meth:`to_dict`."""
        return cls(**data)

    @property
    def why_idle(self) -> str:
        """Why a constant that is no default changes no step; "": each has its effect."""
        if self.hyper.get("dampening") and not self.hyper["momentum"]:
            return f"dampening={self.hyper['dampening']} would have no effect: it needs a momentum above 0"
        return ""

    @property
    def slot_names(self) -> tuple[str, ...]:
        """The moments kept per parameter: ``m`` a mean of gradients, ``v`` of squares, ``momentum`` a buffer."""
        momentum = ("momentum",) if self.hyper.get("momentum", 0.0) != 0 else ()
        if self.kind == "sgd":
            return momentum
        if self.kind == "rmsprop":
            return (*(("m",) if self.hyper["centered"] else ()), *momentum, "v")
        return ("m", "v")

    @property
    def squares(self) -> tuple[str, ...]:
        """Slots that are means of squares, and so never negative."""
        return tuple(name for name in self.slot_names if name == "v")

    @property
    def num_corrections(self) -> int:
        """How many per-step numbers :meth:`corrections` gives."""
        if self.kind in ("adam", "adamw"):
            return 2
        return 1 if self.kind == "sgd" and self.hyper["momentum"] != 0 and self.hyper["dampening"] != 0 else 0

    def corrections(self, step: int | npt.ArrayLike) -> npt.NDArray[np.float64]:
        """What depends on the step number, computed on the host.

        Args:
            step: The 1-based step (how many updates including this one), or an integer array [...] of them.

        Returns:
            float64[..., num_corrections]: adam and adamw: 1/(1-b1^t) and sqrt(1-b2^t); sgd with dampening: the
            weight of the new gradient, 1 in the first step.

        Raises:
            ConfigError: If a step is below 1 (the corrections would divide by zero).
        """
        t = np.asarray(step, dtype=np.float64)
        if np.any(t < 1):
            raise ConfigError(f"optimizer {self.kind!r}: corrections are for 1-based steps, got {step!r}")
        columns: list[npt.NDArray[np.float64]] = []
        if self.kind in ("adam", "adamw"):
            beta_1, beta_2 = self.hyper["betas"]
            columns = [1.0 / (1.0 - np.power(beta_1, t)), np.sqrt(1.0 - np.power(beta_2, t))]
        elif self.num_corrections:
            columns = [np.where(t == 1, 1.0, 1.0 - self.hyper["dampening"])]
        return np.stack(columns, axis=-1) if columns else np.zeros((*t.shape, 0), dtype=np.float64)

    def init_slots(self, xp: Namespace, params: Array) -> dict[str, Array]:
        """Zero moments for a parameter array.

        Args:
            xp: The array namespace.
            params: float[...], one parameter or the flat vector of all.

        Returns:
            {slot name: zeros like ``params``}.
        """
        return {name: xp.zeros_like(params) for name in self.slot_names}

    def update(
        self,
        xp: Namespace,
        *,
        params: Array,
        gradients: Array,
        slots: Mapping[str, Array],
        lr: Array,
        corrections: Sequence[Array],
    ) -> tuple[Array, dict[str, Array]]:
        """One step of descent; pure, elementwise, so the arrays may have any one shape.

        Args:
            xp: The array namespace.
            params: float[...].
            gradients: float[...], of the loss to be minimised.
            slots: {slot name: float[...]}.
            lr: float[], the learning rate, of the parameters' dtype.
            corrections: :attr:`num_corrections` 0-d arrays of the parameters' dtype, of this step.

        Returns:
            New parameters and new slots.
        """
        if self.kind in ("adam", "adamw"):
            return self._adam(xp, params, gradients, slots, lr, corrections)
        if self.hyper["weight_decay"] != 0:
            gradients = gradients + self.hyper["weight_decay"] * params
        if self.kind == "sgd":
            return self._sgd(params, gradients, slots, lr, corrections)
        return self._rmsprop(xp, params, gradients, slots, lr)

    def _adam(
        self,
        xp: Namespace,
        params: Array,
        gradients: Array,
        slots: Mapping[str, Array],
        lr: Array,
        corrections: Sequence[Array],
    ) -> tuple[Array, dict[str, Array]]:
        beta_1, beta_2 = self.hyper["betas"]
        decay = self.hyper["weight_decay"]
        if decay != 0 and self.kind == "adam":
            gradients = gradients + decay * params
        m = beta_1 * slots["m"] + (1.0 - beta_1) * gradients
        v = beta_2 * slots["v"] + (1.0 - beta_2) * xp.square(gradients)
        delta = (lr * corrections[0]) * m / (xp.sqrt(v) / corrections[1] + self.hyper["eps"])
        if decay != 0 and self.kind == "adamw":
            delta = (lr * decay) * params + delta
        return params - delta, {"m": m, "v": v}

    def _sgd(
        self, params: Array, gradients: Array, slots: Mapping[str, Array], lr: Array, corrections: Sequence[Array]
    ) -> tuple[Array, dict[str, Array]]:
        momentum = self.hyper["momentum"]
        if momentum == 0:
            return params - lr * gradients, {}
        added = corrections[0] * gradients if self.num_corrections else gradients
        buffer = momentum * slots["momentum"] + added
        direction = gradients + momentum * buffer if self.hyper["nesterov"] else buffer
        return params - lr * direction, {"momentum": buffer}

    def _rmsprop(
        self, xp: Namespace, params: Array, gradients: Array, slots: Mapping[str, Array], lr: Array
    ) -> tuple[Array, dict[str, Array]]:
        alpha, momentum = self.hyper["alpha"], self.hyper["momentum"]
        v = alpha * slots["v"] + (1.0 - alpha) * xp.square(gradients)
        new = {"v": v}
        if self.hyper["centered"]:
            m = alpha * slots["m"] + (1.0 - alpha) * gradients
            new["m"] = m
            # The variance of a constant gradient is zero and may round below it; torch gives NaN there.
            v = xp.clip(v - xp.square(m), 0.0)
        direction = gradients / (xp.sqrt(v) + self.hyper["eps"])
        if momentum != 0:
            direction = momentum * slots["momentum"] + direction
            new["momentum"] = direction
        return params - lr * direction, new


def clip_by_global_norm(
    xp: Namespace, gradients: Mapping[str, Array], max_norm: Array | float, *, norm: Array | None = None
) -> tuple[dict[str, Array], Array]:
    """Scale all gradients together so that their joint Euclidean norm is at most ``max_norm``.

    The factor is min(1, max_norm / (norm + 1e-6)), as in torch: gradients above the bound end a millionth of
    ``max_norm / norm`` below it, and zero gradients divide nothing by zero.

    Args:
        xp: The array namespace.
        gradients: {name: float[...]}.
        max_norm: The bound, a number or float[].
        norm: The gradients' norm where it is known already, float[].

    Returns:
        The scaled gradients, and the norm before scaling, float[].
    """
    if not gradients:
        return {}, xp.zeros(())
    if norm is None:
        norm = xp.sqrt(sum(xp.sum(xp.square(g)) for g in gradients.values()))
    factor = clip_factor(xp, norm, max_norm)
    return {name: g * factor for name, g in gradients.items()}, norm


def clip_by_norm(xp: Namespace, gradients: Mapping[str, Array], max_norm: Array | float) -> dict[str, Array]:
    """Scale each gradient on its own so that its Euclidean norm is at most ``max_norm``.

    Args:
        xp: The array namespace.
        gradients: {name: float[...]}.
        max_norm: The bound for each array, a number or float[].

    Returns:
        The scaled gradients; the factor is that of :func:`clip_by_global_norm`.
    """
    return {name: g * clip_factor(xp, xp.sqrt(xp.sum(xp.square(g))), max_norm) for name, g in gradients.items()}


def clip_by_value(xp: Namespace, gradients: Mapping[str, Array], max_value: Array | float) -> dict[str, Array]:
    """Clip every element of every gradient to [-max_value, max_value].

    Args:
        xp: The array namespace.
        gradients: {name: float[...]}.
        max_value: The bound, a number or float[].

    Returns:
        The clipped gradients.
    """
    return {name: xp.clip(g, -max_value, max_value) for name, g in gradients.items()}


def clip_factor(xp: Namespace, norm: Array, max_norm: Array | float) -> Array:
    """What gradients of this norm are multiplied by so that it is at most ``max_norm``: float[], at most 1."""
    return xp.minimum(max_norm / (norm + 1e-6), 1.0)


def _checked(kind: str, name: str, value: object) -> bool | float | tuple[float, ...]:
    where = f"optimizer {kind!r}: {name}={value!r}"
    if name in ("nesterov", "centered"):
        if not isinstance(value, bool | np.bool_):
            raise ConfigError(f"{where} is not a bool")
        return bool(value)
    if name == "betas":
        if not isinstance(value, tuple | list) or len(value) != 2:
            raise ConfigError(f"{where}: expected two numbers (beta1, beta2)")
        return tuple(_number(where, beta, below=1.0) for beta in value)
    return _number(where, value, below=1.0 if name == "alpha" else math.inf)


def _number(where: str, value: object, *, below: float) -> float:
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise ConfigError(f"{where}: expected a number")
    number = float(value)
    if not 0.0 <= number < below:
        raise ConfigError(f"{where}: expected a finite number >= 0" + (f" and < {below:g}" if below < math.inf else ""))
    return number
