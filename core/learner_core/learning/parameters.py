"""Named parameters as one flat vector per optimizer, and back.

A step sees parameters by name; optimizers, norm clipping, the NaN guard and gradient reduction see one vector. One
vector makes each of them a single operation on every backend, which is worth 1.8x in eager Torch and leaves fewer
values to carry through a compiled loop (docs/decisions/update-step.md).
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, StateError, did_you_mean
from ..state.dtypes import view_bytes
from ..state.memory import copy_into, map_memory, touch
from ..state.threads import batches, for_each
from ..xp import Array, Arrays, Namespace

__all__ = ["FlatLayout", "aligned_copy", "as_numbers", "match_names", "of_shape"]


#: From here on vectors get pages of their own: what malloc keeps of the old state would come on top of the new one.
_MAPPED_NBYTES = 1 << 20


class FlatLayout:
    """Where each named array lies in a flat vector; names in the given order, arrays in C order.

    Args:
        shapes: name -> shape, in storage order.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {name: tuple(shape) for name, shape in shapes.items()}
        self.names: tuple[str, ...] = tuple(self.shapes)
        self.sizes: list[int] = [math.prod(shape) for shape in self.shapes.values()]
        self.size: int = sum(self.sizes)

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def split(self, xp: Namespace, vector: Array | Arrays) -> dict[str, Array]:
        """name -> array, views where the backend has views; ``vector``: float[size], or name -> array already."""
        if not self.names:
            return {}
        if isinstance(vector, Mapping):
            return {name: vector[name] for name in self.names}
        if len(self.names) == 1:
            parts = [vector]
        else:
            parts = xp.split(vector, self.sizes, 0)
        return {name: xp.reshape(part, shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def join(self, xp: Namespace, arrays: Arrays) -> Array:
        """Flat vector float[size] of the named arrays."""
        parts = [xp.reshape(arrays[name], (-1,)) for name in self.names]
        return parts[0] if len(parts) == 1 else xp.concat(parts, 0)

    def to_host(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """name -> a view of ``vector`` [size], which the caller gives away."""
        out: dict[str, np.ndarray] = {}
        start = 0
        for (name, shape), size in zip(self.shapes.items(), self.sizes, strict=True):
            out[name] = vector[start : start + size].reshape(shape)
            start += size
        return out

    def check(self, arrays: Mapping[str, object], path: str) -> dict[str, np.ndarray]:
        """``arrays`` as numpy arrays, held to the names and shapes; nothing is copied.

        Raises:
            StateError: a name is missing or unknown, a shape differs, or a value is no number; says the path.
        """
        for name in arrays:
            if name not in self.shapes:
                raise StateError(f"unknown entry.{did_you_mean(name, self.names)}", path=f"{path}/{name}")
        checked: dict[str, np.ndarray] = {}
        for name, shape in self.shapes.items():
            if name not in arrays:
                raise StateError(f"missing; expected an array of shape {shape}", path=f"{path}/{name}")
            checked[name] = of_shape(as_numbers(arrays[name], f"{path}/{name}"), shape, f"{path}/{name}")
        return checked

    def zeros(self, dtype: npt.DTypeLike) -> np.ndarray:
        """Flat numpy vector of zeros, aligned to 64 bytes; a large one takes no memory until it is written to."""
        vector = _aligned(self.size, np.dtype(dtype))
        if vector.nbytes < _MAPPED_NBYTES:  # mapped memory is zero
            vector[...] = 0
        return vector

    def from_host(self, arrays: Mapping[str, np.ndarray], dtype: npt.DTypeLike) -> np.ndarray:
        """Flat numpy vector of arrays that ``check`` has passed, in memory of its own, aligned to 64 bytes.

        Views of a mapped file are let go of as they are copied.
        """
        vector = _aligned(self.size, np.dtype(dtype))
        targets = self.to_host(vector)

        def copy(names: list[str]) -> None:
            for name in names:
                if vector.nbytes >= _MAPPED_NBYTES:
                    touch(view_bytes(targets[name]))
                copy_into(targets[name], arrays[name])

        for_each(copy, list(batches(self.names, lambda name: targets[name].nbytes)), nbytes=vector.nbytes)
        return vector


def aligned_copy(array: np.ndarray, dtype: npt.DTypeLike) -> np.ndarray:
    """``array`` in that dtype and in memory of its own, which a backend may adopt."""
    copy = _aligned(array.size, np.dtype(dtype)).reshape(array.shape)
    copy[...] = array
    return copy


def _aligned(size: int, dtype: np.dtype[Any]) -> np.ndarray:
    """Uninitialised memory that TensorFlow can take over as it is: its kernels need it to begin at 64 bytes."""
    nbytes = size * dtype.itemsize
    if nbytes >= _MAPPED_NBYTES:
        return np.frombuffer(map_memory(nbytes), dtype)
    memory = np.empty(nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + nbytes].view(dtype)


def of_shape(array: np.ndarray, shape: Sequence[int], path: str) -> np.ndarray:
    """``array``, if it has that shape.

    Raises:
        StateError: it has not; says the path.
    """
    if array.shape != tuple(shape):
        raise StateError(f"expected shape {tuple(shape)}, got {array.shape}", path=path)
    return array


def as_numbers(value: object, path: str) -> np.ndarray:
    """``value`` as a numpy array of real numbers.

    Raises:
        StateError: it is none; says the path.
    """
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise StateError(f"expected an array, got {type(value).__name__}: {error}", path=path) from None
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        raise StateError(f"expected numbers, got dtype {array.dtype}", path=path)
    return array


def match_names(patterns: Iterable[str], names: Sequence[str], *, what: str) -> list[str]:
    """The names that any of the shell-style patterns selects, in the order of ``names``.

    Raises:
        ConfigError: a pattern selects nothing; names the nearest parameter.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        hits = fnmatch.filter(names, pattern)
        if not hits and (names or pattern != "*"):  # all of none is none
            raise ConfigError(f"{what}: {pattern!r} matches no parameter.{did_you_mean(pattern, names)}")
        chosen.update(hits)
    return [name for name in names if name in chosen]
