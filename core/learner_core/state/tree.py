"""State trees: dicts and lists of leaves, addressed by path.

A leaf is anything that is not a dict or a list. A path is its keys joined by "/":
``rl_module/default_policy/pi.0.weight``. So that a path leads back to exactly one place, a list index is written
``[3]``, an int key ``#3``, and in a str key ``~`` is written ``~0``, ``/`` ``~1``, a leading ``[`` ``~2``, a leading
``#`` ``~3``; an empty key is ``~4``. Ordinary names look like themselves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np

from ..errors import StateError, did_you_mean

__all__ = [
    "Difference",
    "Plain",
    "Tree",
    "assert_same_structure",
    "copy_tree",
    "describe",
    "diff",
    "flatten",
    "join",
    "mismatches",
    "unflatten",
]

Leaf = Any
#: A value of a state tree: a number, a text, bytes, None, an array, or dicts and lists of these.
Plain: TypeAlias = Any
#: A state tree, or a part of one, that is read and not changed.
Tree: TypeAlias = Mapping[str, Plain]


def join(path: str, key: str | int, *, index: bool = False) -> str:
    """Lengthen a path by one key.

    Args:
        path: The path so far; "" is the root.
        key: A dict key or, with `index`, a list index.
        index: Whether `key` is a list index.

    Returns:
        The longer path.
    """
    if isinstance(key, str):
        segment = key.replace("~", "~0").replace("/", "~1") or "~4"
        if segment[0] == "[":
            segment = "~2" + segment[1:]
        elif segment[0] == "#":
            segment = "~3" + segment[1:]
    else:
        segment = f"[{key}]" if index else f"#{key}"
    return f"{path}/{segment}" if path else segment


def _parse(segment: str, path: str) -> tuple[str | int, bool]:
    """The key a segment stands for, and whether it is a list index."""
    if segment[:1] in ("[", "#"):
        try:
            return int(segment.strip("[]#")), segment[0] == "["
        except ValueError:
            raise StateError(f"{segment!r} is neither a list index [3] nor an int key #3", path=path) from None
    if segment == "~4":
        return "", False
    if segment[:2] in ("~2", "~3"):
        segment = ("[" if segment[1] == "2" else "#") + segment[2:]
    return segment.replace("~1", "/").replace("~0", "~"), False


def _children(node: Plain, path: str) -> Iterator[tuple[str, Plain]] | None:
    """Paths and values below a container, None for a leaf. An empty container counts as a leaf."""
    if isinstance(node, dict) and node:
        return ((join(path, key), value) for key, value in node.items())
    if isinstance(node, list) and node:
        return ((join(path, index, index=True), value) for index, value in enumerate(node))
    return None


def flatten(tree: Plain) -> dict[str, Leaf]:
    """Every leaf of a tree by its path, in the tree's order.

    Args:
        tree: Nested dicts and lists. Empty ones count as leaves, so nothing is lost.

    Returns:
        {path: leaf}; the leaves themselves, not copies. A tree that is one leaf has the path "".
    """
    flat: dict[str, Leaf] = {}
    stack = [("", tree)]
    while stack:
        path, node = stack.pop()
        children = _children(node, path)
        if children is None:
            flat[path] = node
        else:
            stack.extend(reversed(list(children)))
    return flat


def unflatten(flat: Mapping[str, Leaf]) -> Plain:
    """The tree that `flatten` was given.

    Args:
        flat: {path: leaf}.

    Returns:
        New dicts and lists around the same leaves. An empty mapping gives an empty dict.

    Raises:
        StateError: two paths contradict each other, or a list lacks an index.
    """
    if "" in flat:
        if len(flat) > 1:
            raise StateError("the path '' is the whole tree; no other path can stand beside it")
        return flat[""]
    root = _Inner()
    for path, leaf in flat.items():
        *front, last = [_parse(segment, path) for segment in path.split("/")]
        node = root
        for key, index in front:
            child = node.items.setdefault(key, _Inner())
            node.note(index, path)
            if not isinstance(child, _Inner):
                raise StateError("this path runs through a leaf", path=path)
            node = child
        node.note(last[1], path)
        if last[0] in node.items:
            raise StateError("this path is given twice, or is both a leaf and a container", path=path)
        node.items[last[0]] = leaf
    return root.build()


class _Inner:
    """A container that `unflatten` is still filling."""

    __slots__ = ("is_list", "items")

    def __init__(self) -> None:
        self.items: dict[Any, Any] = {}
        self.is_list: bool | None = None

    def note(self, index: bool, path: str) -> None:
        if self.is_list not in (None, index):
            raise StateError("a list index and a dict key stand side by side here", path=path)
        self.is_list = index

    def build(self) -> Plain:
        built = {key: value.build() if isinstance(value, _Inner) else value for key, value in self.items.items()}
        if not self.is_list:
            return built
        if sorted(built) != list(range(len(built))):
            raise StateError(f"a list has the indices {sorted(built)!r:.100}, not 0 to {len(built) - 1}")
        return [built[index] for index in range(len(built))]


def copy_tree(tree: Plain) -> Plain:
    """A copy that shares no memory with the tree it was made of.

    Args:
        tree: Nested dicts and lists of the leaves a state file may hold.

    Returns:
        New containers, and new writable C-ordered arrays of the same dtype.

    Raises:
        StateError: a leaf, named by its path, is of a type whose copy could not be promised to be independent.
    """
    return _copy(tree, "")


def _copy(node: Plain, path: str) -> Plain:
    kind = type(node)
    if kind is dict:
        return {key: _copy(value, join(path, key)) for key, value in node.items()}
    if kind is list:
        return [_copy(value, join(path, index, index=True)) for index, value in enumerate(node)]
    if isinstance(node, np.ndarray):
        if node.dtype.hasobject:
            raise StateError(f"an array of dtype {node.dtype} has no place in a state", path=path)
        return np.array(node, order="C", copy=True)
    if node is None or kind in (bool, int, float, str, bytes) or isinstance(node, np.generic):
        return node
    raise StateError(f"{kind.__module__}.{kind.__qualname__} has no place in a state", path=path)


def describe(leaf: object) -> str:
    """A leaf in the few words that errors and listings use.

    Args:
        leaf: Any leaf or container.

    Returns:
        "float32 (64, 4)" for arrays, "float32 scalar", "list of 3", "dict of 2", otherwise the type's name.
    """
    if isinstance(leaf, np.ndarray):
        return f"{leaf.dtype.name} {leaf.shape}"
    if isinstance(leaf, np.generic):
        return f"{leaf.dtype.name} scalar"
    if isinstance(leaf, (list, dict)):
        return f"{type(leaf).__name__} of {len(leaf)}"
    return "None" if leaf is None else type(leaf).__name__


def _kind(leaf: object) -> str:
    """Leaves of one kind may stand for one another in a state."""
    if isinstance(leaf, (bool, int, float, np.generic)):
        return "number"
    return "none" if leaf is None else type(leaf).__name__


def mismatches(expected: Plain, got: Plain, *, path: str = "") -> Iterator[tuple[str, str]]:
    """Where one tree is not shaped like another.

    Containers must have the same keys and lengths, arrays the same shape and dtype name (byte order does not count).
    Plain numbers may stand for one another; None may stand for any plain leaf and any plain leaf for None.

    Args:
        expected: The tree that says how it should be.
        got: The tree to judge.
        path: Path of both within something larger, for the messages.

    Yields:
        (path, message) for each mismatch, in the order of `expected`, then what `got` has too much.
    """
    if isinstance(expected, dict) and isinstance(got, dict):
        for key, value in expected.items():
            if key in got:
                yield from mismatches(value, got[key], path=join(path, key))
            else:
                others = [str(other) for other in got if other not in expected]
                near = did_you_mean(key, others) if len(others) <= 10 else ""
                yield join(path, key), f"expected {describe(value)}, got nothing{'.' + near if near else ''}"
        for key, value in got.items():
            if key not in expected:
                yield join(path, key), f"expected nothing, got {describe(value)}"
    elif isinstance(expected, list) and isinstance(got, list) and len(expected) == len(got):
        for index, (left, right) in enumerate(zip(expected, got, strict=True)):
            yield from mismatches(left, right, path=join(path, index, index=True))
    elif isinstance(expected, np.ndarray) and isinstance(got, np.ndarray):
        if expected.shape != got.shape or expected.dtype.name != got.dtype.name:
            yield path, f"expected {describe(expected)}, got {describe(got)}"
    else:
        kinds = {_kind(expected), _kind(got)}
        plain = kinds <= {"number", "none", "str", "bytes"}
        if not plain or (len(kinds) > 1 and "none" not in kinds):
            yield path, f"expected {describe(expected)}, got {describe(got)}"


def assert_same_structure(expected: Plain, got: Plain, *, path: str = "") -> None:
    """Refuse a tree that is not shaped like another; see `mismatches` for the rules.

    Args:
        expected: The tree that says how it should be.
        got: The tree to judge.
        path: Path of both within something larger, for the message.

    Raises:
        StateError: with the path of the first mismatch, and the number of further ones.
    """
    found = list(mismatches(expected, got, path=path))
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise StateError(found[0][1] + more, path=found[0][0])


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """One place where two trees differ."""

    path: str
    kind: str
    """"missing" (only in the first), "extra" (only in the second), "type" or "value"."""
    message: str


def diff(first: Plain, second: Plain) -> list[Difference]:
    """Where two trees differ, to the bit: 0.0 and -0.0 differ, a NaN equals the same NaN.

    Args:
        first: A tree.
        second: Another.

    Returns:
        The differences, in the order of `first`, then what only `second` has.
    """
    left, right = flatten(first), flatten(second)
    found: list[Difference] = []
    for path, leaf in left.items():
        if path not in right:
            found.append(Difference(path, "missing", f"{describe(leaf)} only in the first"))
        elif describe(leaf) != describe(right[path]):
            found.append(Difference(path, "type", f"{describe(leaf)} against {describe(right[path])}"))
        elif (message := _value_difference(leaf, right[path])) is not None:
            found.append(Difference(path, "value", message))
    found += [
        Difference(path, "extra", f"{describe(leaf)} only in the second")
        for path, leaf in right.items()
        if path not in left
    ]
    return found


def _bits(leaf: np.ndarray | np.generic | float) -> np.ndarray:
    """uint8[elements, itemsize] of an array, numpy scalar or float."""
    array = np.asarray(leaf)
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(-1)
    return little.view(np.uint8).reshape(little.size, array.dtype.itemsize)


def _value_difference(left: Plain, right: Plain) -> str | None:
    if not isinstance(left, (np.ndarray, np.generic, float)):
        return None if left == right else f"{left!r:.60} against {right!r:.60}"
    changed = (_bits(left) != _bits(right)).any(axis=1)
    if not changed.any():
        return None
    if not isinstance(left, np.ndarray):
        return f"{left!r} against {right!r}"
    wide = np.complex128 if left.dtype.kind == "c" else np.float64
    with np.errstate(all="ignore"):
        distance = np.abs(left.astype(wide) - right.astype(wide)).reshape(-1)
    largest = max(distance[np.isfinite(distance)], default=0.0)
    rest = "" if np.isfinite(distance).all() else "; some are not finite"
    return f"{int(changed.sum())} of {left.size} elements differ, by at most {largest:.6g}{rest}"
