"""The manifest of a state file: what it holds, checked before any of it is read (docs/format.md, sections 1.2 and 2).

Needs xxhash. Refuses whatever is not exactly as the specification says; nothing here allocates by a stated size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import xxhash

from ..errors import FormatError, StateError
from .dtypes import dtype_from_name
from .layout import HEADER_NBYTES, MAX_PAYLOADS, Chunk, Payload, chunks_of
from .tree import join
from .wire import unpack

__all__ = ["EXT_INTEGER", "EXT_REFERENCE", "EXT_SCALAR", "Layout", "Reference", "integer_bytes", "parse_manifest"]

# msgpack extension types.
EXT_REFERENCE: Final = 1
EXT_SCALAR: Final = 2
EXT_INTEGER: Final = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Reference:
    """Stands for a payload in a tree whose payloads have not been read."""

    index: int


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """What header and manifest say about a file."""

    info: dict[str, Any]
    """Provenance."""
    tree: Any
    """The tree, with a `Reference` in place of every array, long string and long bytes."""
    payloads: list[Payload]
    chunk_nbytes: int
    manifest_nbytes: int

    @property
    def chunks(self) -> Iterator[Chunk]:
        """Every chunk, in the order of the file."""
        return chunks_of(self.payloads, manifest_nbytes=self.manifest_nbytes, chunk_nbytes=self.chunk_nbytes)

    @property
    def file_nbytes(self) -> int:
        """The size the file must have, in bytes."""
        end = HEADER_NBYTES + self.manifest_nbytes
        for chunk in self.chunks:
            end = chunk.start + chunk.nbytes
        return end

    def paths(self) -> list[str]:
        """The path of every payload, in order."""
        found: list[str] = []

        def walk(node: object, path: str) -> None:
            if type(node) is dict:
                for key, value in node.items():
                    walk(value, join(path, key))
            elif type(node) is list:
                for index, value in enumerate(node):
                    walk(value, join(path, index, index=True))
            elif type(node) is Reference:
                found.append(path)

        walk(self.tree, "")
        return found


def integer_bytes(value: int) -> bytes:
    """An int as its shortest two's complement, big-endian.

    Args:
        value: Any int.

    Returns:
        At least one byte.
    """
    size = (value if value >= 0 else ~value).bit_length() // 8 + 1
    return value.to_bytes(size, "big", signed=True)


def parse_manifest(data: bytes, *, checksum: int, file_nbytes: int) -> Layout:
    """Check a manifest.

    Args:
        data: The manifest.
        checksum: Its checksum according to the header.
        file_nbytes: True size of the file, in bytes.

    Returns:
        What the file holds and where.

    Raises:
        FormatError: the manifest is damaged, breaks the specification, or does not fit the file's size.
    """
    if xxhash.xxh3_64_intdigest(data) != checksum:
        raise FormatError("the manifest is damaged: its checksum does not match")
    references = 0

    def extension(code: int, content: bytes) -> Reference | int | np.generic:
        nonlocal references
        if code == EXT_REFERENCE:
            if content != references.to_bytes(4, "big"):
                raise FormatError(f"payload {references} is not referred to in order")
            references += 1
            if references > MAX_PAYLOADS:
                raise FormatError(f"the tree refers to more than {MAX_PAYLOADS} payloads")
            return Reference(references - 1)
        if code == EXT_SCALAR:
            return _scalar(content)
        if code == EXT_INTEGER:
            value = int.from_bytes(content, "big", signed=True)
            if -(1 << 63) <= value < 1 << 64 or integer_bytes(value) != content:
                raise FormatError("an integer is stored as extension 3 though it is short, or is not minimal")
            return value
        raise FormatError(f"extension type {code} is not one a state may hold")

    document = unpack(data, extension)
    if type(document) is not dict or list(document) != ["info", "chunk_nbytes", "tree", "arrays"]:
        raise FormatError("the manifest is not a map of info, chunk_nbytes, tree and arrays")
    info, chunk_nbytes, entries = document["info"], document["chunk_nbytes"], document["arrays"]
    if type(info) is not dict or any(type(key) is not str for key in info):
        raise FormatError("the manifest's info is not a map with string keys")
    if type(chunk_nbytes) is not int or not 4096 <= chunk_nbytes <= 1 << 30 or chunk_nbytes & (chunk_nbytes - 1):
        raise FormatError(f"chunk_nbytes={chunk_nbytes!r:.40} is not a power of two from 4096 to 2^30")
    if type(entries) is not list or len(entries) > MAX_PAYLOADS:
        raise FormatError(f"the manifest's arrays is not a list of at most {MAX_PAYLOADS} entries")
    if len(entries) != references:
        raise FormatError(f"the tree refers to {references} payloads; there are {len(entries)}")
    payloads = [Payload.checked(entry, chunk_nbytes) for entry in entries]
    layout = Layout(info, document["tree"], payloads, chunk_nbytes, len(data))
    if len(layout.paths()) != references:
        raise FormatError("info or arrays refer to a payload")
    if layout.file_nbytes != file_nbytes:
        raise FormatError(f"the manifest describes a file of {layout.file_nbytes} bytes; there are {file_nbytes}")
    return layout


def _scalar(content: bytes) -> np.generic:
    name, _, value = content.partition(b"\0")
    try:
        dtype = dtype_from_name(name.decode("ascii"))
    except (StateError, UnicodeDecodeError) as error:
        raise FormatError(f"a numpy scalar of unknown type: {error}") from None
    if len(value) != dtype.itemsize or (dtype.kind == "b" and value[0] > 1):
        raise FormatError(f"a numpy scalar of type {dtype.name} has the wrong bytes")
    scalar: np.generic = np.frombuffer(value, dtype)[0]
    return scalar
