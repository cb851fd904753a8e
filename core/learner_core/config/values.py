"""Values of settings that are data: what they become when they are set, and how they stand in a file.

A setting's value may be any nesting of dicts, lists, tuples, sets, numbers, texts, bytes, paths and numpy arrays; all
of these come out of a file as they went in. What looks like one of them is made one when it is set (an ``IntEnum``
becomes an int, a numpy scalar a number, an ``OrderedDict`` a dict), so that a run and its resumed twin see the same.
Refuses what can be none of them and no object to be given again either: arrays of objects, text that is no Unicode,
values that contain themselves. Everything else, functions, classes, objects, stays as it is: ``references`` says what
becomes of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from learner_core.errors import ConfigError

__all__ = ["MARKS", "mark", "same", "storable", "unmark"]

#: Levels of a value's nesting.
_MAX_DEPTH: Final = 24
_TUPLE, _SET, _FROZEN, _BYTES, _PATH = "__tuple__", "__set__", "__frozenset__", "__bytes__", "__path__"
_ITEMS, _ARRAY = "__items__", "__array__"
#: Keys of the dicts that stand for values which msgpack and TOML have no word for.
MARKS: Final = (_TUPLE, _SET, _FROZEN, _BYTES, _PATH, _ITEMS, _ARRAY)
_DTYPE: Final = re.compile(r"[<>|][biufU]\d{1,6}")


def storable(value: object, *, name: str, depth: int = 0) -> Any:
    """A value as it is kept: plain containers and numbers of Python's own; copies of all that could change.

    Args:
        value: What was set.
        name: The setting, for errors.
        depth: How deep it lies.

    Returns:
        The value; objects, functions and classes as they are.

    Raises:
        ConfigError: It cannot be stored, and could not be given again.
    """
    if depth > _MAX_DEPTH:
        raise ConfigError(f"{name}: nested more than {_MAX_DEPTH} deep, or inside itself: it could not be stored.")

    def inner(item: Any) -> Any:
        return storable(item, name=name, depth=depth + 1)

    if isinstance(value, np.generic):
        value = _scalar(value, name)
    if value is None or isinstance(value, (bool, float, int, bytes, bytearray, str)):
        return _plain_leaf(value, name)
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biufU":
            raise ConfigError(f"{name}: an array of dtype {value.dtype} cannot be stored: give numbers, or a list.")
        return np.array(value)
    if isinstance(value, (dict, MappingProxyType)):  # a space of Gymnasium is a Mapping, too
        return {inner(key): inner(item) for key, item in value.items()}
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return kind(inner(item) for item in value)
    return value


def _scalar(value: Any, name: str) -> Any:
    plain = value.item()
    if isinstance(plain, np.generic) or not isinstance(plain, (bool, int, float, str, bytes)):
        raise ConfigError(f"{name}: {value!r} of dtype {value.dtype} cannot be stored: give a number of Python's own.")
    return plain


def _plain_leaf(value: object, name: str) -> Any:
    """A number or text without its subclass, an enum's name for instance."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        text = str.__str__(value)
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ConfigError(
                f"{name}: {text!r:.80} is no text of Unicode (it has half a character) and is not stored."
            )
        return text
    for kind, convert in _CONVERSIONS:
        if isinstance(value, kind):
            return convert(value)
    return value


_CONVERSIONS: Final[tuple[tuple[type, Callable[[Any], Any]], ...]] = (
    (int, int.__int__),
    (float, float.__float__),
    (bytes, bytes),
    (bytearray, bytes),
)


def mark(value: object, plain: Callable[[Any], Any]) -> Any:
    """A container, array, path or bytes as plain data; ``NotImplemented``: it is none of these.

    Args:
        value: What :func:`storable` returned, or a part of it.
        plain: What makes the parts plain.
    """
    if isinstance(value, dict):
        if all(type(key) is str and not key.startswith("__") for key in value):
            return {key: plain(item) for key, item in value.items()}
        return {_ITEMS: [[plain(key), plain(item)] for key, item in value.items()]}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, tuple):
        return {_TUPLE: [plain(item) for item in value]}
    if isinstance(value, (set, frozenset)):
        return {_SET if isinstance(value, set) else _FROZEN: [plain(item) for item in sorted(value, key=repr)]}
    if isinstance(value, bytes):
        return {_BYTES: value.hex()}
    if isinstance(value, Path):
        return {_PATH: str(value)}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufU":
        return {_ARRAY: [value.dtype.str, list(value.shape), value.reshape(-1).tolist()]}
    return NotImplemented


def unmark(kind: str, content: Any, name: str) -> Any:
    """What a mark stands for.

    Args:
        kind: One of ``MARKS``.
        content: What stood under it, its parts read already.
        name: The setting, for errors.

    Raises:
        ConfigError: It is not as :func:`mark` makes it.
    """
    try:
        if kind in (_BYTES, _PATH):
            if not isinstance(content, str):
                raise TypeError("expected text")
            return bytes.fromhex(content) if kind == _BYTES else Path(content)
        if not isinstance(content, list):
            raise TypeError("expected a list")
        if kind == _ITEMS:
            return dict(map(_pair, content))
        if kind == _ARRAY:
            return _array(*content)
        return {_TUPLE: tuple, _SET: set, _FROZEN: frozenset}[kind](content)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name}: what is stored under {kind!r} is not understood: {error}.") from error


def _pair(pair: object) -> tuple[Any, Any]:
    if not isinstance(pair, list) or len(pair) != 2:
        raise TypeError("expected pairs of key and value")
    return pair[0], pair[1]


def _array(dtype: object, shape: object, flat: object) -> np.ndarray:
    if not isinstance(dtype, str) or not _DTYPE.fullmatch(dtype):
        raise TypeError("expected a dtype of numbers or text")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise TypeError("expected a shape")
    if not isinstance(flat, list) or len(flat) > 1 << 24:
        raise TypeError("expected the entries")
    return np.array(flat, np.dtype(dtype)).reshape(shape)


def same(left: object, right: object) -> bool:
    """Whether two values are equal, arrays in them and NaN included."""
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        return left.dtype == right.dtype and np.array_equal(left, right, equal_nan=left.dtype.kind == "f")
    if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
        return False
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(item, right[key]) for key, item in left.items())
    if isinstance(left, (list, tuple)) and type(left) is type(right):
        return len(left) == len(right) and all(map(same, left, right))
    if left is right:
        return True
    answer = left == right
    return not isinstance(answer, np.ndarray) and bool(answer)  # a numpy scalar beside a list answers with an array
