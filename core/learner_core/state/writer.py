"""State trees as what a stock msgpack library packs; the payloads are collected on the way (docs/format.md, section 2).

Refuses, by path, everything a state may not hold: tuples, subclasses, object arrays, keys that are not str or int.
"""

from __future__ import annotations

from typing import Final

import msgpack
import numpy as np

from ..errors import FormatError, StateError
from .dtypes import blocks, name_of
from .layout import payload_nbytes
from .manifest import EXT_INTEGER, EXT_REFERENCE, EXT_SCALAR, integer_bytes
from .tree import Plain, Tree, join
from .wire import EXT_NODES, MAX_DEPTH, MAX_KEY_NBYTES

__all__ = ["INLINE_NBYTES", "Content", "Writer", "check_tree"]

INLINE_NBYTES: Final = 1024
#: What a payload is written from.
Content = np.ndarray | bytes
"""Longer strings and bytes become payloads."""


class Writer:
    """Turns a tree into what msgpack packs, and collects its payloads."""

    def __init__(self) -> None:
        self.sources: list[Content] = []
        self.payloads: list[tuple[str, list[int]]] = []
        self.nodes: int = 0

    def refer(self, source: Content, name: str, shape: list[int], path: str) -> msgpack.ExtType:
        try:
            payload_nbytes(name, shape)
        except FormatError as error:
            raise StateError(str(error), path=path) from None
        self.nodes += EXT_NODES - 1
        self.sources.append(source)
        self.payloads.append((name, shape))
        return msgpack.ExtType(EXT_REFERENCE, (len(self.sources) - 1).to_bytes(4, "big"))

    def pack(self, node: Plain, path: str, depth: int) -> Plain:
        kind = type(node)
        if node is None or kind is bool or kind is float:
            return node
        if kind is int:
            if -(1 << 63) <= node < 1 << 64:
                return node
            self.nodes += EXT_NODES - 1
            return msgpack.ExtType(EXT_INTEGER, integer_bytes(node))
        if kind is str or kind is bytes:
            return self.text(node, path)
        if kind is dict or kind is list:
            if depth >= MAX_DEPTH:
                raise StateError(f"more than {MAX_DEPTH} containers lie within one another here", path=path)
            self.nodes += len(node) * (2 if kind is dict else 1)
            if kind is list:
                return [self.pack(value, join(path, at, index=True), depth + 1) for at, value in enumerate(node)]
            return {
                _checked_key(key, path): self.pack(value, join(path, key), depth + 1) for key, value in node.items()
            }
        if kind is np.ndarray or kind is np.memmap:
            name = _checked_dtype(node, path)
            if name == "bool" and node.size and node.view(np.uint8).max() > 1:
                raise StateError("this array of bool holds bytes other than 0 and 1, made by a view", path=path)
            return self.refer(np.asarray(node), name, list(node.shape), path)
        if isinstance(node, np.generic):
            name = _checked_dtype(node, path)
            self.nodes += EXT_NODES - 1
            return msgpack.ExtType(EXT_SCALAR, name.encode() + b"\0" + b"".join(blocks(np.asarray(node))))
        raise StateError(_refusal(node), path=path)

    def text(self, node: str | bytes, path: str) -> Plain:
        name = type(node).__name__
        try:
            data = node.encode() if isinstance(node, str) else node
        except UnicodeEncodeError as error:
            raise StateError(f"this string has no UTF-8 form: {error}", path=path) from None
        return self.refer(data, name, [len(data)], path) if len(data) > INLINE_NBYTES else node

    def plain(self, info: Tree) -> Plain:
        packed = self.pack(info, "info", 0)
        if self.sources or any(type(key) is not str for key in info):
            raise StateError("info holds str keys and short plain values only, no arrays", path="info")
        return packed


def check_tree(tree: Plain) -> None:
    """Refuse a tree that a state file could not hold; nothing is written.

    Raises:
        StateError: a leaf, a key or the depth, named by its path.
    """
    Writer().pack(tree, "", 0)


def _checked_key(key: object, path: str) -> str | int:
    if type(key) is int and -(1 << 63) <= key < 1 << 64:
        return key
    if type(key) is not str:
        raise StateError(f"a key must be a str or a 64-bit int, not {key!r:.60} ({type(key).__name__})", path=path)
    try:
        if len(key.encode()) <= MAX_KEY_NBYTES:
            return key
    except UnicodeEncodeError as error:
        raise StateError(f"the key {key!r:.60} has no UTF-8 form: {error}", path=path) from None
    raise StateError(f"the key {key[:40]!r}... is longer than {MAX_KEY_NBYTES} bytes", path=path)


def _checked_dtype(node: np.ndarray | np.generic, path: str) -> str:
    name = name_of(node.dtype)
    if name is None:
        raise StateError(f"a state may not hold arrays or scalars of dtype {node.dtype}", path=path)
    return name


def _refusal(node: object) -> str:
    kind = type(node)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if kind is tuple:
        return "a state may not hold tuples, which would come back as lists: make it a list"
    for base in (dict, list, str, bytes, int, float, np.ndarray):
        if issubclass(kind, base):
            return f"{name} would come back as {base.__name__}: convert it"
    return f"a state may not hold {name}"
