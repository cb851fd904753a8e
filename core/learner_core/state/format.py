"""State trees as bytes and back: the codec of docs/format.md, version 1.

Needs msgpack and xxhash. Refuses, by path, everything a state may not hold (tuples, subclasses, object arrays), and
on reading everything that is not exactly as the specification says. Nothing read is ever executed.
docs/decisions/state-files.md says why.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
import xxhash

from ..errors import StateError
from .dtypes import blocks
from .layout import (
    CHUNK_NBYTES,
    HEADER_NBYTES,
    MAX_MANIFEST_NBYTES,
    MAX_PAYLOADS,
    Payload,
    header,
    parse_header,
    payload_nbytes,
)
from .manifest import Layout, parse_manifest
from .payloads import Memory, read_tree
from .threads import batches, for_each
from .tree import Plain, Tree
from .wire import MAX_NODES
from .writer import Content, Writer

__all__ = ["Encoded", "decode", "encode"]


class Encoded:
    """A state tree ready to be written: an iterable of buffers, which may be iterated again.

    It refers to the tree's arrays instead of copying them; do not change them until it has been written. Each is
    hashed once more after it has been handed out, so that one changed meanwhile raises instead of spoiling the file.
    """

    def __init__(self, front: bytes, sources: list[Content], layout: Layout) -> None:
        self._front = front
        self._sources = sources
        self._layout = layout
        self.nbytes: int = layout.file_nbytes
        """Size of the whole file, in bytes."""

    def __iter__(self) -> Iterator[memoryview]:
        return self._buffers(verify=True)

    def _buffers(self, *, verify: bool) -> Iterator[memoryview]:
        yield memoryview(self._front)
        chunks = iter(self._layout.chunks)
        for source, payload in zip(self._sources, self._layout.payloads, strict=True):
            digests: list[Any] = []
            for at, piece in _pieces(source, self._layout.chunk_nbytes):
                if at == len(digests):
                    digests.append(xxhash.xxh3_64())
                    yield memoryview(next(chunks).gap)
                yield piece
                if verify:
                    digests[at].update(piece)
            if verify and tuple(digest.intdigest() for digest in digests) != payload.checksums:
                raise StateError(f"{payload.dtype_name} {payload.shape} was changed while it was being written")

    def tobytes(self) -> bytes:
        """The whole file as one bytes object; an array changed meanwhile is noticed by whoever decodes it."""
        return b"".join(self._buffers(verify=False))


# Writing ---------------------------------------------------------------------------------------------------------


def encode(tree: Plain, *, info: Tree | None = None, chunk_nbytes: int = CHUNK_NBYTES) -> Encoded:
    """Encode a state tree. The same tree and info always give the same bytes.

    Args:
        tree: Nested dicts (str or int keys) and lists of None, bool, int, float, str, bytes, numpy arrays and scalars.
        info: Provenance to store beside it: str keys, plain values.
        chunk_nbytes: Size at which payloads are cut; for tests.

    Returns:
        The buffers, to be written one after the other.

    Raises:
        StateError: a leaf, named by its path, is of a type or dtype that a state may not hold, or a limit is exceeded.
    """
    writer = Writer()
    packable = writer.pack(tree, "", 0)
    about = Writer()
    provenance = about.plain(dict(info or {}))
    checksums: list[tuple[int, ...]] = [()] * len(writer.sources)

    def hash_all(indices: list[int]) -> None:
        for index in indices:
            checksums[index] = _checksums(writer.sources[index], chunk_nbytes)

    sizes = [payload_nbytes(name, shape) for name, shape in writer.payloads]
    for_each(hash_all, list(batches(range(len(sizes)), sizes.__getitem__)), nbytes=sum(sizes))
    payloads = [
        Payload(name, tuple(shape), nbytes, digests)
        for (name, shape), nbytes, digests in zip(writer.payloads, sizes, checksums, strict=True)
    ]
    entries = [[one.dtype_name, one.shape, one.checksums] for one in payloads]
    nodes = writer.nodes + about.nodes + 8 + sum(4 + len(one.shape) + len(one.checksums) for one in payloads)
    document = {"info": provenance, "chunk_nbytes": chunk_nbytes, "tree": packable, "arrays": entries}
    manifest = msgpack.packb(document, use_bin_type=True)
    if len(manifest) > MAX_MANIFEST_NBYTES or nodes > MAX_NODES or len(entries) > MAX_PAYLOADS:
        raise StateError(
            f"the tree is too finely divided: {len(manifest)} bytes of structure, {nodes} nodes, {len(entries)} "
            f"arrays; at most {MAX_MANIFEST_NBYTES}, {MAX_NODES} and {MAX_PAYLOADS} are allowed. "
            "Put long lists into arrays"
        )
    layout = Layout({}, None, payloads, chunk_nbytes, len(manifest))
    return Encoded(header(file_nbytes=layout.file_nbytes, manifest=manifest) + manifest, writer.sources, layout)


def _checksums(source: Content, chunk_nbytes: int) -> tuple[int, ...]:
    """XXH3-64 of each chunk of a payload."""
    checksums: list[Any] = []
    for at, piece in _pieces(source, chunk_nbytes):
        if at == len(checksums):
            checksums.append(xxhash.xxh3_64())
        checksums[at].update(piece)
    return tuple(checksum.intdigest() for checksum in checksums)


def _pieces(source: Content, chunk_nbytes: int) -> Iterator[tuple[int, memoryview]]:
    """The bytes of a payload as (number of the chunk, piece); no piece crosses the end of a chunk."""
    position = 0
    for block in blocks(source) if isinstance(source, np.ndarray) else (memoryview(source),):
        start = 0
        while start < len(block):
            number, inside = divmod(position, chunk_nbytes)
            piece = block[start : start + chunk_nbytes - inside]
            yield number, piece
            start += len(piece)
            position += len(piece)


# Reading ---------------------------------------------------------------------------------------------------------


def decode(buffer: Any, *, copy: bool = True) -> Plain:
    """Decode a state tree; every checksum is verified first.

    Args:
        buffer: The whole file: bytes, bytearray, memoryview, mmap, uint8 array.
        copy: Whether arrays get writable memory of their own. Without, they are read-only views of `buffer` (but for
            arrays longer than a chunk, 1 GiB, which lie in pieces).

    Returns:
        The tree.

    Raises:
        FormatError: the buffer is not an intact state file.
    """
    view = memoryview(buffer)
    view = view.cast("B") if view.nbytes else memoryview(b"")
    manifest_nbytes, checksum = parse_header(bytes(view[:HEADER_NBYTES]), file_nbytes=len(view))
    manifest = bytes(view[HEADER_NBYTES : HEADER_NBYTES + manifest_nbytes])
    layout = parse_manifest(manifest, checksum=checksum, file_nbytes=len(view))
    return read_tree(Memory(view), layout, copy=copy)
