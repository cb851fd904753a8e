"""Environments that answer in the arrays of another library: tensors of Torch, arrays of JAX, on whatever device.

Batched simulators do. Needs no framework and imports none: the library of an array that came is imported already. An
array is known by DLPack, its library by the array API's ``__array_namespace__``, or by its module and an ``asarray`` in
it. Who answers in such arrays is given actions in such arrays, on the device of what it showed first. Refuses nothing:
what numpy cannot take is left as it is, and refused by who reads it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

__all__ = ["ArrayForm", "as_numpy", "is_foreign"]

_OURS = (np.ndarray, np.generic, bool, int, float, str, bytes, type(None))


class ArrayForm:
    """In whose arrays one environment answers, and takes its actions: numpy's until it has shown others."""

    def __init__(self) -> None:
        self._example: Any = None
        self._numpy_answers = 0

    def read(self, answer: Any) -> Any:
        """What an environment returned, in numpy; arrays of its own may share their memory with what is returned.

        Args:
            answer: Of ``reset`` or ``step``, or a part of it: arrays in dicts, tuples and lists.
        """
        # Who has answered its first reset and its first step in numpy will go on so, and is not looked at any more.
        if self._numpy_answers > 1:
            return answer
        if self._example is None:
            self._example = _first_foreign(answer)
            if self._example is None:
                self._numpy_answers += 1
                return answer
        return as_numpy(answer)

    def give(self, values: Any) -> Any:
        """Actions, or what else the environment is given, in the arrays that it answers in; copies of numpy's."""
        return values if self._example is None else _mapped(self._in_its_arrays, values)

    def _in_its_arrays(self, value: Any) -> Any:
        example = self._example
        make = _maker(example)
        if make is None or not isinstance(value, np.ndarray | np.generic):
            return value
        with contextlib.suppress(TypeError):  # a library whose ``asarray`` knows no devices
            return make(np.array(value), device=example.device)
        return make(np.array(value))


def is_foreign(value: Any) -> bool:
    """Whether a value is an array of another library than numpy."""
    return not isinstance(value, _OURS) and hasattr(value, "__dlpack__") and _maker(value) is not None


def as_numpy(answer: Any) -> Any:
    """Arrays of other libraries, in dicts, tuples and lists, as numpy's; all else as it is."""
    return _mapped(_converted, answer)


def _converted(value: Any) -> Any:
    if not is_foreign(value):
        return value
    for method in ("detach", "cpu"):  # Torch's, whose arrays come from no other device by themselves
        if callable(found := getattr(value, method, None)):
            value = found()
    try:
        return np.asarray(value)
    except Exception:  # a dtype that numpy does not have
        return value


def _maker(array: Any) -> Callable[..., Any] | None:
    """``asarray`` of the library that an array is of."""
    if hasattr(array, "__array_namespace__"):
        library = array.__array_namespace__()
    else:
        library = sys.modules.get(type(array).__module__.partition(".")[0])
    found: Callable[..., Any] | None = getattr(library, "asarray", None)
    return found


def _mapped(convert: Callable[[Any], Any], tree: Any) -> Any:
    if isinstance(tree, _OURS):
        return convert(tree)
    if isinstance(tree, Mapping):
        return {key: _mapped(convert, item) for key, item in tree.items()}
    if isinstance(tree, tuple | list):
        return (list if isinstance(tree, list) else tuple)(_mapped(convert, item) for item in tree)
    return convert(tree)


def _first_foreign(tree: Any) -> Any:
    if isinstance(tree, _OURS):
        return None
    if not isinstance(tree, Mapping | tuple | list):
        return tree if is_foreign(tree) else None
    parts = tree.values() if isinstance(tree, Mapping) else tree
    return next((found for part in parts if (found := _first_foreign(part)) is not None), None)
