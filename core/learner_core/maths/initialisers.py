"""Initial weights, sampled by numpy: the same seed starts every backend from the same numbers.

References:
    Saxe et al., Exact solutions to the nonlinear dynamics of learning, https://arxiv.org/abs/1312.6120 (orthogonal)
    Glorot and Bengio, Understanding the difficulty of training deep feedforward neural networks, AISTATS 2010 (Xavier)
    He et al., Delving deep into rectifiers, https://arxiv.org/abs/1502.01852 (Kaiming)
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, did_you_mean

__all__ = [
    "INITS",
    "ModelSettings",
    "Parameters",
    "init_name",
    "orthogonal",
    "placeholders",
    "sample_layer",
    "sample_recurrent",
    "uniform_fan_in",
    "uniform_scaled",
]

Parameters: TypeAlias = dict[str, npt.NDArray[np.float32]]
#: What ``model`` says of a module's networks: a setting's value by its name.
ModelSettings: TypeAlias = Mapping[str, Any]

INITS: Final = ("orthogonal", "uniform", "xavier_uniform", "kaiming_uniform")
"""The values of ``init``."""

#: Keras's words for two of them.
_SYNONYMS: Final = {"glorot_uniform": "xavier_uniform", "he_uniform": "kaiming_uniform"}
#: Scale of a hidden layer's weights, by kind; Kaiming's own factor of sqrt(2) is in its bound.
_HIDDEN_GAINS: Final = {"orthogonal": math.sqrt(2.0)}

_REPLACED: contextvars.ContextVar[bool] = contextvars.ContextVar("_REPLACED", default=False)
#: Elements from which on a QR decomposition is work and memory (five matrices of float64) worth sparing.
_LARGE = 1 << 18


@contextlib.contextmanager
def placeholders() -> Iterator[None]:
    """While it is open, weights are sampled that a saved state will replace: large ones need not be orthogonal.

    They are of the same size, and the generator is left as it would have been.
    """
    token = _REPLACED.set(True)
    try:
        yield
    finally:
        _REPLACED.reset(token)


def orthogonal(rng: np.random.Generator, shape: Sequence[int], gain: float = 1.0) -> npt.NDArray[np.float32]:
    """Sample a weight with orthogonal rows, or columns where there are more rows than columns.

    Args:
        rng: Where the numbers come from.
        shape: ``(out, in, ...)``: all axes but the first count as columns.
        gain: Scale: every singular value of the matrix.

    Returns:
        float32 ``shape``, from the uniform (Haar) distribution over such matrices.
    """
    rows, columns = shape[0], math.prod(shape[1:])
    larger, smaller = max(rows, columns), min(rows, columns)
    normals = rng.standard_normal((larger, smaller))
    if _REPLACED.get() and normals.size >= _LARGE:
        normals *= gain / math.sqrt(larger)
        return normals.astype(np.float32).reshape(shape)
    q, r = np.linalg.qr(normals)
    q *= np.where(np.diagonal(r) < 0, -1.0, 1.0)  # without it QR's own sign convention would bias the distribution
    matrix = q if rows >= columns else q.T
    return np.ascontiguousarray(gain * matrix, dtype=np.float32).reshape(shape)


def uniform_fan_in(rng: np.random.Generator, shape: Sequence[int], fan_in: int) -> npt.NDArray[np.float32]:
    """Sample weights or biases uniformly on ``(-1/sqrt(fan_in), 1/sqrt(fan_in))``, torch's default for both.

    Args:
        rng: Where the numbers come from.
        shape: The shape wanted.
        fan_in: How many numbers each output sums: inputs times kernel area.

    Returns:
        float32 ``shape``.
    """
    bound = 1.0 / math.sqrt(fan_in)
    return rng.uniform(-bound, bound, tuple(shape)).astype(np.float32)


def uniform_scaled(rng: np.random.Generator, shape: Sequence[int], *, kind: str) -> npt.NDArray[np.float32]:
    """Sample a weight uniformly on (-b, b), with b after Glorot or He::

        xavier_uniform:   b = sqrt(6 / (fan_in + fan_out))
        kaiming_uniform:  b = sqrt(6 / fan_in)

    Args:
        rng: Where the numbers come from.
        shape: The weight's: ``(out, in)`` or ``(out, in, height, width)``; both fans count the kernel's area.
        kind: ``"xavier_uniform"`` or ``"kaiming_uniform"``.

    Returns:
        float32 ``shape``.
    """
    area = math.prod(shape[2:])
    fans = shape[1] * area + (shape[0] * area if kind == "xavier_uniform" else 0)
    bound = math.sqrt(6.0 / fans)
    return rng.uniform(-bound, bound, tuple(shape)).astype(np.float32)


def init_name(value: object) -> str:
    """The initialiser that a model's ``init`` names.

    Raises:
        ConfigError: There is none.
    """
    name = _SYNONYMS.get(value, value) if isinstance(value, str) else value
    if name not in INITS:
        raise ConfigError(f"init={value!r} does not exist.{did_you_mean(str(value), (*INITS, *_SYNONYMS))}")
    return str(name)


def sample_layer(
    rng: np.random.Generator, shape: Sequence[int], *, init: str, gain: float | None = None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Sample a layer's weight and bias.

    Args:
        rng: Where the numbers come from.
        shape: The weight's: ``(out, in)`` or ``(out, in, height, width)``.
        init: A name in ``INITS``. Biases are zero, but with ``"uniform"``, Torch's default, which samples both by
            :func:`uniform_fan_in`.
        gain: Scale of what is sampled; ``None``: that of a hidden layer, sqrt(2) for ``"orthogonal"``, else 1.

    Returns:
        float32 ``shape`` and float32 ``[out]``.
    """
    gain = _HIDDEN_GAINS.get(init, 1.0) if gain is None else gain
    if init == "orthogonal":
        return orthogonal(rng, shape, gain), np.zeros(shape[0], np.float32)
    scale = np.float32(gain)
    if init != "uniform":
        return scale * uniform_scaled(rng, shape, kind=init), np.zeros(shape[0], np.float32)
    fan_in = math.prod(shape[1:])
    return scale * uniform_fan_in(rng, shape, fan_in), scale * uniform_fan_in(rng, shape[:1], fan_in)


