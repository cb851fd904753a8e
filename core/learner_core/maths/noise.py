"""Random numbers as data: a pure function of (seed, step, stream), drawn on the host.

Needs numpy only. The generators of the frameworks are opaque, differ from each other and from version to
version, so no compiled step draws anything; it is handed noise. Words come from Philox4x64-10, a block cipher in
counter mode: the key is the seed, the counter holds (block, 0, step, stream), so any draw can be had at any
time, nothing has to be remembered or restored, and streams of different names never overlap.

Row r of a draw takes the words r*w to (r+1)*w, so it does not depend on how many rows are asked for: padding a
minibatch, or giving each of N learners a slice of it, changes no draw.

References:
    Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011
    Box and Muller, A note on the generation of random normal deviates, 1958
"""

from __future__ import annotations

import hashlib
import math
import threading
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError

__all__ = ["normals", "permutation", "stream_id", "uniforms"]

_WORD = (1 << 64) - 1
_SEED_LIMIT = 1 << 128


@lru_cache(maxsize=4096)
def stream_id(name: str) -> int:
    """The number of a named stream: the same in every process, on every machine, for ever.

    Args:
        name: Any string, e.g. ``"default_policy/actions"``.

    Returns:
        An integer in [0, 2**64).
    """
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def normals(
    seed: int, step: int, stream: int | str, rows: int, shape: tuple[int, ...] = (), dtype: npt.DTypeLike = np.float32
) -> np.ndarray:
    """Independent standard normal numbers.

    Args:
        seed: The run's seed, in [0, 2**128).
        step: The draw's number, in [0, 2**64), for instance the count of minibatch steps so far.
        stream: What the noise is for: a :func:`stream_id` or its name.
        rows: How many rows.
        shape: The shape of one row.
        dtype: float32 or float64; computed in float64 either way, so float32 is the rounded float64.

    Returns:
        dtype[rows, *shape]; row r is the same whatever ``rows`` is.

    Raises:
        ConfigError: If seed, step, stream or rows is out of range.
    """
    size = math.prod(shape)
    width = size + size % 2
    words = _raw(seed, step, stream, rows * width).reshape(-1, 2)
    mantissa = (words >> np.uint64(11)).astype(np.float64)
    # u_1 in (0, 1], so that its logarithm is finite; u_2 in [0, 1).
    radius = np.sqrt(-2.0 * np.log((mantissa[:, 0] + 1.0) * 2.0**-53))
    # Cosine and sine of 2 pi u_2 from the tangent of half the angle: one slow function instead of two.
    tangent = np.tan(mantissa[:, 1] * (math.pi * 2.0**-53))
    square = np.square(tangent)
    scale = radius / (1.0 + square)
    out = np.empty((rows * width // 2, 2), dtype=dtype)
    np.multiply(scale, 1.0 - square, out=out[:, 0], casting="same_kind")
    np.multiply(scale, 2.0 * tangent, out=out[:, 1], casting="same_kind")
    flat = out.reshape(rows, width)
    return (flat if width == size else np.ascontiguousarray(flat[:, :size])).reshape(rows, *shape)


def uniforms(
    seed: int, step: int, stream: int | str, rows: int, shape: tuple[int, ...] = (), dtype: npt.DTypeLike = np.float32
) -> np.ndarray:
    """Independent uniform numbers in [0, 1): multiples of 2**-24 (float32) or 2**-53 (float64).

    Args:
        seed: The run's seed, in [0, 2**128).
        step: The draw's number, in [0, 2**64).
        stream: What the noise is for: a :func:`stream_id` or its name.
        rows: How many rows.
        shape: The shape of one row.
        dtype: float32 (the 24 leading bits of each word, so that it never rounds to 1) or float64 (53 bits).

    Returns:
        dtype[rows, *shape]; row r is the same whatever ``rows`` is.

    Raises:
        ConfigError: If seed, step, stream or rows is out of range.
    """
    bits = 53 if np.dtype(dtype) == np.float64 else 24
    words = _raw(seed, step, stream, rows * math.prod(shape))
    # Exact: the integer fits the mantissa, and the factor is a power of two.
    return ((words >> np.uint64(64 - bits)).astype(np.float64) * 2.0**-bits).astype(dtype).reshape(rows, *shape)


def permutation(seed: int, step: int, stream: int | str, n: int) -> npt.NDArray[np.int64]:
    """A random order of 0 .. n-1.

    Each index is written over the low bits of a random word, and the words are sorted: no two are equal, so the
    order does not depend on the sorting algorithm.

    Args:
        seed: The run's seed, in [0, 2**128).
        step: The draw's number, in [0, 2**64).
        stream: What the order is for: a :func:`stream_id` or its name.
        n: How many, below 2**32.

    Returns:
        int64[n].

    Raises:
        ConfigError: If seed, step, stream or n is out of range.
    """
    if n >= 1 << 32:
        raise ConfigError(f"permutation of n={n}: at most 2**32 - 1 elements")
    mask = np.uint64((1 << max(n - 1, 0).bit_length()) - 1)
    keys = (_raw(seed, step, stream, n) & ~mask) | np.arange(n, dtype=np.uint64)
    keys.sort()
    return (keys & mask).astype(np.int64)


class _Words(threading.local):
    """One bit generator per thread, set to each draw's counter: making a new one costs more than the draw."""

    def __init__(self) -> None:
        self.generator = np.random.Philox(key=0, counter=0)
        self.counter = np.zeros(4, dtype=np.uint64)
        self.key = np.zeros(2, dtype=np.uint64)
        self.state: Any = {
            "bit_generator": "Philox",
            "state": {"counter": self.counter, "key": self.key},
            "buffer": np.zeros(4, dtype=np.uint64),
            "buffer_pos": 4,
            "has_uint32": 0,
            "uinteger": 0,
        }


_words = _Words()


def _raw(seed: int, step: int, stream: int | str, count: int) -> npt.NDArray[np.uint64]:
    number = stream_id(stream) if isinstance(stream, str) else stream
    seed, step, number = int(seed), int(step), int(number)
    if not (0 <= seed < _SEED_LIMIT and 0 <= step <= _WORD and 0 <= number <= _WORD and count >= 0):
        raise ConfigError(
            f"noise: seed={seed} must be in [0, 2**128), step={step} and stream={number} in [0, 2**64), "
            f"count={count} >= 0"
        )
    words = _words
    words.counter[:] = (0, 0, step, number)
    words.key[:] = (seed & _WORD, seed >> 64)
    words.generator.state = words.state
    return words.generator.random_raw(count)
