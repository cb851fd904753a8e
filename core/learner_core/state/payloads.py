"""The payloads of a state file, read, verified and put into the tree (docs/format.md, sections 1.3 and 3).

From memory or from a file: the walk is the same, a `Source` says how bytes are fetched. Large files are worked on by
several threads, block by block, each hashed while it is in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import xxhash

from ..errors import FormatError
from .dtypes import dtype_from_name
from .layout import Chunk, Payload
from .manifest import Layout, Reference
from .memory import MAPPED_NBYTES, allocate, touch
from .threads import batches, for_each
from .tree import Plain

__all__ = ["BLOCK_NBYTES", "Memory", "Source", "build", "read_tree", "resolve"]

#: What is read or copied before it is hashed: it fits the cache, and numpy and xxhash let go of the interpreter's lock.
BLOCK_NBYTES = 1 << 19


class Source(Protocol):
    """Where a file's bytes come from."""

    def piece(self, start: int, nbytes: int) -> bytes | memoryview:
        """A few bytes from offset ``start``."""

    def view(self, start: int, nbytes: int) -> memoryview:
        """Bytes from offset ``start`` as they lie; only asked for where no copy is wanted."""

    def fill(self, target: memoryview, start: int) -> None:
        """Fill ``target``, at most a block, with the bytes from offset ``start``."""

    def verified(self, start: int, nbytes: int) -> None:
        """These bytes of a ``view`` have been read; they will be read again, but not at once."""


class Memory:
    """A whole file in memory.

    Args:
        view: Its bytes, format "B".
    """

    def __init__(self, view: memoryview) -> None:
        self._view = view

    def piece(self, start: int, nbytes: int) -> memoryview:
        return self._view[start : start + nbytes]

    view = piece

    def verified(self, start: int, nbytes: int) -> None:
        pass

    def fill(self, target: memoryview, start: int) -> None:
        if len(target) < BLOCK_NBYTES:
            target[:] = self._view[start : start + len(target)]
        else:  # unlike the assignment, this lets other threads go on meanwhile
            source = np.frombuffer(self._view, np.uint8, len(target), start)
            np.copyto(np.frombuffer(target, np.uint8), source)


def read_tree(source: Source, layout: Layout, *, copy: bool | Callable[[str], bool] = True) -> Plain:
    """The tree of a file whose header and manifest have been read; every checksum is verified first.

    Args:
        source: The file.
        layout: What its manifest says.
        copy: Whether arrays get writable memory of their own, or which do, by their path. Others are read-only views
            of `source` (but for arrays longer than a chunk, 1 GiB, which lie in pieces).

    Returns:
        The tree.

    Raises:
        FormatError: the bytes of a payload, or those before it, are damaged; the first such payload is named.
    """
    payloads, paths = layout.payloads, layout.paths()
    contents: list[memoryview | None] = [None] * len(payloads)
    copied = [copy(path) for path in paths] if callable(copy) else [copy] * len(paths)
    copied = [own or len(payload.checksums) != 1 for own, payload in zip(copied, payloads, strict=True)]
    for index, payload in enumerate(payloads):
        # malloc gives each thread memory of its own, which nobody else uses again once the thread has gone: so the
        # caller asks for it, and threads only fill it.
        if copied[index]:
            contents[index] = allocate(payload.nbytes)

    def verify(chunk: Chunk) -> None:
        payload, at = payloads[chunk.payload], chunk.payload
        if source.piece(chunk.start - len(chunk.gap), len(chunk.gap)) != chunk.gap:
            raise FormatError("the bytes before its data are damaged", path=paths[at])
        if not copied[at]:
            data = source.view(chunk.start, chunk.nbytes)
            contents[at] = data.toreadonly()
            digest = xxhash.xxh3_64_intdigest(data)
            source.verified(chunk.start, chunk.nbytes)
        else:
            content = contents[at]
            assert content is not None
            offset = chunk.number * layout.chunk_nbytes
            fresh = payload.nbytes >= MAPPED_NBYTES
            digest = _fill(source, content[offset : offset + chunk.nbytes], chunk.start, fresh=fresh)
        if digest != payload.checksums[chunk.number]:
            raise FormatError(f"chunk {chunk.number} of its data is damaged: wrong checksum", path=paths[at])

    def verify_all(chunks: list[Chunk]) -> None:
        for chunk in chunks:
            verify(chunk)

    turns = list(batches(layout.chunks, lambda chunk: chunk.nbytes))
    for_each(verify_all, turns, nbytes=sum(payload.nbytes for payload in payloads))
    values: list[Any] = []
    for index, payload in enumerate(payloads):
        values.append(build(payload, contents[index], paths[index]))
        contents[index] = None  # long bytes and str have just been copied: let go of the first copy
    return resolve(layout.tree, values.__getitem__)


def _fill(source: Source, target: memoryview, start: int, *, fresh: bool) -> int:
    """Fill ``target`` (``fresh``: just mapped) from offset ``start``; the checksum of what is in it now."""
    if len(target) <= BLOCK_NBYTES:
        source.fill(target, start)
        return xxhash.xxh3_64_intdigest(target)
    checksum = xxhash.xxh3_64()
    for offset in range(0, len(target), BLOCK_NBYTES):
        block = target[offset : offset + BLOCK_NBYTES]
        if fresh:
            touch(block)
        source.fill(block, start + offset)
        checksum.update(block)
    return checksum.intdigest()


def build(payload: Payload, content: memoryview | None, path: str) -> np.ndarray | str | bytes:
    """The value of a payload.

    Args:
        payload: The payload.
        content: Its bytes, already verified; None when it has none.
        path: Its path, for messages.

    Returns:
        An array on the memory of `content`, or a str or bytes.

    Raises:
        FormatError: a str that is not UTF-8, or a bool that is neither 0 nor 1.
    """
    data = content if content is not None else memoryview(bytearray())
    if payload.dtype_name == "bytes":
        return bytes(data)
    if payload.dtype_name == "str":
        try:
            return str(data, "utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(f"this string is not UTF-8: {error}", path=path) from None
    raw = np.frombuffer(data, np.uint8)
    if payload.dtype_name == "bool" and raw.size and raw.max() > 1:
        raise FormatError("a bool is neither 0 nor 1", path=path)
    return raw.view(dtype_from_name(payload.dtype_name)).reshape(payload.shape)


def resolve(tree: Plain, value_of: Callable[[int], Plain]) -> Plain:
    """Put payloads into a tree of references.

    Args:
        tree: `Layout.tree`; its containers are reused.
        value_of: Gives the value of a payload by its index.

    Returns:
        The tree.
    """
    if type(tree) is Reference:
        return value_of(tree.index)
    if type(tree) is dict:
        for key, value in tree.items():
            if type(value) in (dict, list, Reference):
                tree[key] = resolve(value, value_of)
    elif type(tree) is list:
        for index, value in enumerate(tree):
            if type(value) in (dict, list, Reference):
                tree[index] = resolve(value, value_of)
    return tree
