"""The dtypes a state may hold, and arrays as little-endian C-order bytes.

Needs numpy; ml_dtypes only when a bfloat16 or float8 array passes. Refuses every dtype that is not on the list:
the list is what keeps object arrays, and with them pickle, out of state files.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import StateError

__all__ = [
    "BLOCK_NBYTES",
    "DTYPE_NAMES",
    "blocks",
    "dtype_from_name",
    "name_of",
    "view_bytes",
]

_NATIVE = frozenset(
    {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}
    | {"float16", "float32", "float64", "complex64", "complex128"}
)
_ML_DTYPES = frozenset(
    {"bfloat16", "float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz"}
    | {"float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"}
)

DTYPE_NAMES = _NATIVE | _ML_DTYPES
"""Every dtype name that may occur in a state file."""

BLOCK_NBYTES = 1 << 22
"""Non-contiguous and big-endian arrays are converted in blocks of about this size, never as a whole."""


@functools.cache
def dtype_from_name(name: str) -> np.dtype:
    """The little-endian dtype of that name.

    Args:
        name: One of `DTYPE_NAMES`.

    Returns:
        The dtype.

    Raises:
        StateError: the name is not on the list, or needs ml_dtypes, which is not installed.
    """
    if name in _NATIVE:
        little: np.dtype[Any] = np.dtype(name).newbyteorder("<")
        return little
    if name not in DTYPE_NAMES:
        raise StateError(f"dtype {name!r} is not one a state may hold; allowed: {' '.join(sorted(DTYPE_NAMES))}")
    try:
        extended: np.dtype[Any] = np.dtype(getattr(importlib.import_module("ml_dtypes"), name))
        return extended
    except (ImportError, AttributeError) as error:
        raise StateError(f"dtype {name!r} needs the package ml_dtypes (a version that has it): {error}") from error


def name_of(dtype: np.dtype) -> str | None:
    """The name under which a dtype is stored.

    Args:
        dtype: Any numpy dtype, in any byte order.

    Returns:
        One of `DTYPE_NAMES`, or None when a state may not hold this dtype.
    """
    name = dtype.name
    if name in _NATIVE:
        return name
    if name in DTYPE_NAMES and dtype == dtype_from_name(name):
        return name
    return None


def view_bytes(array: np.ndarray) -> memoryview:
    """The memory of a C-contiguous array, of any dtype, as bytes.

    Args:
        array: A C-contiguous array.

    Returns:
        A view (format "B"), writable if the array is.
    """
    flat: Any = array.reshape(-1).view(np.uint8)
    return memoryview(flat)


def blocks(array: np.ndarray) -> Iterator[memoryview]:
    """The bytes of an array in C order and little-endian, in one or several pieces.

    An array that already lies that way is yielded as one view of its own memory; any other is converted piece by
    piece, so that the extra memory stays near `BLOCK_NBYTES` however large the array is.

    Args:
        array: Any array whose dtype `name_of` knows.

    Yields:
        memoryview of bytes (format "B"), in order.
    """
    if array.size == 0:
        return
    if array.flags.c_contiguous and array.dtype.newbyteorder("<") == array.dtype:
        yield view_bytes(array)
    elif array.nbytes <= BLOCK_NBYTES or array.ndim == 0:
        little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=True)
        yield view_bytes(little)
    else:
        rows = max(1, BLOCK_NBYTES * array.shape[0] // array.nbytes)
        for start in range(0, array.shape[0], rows):
            part = array[start : start + rows]
            yield from blocks(part[0] if len(part) == 1 and part.nbytes > BLOCK_NBYTES else part)
