"""What counts as an array in a batch, and what memory it may take; nothing here looks at values.

On the way to other processes a batch consists of plain arrays alone: lists have become arrays, and of everything else a
word on what it was goes, for the learner to refuse. Nothing of the user's is pickled.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import BatchError

__all__ = ["Unfit", "as_plain", "check_memory", "has_elements", "shareable"]

#: Bytes that an array may have beyond the memory it lies in: broadcast ones repeat theirs.
_REPEATED = 1 << 30
_MAX_AXES = 32


@dataclasses.dataclass(frozen=True)
class Unfit:
    """Stands for something that is no column, in another process than it came from.

    Attributes:
        reason: what to say of it, where an algorithm reads the column.
    """

    reason: str


def as_plain(value: object, *, axes: int | None = None) -> np.ndarray:
    """A column as a plain array over the same memory.

    Args:
        value: an array, a list of numbers or of arrays, or anything at all.
        axes: how many are expected; a list of more is refused before it is converted. ``None``: any number.

    Raises:
        BatchError: it is neither, or a masked array.
    """
    if isinstance(value, Unfit):
        raise BatchError(value.reason)
    if isinstance(value, np.ma.MaskedArray):
        raise BatchError(
            "is a masked array, and its mask would be lost: give filled() data, and a loss_mask of 0 and 1"
        )
    if isinstance(value, np.ndarray):
        return value if type(value) is np.ndarray else np.ndarray.view(value, np.ndarray)
    if isinstance(value, (list, tuple)):
        return _of_list(value, axes)
    if hasattr(type(value), "__array__"):
        raise BatchError(
            f"is a {type(value).__module__}.{type(value).__name__}; batches are numpy arrays (call .numpy())"
        )
    raise BatchError(f"expected a numpy array, got {type(value).__name__}")


def has_elements(value: object) -> bool:
    """Whether a column has any; of what is no array or list, which is refused later, True."""
    return bool(value.size if isinstance(value, np.ndarray) else len(value) if isinstance(value, (list, tuple)) else 1)


def check_memory(array: np.ndarray, nbytes: int, total: int) -> None:
    """Refuse a column that cannot be meant: one that repeats a little memory endlessly, or more than the machine has.

    Args:
        array: the column.
        nbytes: what it takes once it is converted.
        total: what the whole batch takes.

    Raises:
        BatchError: it would take too much.
    """
    spans = sum((size - 1) * abs(step) for size, step in zip(array.shape, array.strides, strict=True))
    repeats = array.nbytes - spans - array.itemsize if array.size else 0
    if repeats > _REPEATED:
        raise BatchError(
            f"is an array of shape {list(array.shape)} over only {spans + array.itemsize} bytes of memory, which would "
            f"take {nbytes} bytes: give an array that is not broadcast"
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if total > memory:
        raise BatchError(
            f"takes {nbytes} bytes; the batch takes {total}, and this machine has {memory}: give less at once"
        )


def shareable(batch: object) -> dict[Any, Any]:
    """A batch that may go to other processes: plain arrays, and for everything else an :class:`Unfit`.

    Args:
        batch: nested dicts of columns.

    Raises:
        BatchError: it is no dict, or dicts are nested more than 32 deep.
    """
    if not isinstance(batch, Mapping):
        raise BatchError(f"a batch is a dict of numpy arrays, got {type(batch).__name__}")
    return {_key(key): _shareable(value, f"{key}/") for key, value in batch.items()}


def _shareable(value: object, path: str) -> Any:
    if isinstance(value, Mapping):
        if path.count("/") > _MAX_AXES:
            raise BatchError(f"dicts are nested more than {_MAX_AXES} deep", column=path[:100])
        return {_key(key): _shareable(inner, f"{path}{key}/") for key, inner in value.items()}
    try:
        array = as_plain(value)
        check_memory(array, array.nbytes, array.nbytes)
    except BatchError as error:
        return Unfit(str(error))
    return array if array.dtype.kind in "fiub" else Unfit(f"dtype {array.dtype} cannot be trained on")


def _key(key: object) -> object:
    """Names as they are; of other keys, which the learner refuses, no more than plain numbers and text."""
    return key if type(key) in (str, int, bool, float) or key is None else str(key)


def _of_list(value: object, axes: int | None) -> np.ndarray:
    shape = _list_shape(value)
    if axes is not None and len(shape) > axes:
        raise BatchError(f"is a list of {len(shape)} levels, expected {axes}")
    _check_list(value, shape)
    try:
        return np.asarray(value)
    except (ValueError, OverflowError):
        raise BatchError("is a ragged list, or has numbers that no array holds; give an array") from None


def _list_shape(value: object) -> tuple[int, ...]:
    """The shape by the first element of each level."""
    shape: list[int] = []
    while isinstance(value, (list, tuple)):
        shape.append(len(value))
        if len(shape) > _MAX_AXES:
            raise BatchError(f"is a list of more than {_MAX_AXES} levels")
        if not value:
            break
        value = value[0]
    if isinstance(value, np.ndarray):
        shape += value.shape
    size = 8
    for count in shape:
        size *= count
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise BatchError(f"is a list of shape {shape}, which takes {size} bytes; this machine has {memory}")
    return tuple(shape)


def _check_list(value: Any, shape: tuple[int, ...]) -> None:
    """Refuse a list that is ragged or holds anything but numbers, text and arrays, without asking it for one."""
    kinds = set(map(type, value))
    for kind in kinds - {bool, int, float, str, bytes, complex, np.ndarray, list, tuple}:
        if not issubclass(kind, np.generic) or issubclass(kind, np.object_):
            raise BatchError(f"is a list that holds {kind.__module__}.{kind.__name__}; give a numpy array")
    nested = kinds & {list, tuple}
    if kinds - nested and nested:
        raise BatchError("is a ragged list; give an array")
    if not nested and np.ndarray not in kinds:
        return
    for part in value:
        if (nested and (len(shape) < 2 or len(part) != shape[1])) or (not nested and np.shape(part) != shape[1:]):
            raise BatchError("is a ragged list; give an array")
        if nested:
            _check_list(part, shape[1:])
