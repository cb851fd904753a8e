"""State trees with one thing wrong: what a bit flip, an editor, another version or an attacker might make of one.

A mutant is a function of the tree and of a seed. What is not changed is shared with the tree, nothing of it is written
to. Every mutant can be written to a state file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

__all__ = ["mutant"]

Path = tuple[Any, ...]

#: Instead of a leaf or of a whole part.
_STRANGERS: tuple[Any, ...] = (
    None, True, False, 0, 1, 7, -1, -4, 0.5, -0.5, "", "x", "3", b"x", [], {}, [1.0], [[1.0]], [None], {"x": 1},
    {"x": {"x": [1]}}, {1: 2}, float("nan"), float("inf"), -float("inf"), 1e308, -1e308, 2**31, 2**62, 2**63, 2**70,
    -(2**70), 2**2000, np.float32("nan"), np.int8(-3), np.float64(0.25), np.zeros((1, 2, 1)), np.zeros(0),
    np.zeros((), np.int64), np.full(3, np.nan), np.ones((2, 2), np.uint8), np.zeros((4, 0, 3), np.float32),
    np.array([True, False]), np.array([1 + 2j]), ["a", "b"], [0, "x", None],
)  # fmt: skip


def mutant(tree: Any, rng: np.random.Generator) -> tuple[Any, str]:
    """A copy of the tree with one thing changed, and what, in words."""
    path = _place(tree, rng)
    node = _at(tree, path)
    kind, change = _change(tree, node, rng)
    where = "/".join(map(str, path)) or "(root)"
    if kind in _IN_PARENT:
        if not path:
            return change(node), f"{kind} at (root)"
        return _replaced(tree, path[:-1], lambda parent: _IN_PARENT[kind](parent, path[-1], rng)), f"{kind} at {where}"
    return _replaced(tree, path, change), f"{kind} at {where}"


# ---------------------------------------------------------------------------------------------------------- places


def _place(tree: Any, rng: np.random.Generator) -> Path:
    """Half of them any place of the tree, half found by walking down: few places are near the root, all matter."""
    if rng.random() < 0.5:
        places = list(_paths(tree, ()))
        return places[int(rng.integers(len(places)))]
    path: Path = ()
    node = tree
    while (keys := _keys(node)) and (not path or rng.random() < 0.85):
        path = (*path, keys[int(rng.integers(len(keys)))])
        node = _at(tree, path)
    return path


def _paths(node: Any, path: Path) -> Iterator[Path]:
    if path:
        yield path
    for key in _keys(node):
        yield from _paths(node[key], (*path, key))


def _keys(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return list(node)
    return list(range(len(node))) if isinstance(node, list) else []


def _at(tree: Any, path: Path) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _replaced(tree: Any, path: Path, change: Callable[[Any], Any]) -> Any:
    if not path:
        return change(tree)
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[path[0]] = _replaced(copy[path[0]], path[1:], change)
    return copy


# --------------------------------------------------------------------------------------------------------- changes


def _deleted(parent: Any, key: Any, rng: np.random.Generator) -> Any:
    copy = dict(parent) if isinstance(parent, dict) else list(parent)
    del copy[key]
    return copy


def _renamed(parent: Any, key: Any, rng: np.random.Generator) -> Any:
    if isinstance(parent, list):
        return list(reversed(parent))
    names: list[Any] = ["x", f"{key}x", f"{key}/x", "", 3, str(key)[:-1], str(key).upper()]
    new = names[int(rng.integers(len(names)))]
    return {new if name == key else name: value for name, value in parent.items()}


def _swapped(parent: Any, key: Any, rng: np.random.Generator) -> Any:
    copy = dict(parent) if isinstance(parent, dict) else list(parent)
    keys = _keys(copy)
    other = keys[int(rng.integers(len(keys)))]
    copy[key], copy[other] = copy[other], copy[key]
    return copy


_IN_PARENT: dict[str, Callable[[Any, Any, np.random.Generator], Any]] = {
    "deleted": _deleted,
    "renamed": _renamed,
    "swapped": _swapped,
}


def _change(tree: Any, node: Any, rng: np.random.Generator) -> tuple[str, Callable[[Any], Any]]:
    """What to do to a node, and its name."""
    general: dict[str, Callable[[Any], Any]] = {
        "deleted": lambda value: {},
        "renamed": lambda value: [value],
        "swapped": lambda value: None,
        "wrapped in a dict": lambda value: {"x": value},
        "wrapped in a list": lambda value: [value],
        "nested deeply": lambda value: _deep(value, int(rng.integers(5, 40))),
        "another part": lambda value: _at(tree, _place(tree, rng)),
    }
    own = _own_changes(node, rng)
    choice = rng.random()
    if choice < 0.25:
        stranger = _STRANGERS[int(rng.integers(len(_STRANGERS)))]
        return f"{_shown(stranger)} instead", lambda value: stranger
    chosen = own if own and choice < 0.75 else general
    name = list(chosen)[int(rng.integers(len(chosen)))]
    return name, chosen[name]


def _deep(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = [value]
    return value


def _own_changes(node: Any, rng: np.random.Generator) -> dict[str, Callable[[Any], Any]]:
    if isinstance(node, np.ndarray):
        return _array_changes(rng)
    if isinstance(node, dict):
        return {
            "an entry more": lambda value: {**value, "more": 1},
            "an int key more": lambda value: {**value, 5: 1},
            "emptied": lambda value: {},
            "its values as a list": lambda value: list(value.values()),
        }
    if isinstance(node, list):
        return {
            "truncated": lambda value: value[:-1],
            "its last entry twice": lambda value: [*value, *value[-1:]],
            "emptied": lambda value: [],
            "its first entry alone": lambda value: value[0] if value else None,
            "as a dict": lambda value: {str(index): item for index, item in enumerate(value)},
        }
    if isinstance(node, str):
        return {
            "as bytes": lambda value: value.encode(),
            "another text": lambda value: f"{value}x",
            "emptied": lambda value: "",
            "as a list of letters": lambda value: list(value),
        }
    if isinstance(node, (bool, int, float, np.generic)):
        return {
            "negative": lambda value: -abs(float(value)) - 1 if isinstance(value, float) else -abs(int(value)) - 1,
            "one more": lambda value: value + 1,
            "as text": lambda value: str(value),
            "as a float": lambda value: float(value),
            "as an int": lambda value: int(value) if value == value and abs(value) != float("inf") else 0,
            "as a bool": lambda value: bool(value),
            "2**63": lambda value: 2**63,
            "2**40": lambda value: 2**40,
            "NaN": lambda value: float("nan"),
            "as an array": lambda value: np.array([float(value) if abs(value) >= 2**63 else value]),
            "as a numpy scalar": lambda value: np.float64(value),
        }
    return {}


def _array_changes(rng: np.random.Generator) -> dict[str, Callable[[Any], Any]]:
    def with_value(number: float) -> Callable[[Any], Any]:
        def change(array: Any) -> Any:
            copy = np.array(array)
            if copy.size:
                with np.errstate(all="ignore"):
                    copy.reshape(-1)[int(rng.integers(copy.size))] = np.array(number).astype(copy.dtype)
            return copy

        return change

    def as_dtype(dtype: Any) -> Callable[[Any], Any]:
        def change(array: Any) -> Any:
            with np.errstate(all="ignore"):
                return np.asarray(array).astype(dtype)

        return change

    return {
        "an axis more": lambda array: np.asarray(array)[np.newaxis],
        "two axes more": lambda array: np.asarray(array)[np.newaxis, ..., np.newaxis],
        "flat": lambda array: np.asarray(array).reshape(-1),
        "transposed": lambda array: np.ascontiguousarray(np.asarray(array).T),
        "a row less": lambda array: np.asarray(array)[:-1] if np.ndim(array) else np.asarray(array),
        "twice as long": lambda array: np.concatenate([array, array]) if np.ndim(array) else np.stack([array, array]),
        "empty": lambda array: np.zeros(0, np.asarray(array).dtype),
        "one number": lambda array: float(np.asarray(array).reshape(-1)[0]) if np.size(array) else 0.0,
        "as nested lists": lambda array: np.asarray(array).tolist(),
        "as bytes": lambda array: np.asarray(array).tobytes()[:1000],
        "NaN in it": with_value(float("nan")),
        "infinity in it": with_value(float("inf")),
        "-1 in it": with_value(-1),
        "100 in it": with_value(100),
        "1e30 in it": with_value(1e30),
        "2**62 in it": with_value(2**62),
        "negative": lambda array: -np.asarray(array).astype(np.float64) - 1,
        "float64": as_dtype(np.float64),
        "float32": as_dtype(np.float32),
        "float16": as_dtype(np.float16),
        "int64": as_dtype(np.int64),
        "int8": as_dtype(np.int8),
        "uint8": as_dtype(np.uint8),
        "bool": as_dtype(np.bool_),
        "complex": as_dtype(np.complex64),
        "1e300": lambda array: np.full(np.shape(array), 1e300),
    }


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 30 else f"{text[:27]}..."
