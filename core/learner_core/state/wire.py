"""A msgpack reader for hostile input: everything is bounded before it is allocated.

The stock library turns a megabyte of empty maps into seventy, keeps the last of two equal keys, and sets memory aside
for as many elements as an array header states. A manifest is small, so it is read here instead, byte by byte, against
a budget of nodes. Writing uses the stock library.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from ..errors import FormatError
from .tree import Plain

__all__ = ["EXT_NODES", "MAX_DEPTH", "MAX_KEY_NBYTES", "MAX_NODES", "unpack"]

MAX_NODES = 1 << 19
"""Elements, keys and values in one manifest; an extension object counts for `EXT_NODES`."""
EXT_NODES = 3
MAX_DEPTH = 64
"""Containers of the tree within one another. The manifest adds the map around the tree."""
MAX_KEY_NBYTES = 4096

_FLOAT = struct.Struct(">d").unpack_from
# First byte -> bytes of the length (str, bin, ext, array, map) or of the integer that follows.
_STR = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_BIN = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_EXT = {0xC7: 1, 0xC8: 2, 0xC9: 4}
_FIXEXT = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_ARRAY = {0xDC: 2, 0xDD: 4}
_MAP = {0xDE: 2, 0xDF: 4}
_UINT = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
_INT = {0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}


def unpack(data: bytes, ext: Callable[[int, bytes], object]) -> Plain:
    """Read exactly one msgpack object.

    Args:
        data: The object's bytes, and nothing after them.
        ext: Turns an extension object (code, bytes) into a value; raises FormatError for codes it does not know.

    Returns:
        None, bool, int, float, str, bytes, list, dict and whatever `ext` returns.

    Raises:
        FormatError: `data` is not one msgpack object, repeats a key, or exceeds a limit of docs/format.md.
    """
    reader = _Reader(data, ext)
    try:
        value = reader.value(0)
    except (IndexError, struct.error):
        raise FormatError("the manifest ends in the middle of an object") from None
    if reader.position != len(data):
        raise FormatError(f"{len(data) - reader.position} bytes follow the manifest's object")
    return value


class _Reader:
    __slots__ = ("budget", "data", "ext", "position")

    def __init__(self, data: bytes, ext: Callable[[int, bytes], object]) -> None:
        self.data = data
        self.ext = ext
        self.position = 0
        self.budget = MAX_NODES

    def value(self, depth: int) -> Plain:
        data, position = self.data, self.position
        tag = data[position]
        self.position = position + 1
        if tag < 0x80:
            return tag
        if tag >= 0xE0:
            return tag - 0x100
        if tag < 0x90:
            return self.map(tag & 0x0F, depth)
        if tag < 0xA0:
            return self.array(tag & 0x0F, depth)
        if tag < 0xC0:
            return self.text(tag & 0x1F)
        if tag == 0xCB:
            self.position = position + 9
            return _FLOAT(data, position + 1)[0]
        if tag in _UINT:
            return int.from_bytes(self.take(_UINT[tag]), "big")
        if tag in _INT:
            return int.from_bytes(self.take(_INT[tag]), "big", signed=True)
        if tag == 0xC0:
            return None
        if tag in (0xC2, 0xC3):
            return tag == 0xC3
        return self.long(tag, depth)

    def long(self, tag: int, depth: int) -> Plain:
        """Objects whose length follows the first byte."""
        if tag in _FIXEXT:
            return self.extension(_FIXEXT[tag])
        for kind in (_STR, _BIN, _EXT, _ARRAY, _MAP):
            if tag in kind:
                break
        else:
            raise FormatError(f"byte {tag:#04x} at {self.position - 1} of the manifest starts no object allowed here")
        length = int.from_bytes(self.take(kind[tag]), "big")
        if kind is _STR:
            return self.text(length)
        if kind is _BIN:
            return self.take(length)
        if kind is _EXT:
            return self.extension(length)
        return self.array(length, depth) if kind is _ARRAY else self.map(length, depth)

    def extension(self, length: int) -> object:
        self.spend(EXT_NODES - 1, 0)
        return self.ext(self.take(1)[0], self.take(length))

    def take(self, count: int) -> bytes:
        start = self.position
        end = start + count
        if end > len(self.data):
            remain = len(self.data) - start
            raise FormatError(f"an object at {start} of the manifest states {count} bytes; {remain} remain")
        self.position = end
        return self.data[start:end]

    def text(self, count: int) -> str:
        try:
            return self.take(count).decode("utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(f"a string at {self.position - count} of the manifest is not UTF-8: {error}") from None

    def spend(self, nodes: int, depth: int) -> None:
        self.budget -= nodes
        if self.budget < 0:
            raise FormatError(f"the manifest has more than {MAX_NODES} nodes")
        if depth > MAX_DEPTH:
            raise FormatError(f"more than {MAX_DEPTH} containers of the tree lie within one another")

    def fits(self, elements: int) -> None:
        if elements > len(self.data) - self.position:
            raise FormatError(f"a container at {self.position} of the manifest states more elements than bytes remain")

    def array(self, count: int, depth: int) -> list[Plain]:
        self.spend(count, depth)
        self.fits(count)
        value = self.value
        depth += 1
        return [value(depth) for _ in range(count)]

    def map(self, count: int, depth: int) -> dict[str | int, Plain]:
        self.spend(2 * count, depth)
        self.fits(2 * count)
        result: dict[str | int, Any] = {}
        depth += 1
        for _ in range(count):
            start = self.position
            # A key is a string or an integer: check its first byte before reading it as anything longer.
            tag = self.data[start]
            if not (tag < 0x80 or tag >= 0xE0 or 0xA0 <= tag < 0xC0 or tag in _STR or tag in _UINT or tag in _INT):
                raise FormatError(f"a key at {start} of the manifest is neither a string nor an integer")
            key = self.value(depth)
            if self.position - start > MAX_KEY_NBYTES + 5:
                raise FormatError(f"a key at {start} of the manifest is longer than {MAX_KEY_NBYTES} bytes")
            if key in result:
                raise FormatError(f"the key {key!r:.100} occurs twice in one map of the manifest")
            result[key] = self.value(depth)
        return result