def sample_recurrent(
    rng: np.random.Generator, num_gates: int, input_size: int, hidden_size: int, *, init: str
) -> list[npt.NDArray[np.float32]]:
    """Sample a recurrent layer: each gate's matrices by themselves.

    Args:
        rng: Where the numbers come from.
        num_gates: Blocks of rows in the weights.
        input_size: Length of an input.
        hidden_size: Length of the state.
        init: A name in ``INITS``. ``"uniform"``: all within 1 / sqrt(hidden), Torch's default for recurrent layers.
            Else the input's matrices are by that name, the state's are orthogonal (as in Keras) and biases are zero.

    Returns:
        ``weight_ih [gates * hidden, input]``, ``weight_hh [gates * hidden, hidden]`` and both biases, float32.
    """
    rows = num_gates * hidden_size
    shapes = [(rows, input_size), (rows, hidden_size), (rows,), (rows,)]
    if init == "uniform":
        return [uniform_fan_in(rng, shape, hidden_size) for shape in shapes]

    def gate(size: int, kind: str) -> npt.NDArray[np.float32]:
        shape = (hidden_size, size)
        return orthogonal(rng, shape) if kind == "orthogonal" else uniform_scaled(rng, shape, kind=kind)

    weights = [
        np.concatenate([gate(size, kind) for _ in range(num_gates)])
        for size, kind in ((input_size, init), (hidden_size, "orthogonal"))
    ]
    return [*weights, *(np.zeros(rows, np.float32) for _ in range(2))]
