"""Initial weights, sampled by numpy: the same seed starts every backend from the same numbers.

References:
    Saxe et al., Exact solutions to the nonlinear dynamics of learning, https://arxiv.org/abs/1312.6120 (orthogonal)
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["orthogonal", "placeholders", "sample_layer", "uniform_fan_in"]

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


def sample_layer(
    rng: np.random.Generator, shape: Sequence[int], *, init: str, gain: float = 1.0
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Sample a layer's weight and bias.

    Args:
        rng: Where the numbers come from.
        shape: The weight's: ``(out, in)`` or ``(out, in, height, width)``.
        init: ``"orthogonal"`` (zero bias) or ``"uniform"`` (both by :func:`uniform_fan_in`).
        gain: Scale of either.

    Returns:
        float32 ``shape`` and float32 ``[out]``.
    """
    if init == "orthogonal":
        return orthogonal(rng, shape, gain), np.zeros(shape[0], np.float32)
    fan_in, scale = math.prod(shape[1:]), np.float32(gain)
    return scale * uniform_fan_in(rng, shape, fan_in), scale * uniform_fan_in(rng, shape[:1], fan_in)
