"""State trees as bytes and back: the codec of docs/format.md, version 1.

Needs msgpack and xxhash. Refuses, by path, everything a state may not hold (tuples, subclasses, object arrays), and
on reading everything that is not exactly as the specification says. Nothing read is ever executed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgpack
import numpy as np
import xxhash

from ..errors import FormatError, StateError
from .dtypes import allocate, blocks, dtype_from_name
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
from .manifest import Layout, Reference, parse_manifest
from .wire import MAX_NODES
from .writer import Writer

__all__ = ["Encoded", "build", "decode", "encode", "resolve", "verified"]

_BLOCK = 1 << 18


class Encoded:
    """A state tree ready to be written: an iterable of buffers, which may be iterated again.

    It refers to the tree's arrays instead of copying them; do not change them until it has been written. Each is
    hashed once more after it has been handed out, so that one changed meanwhile raises instead of spoiling the file.
    """

    def __init__(self, front: bytes, sources: list[Any], layout: Layout) -> None:
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


def encode(tree: Any, *, info: Mapping[str, Any] | None = None, chunk_nbytes: int = CHUNK_NBYTES) -> Encoded:
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
    payloads: list[Payload] = []
    for source, (name, shape) in zip(writer.sources, writer.payloads, strict=True):
        checksums: list[Any] = []
        for at, piece in _pieces(source, chunk_nbytes):
            if at == len(checksums):
                checksums.append(xxhash.xxh3_64())
            checksums[at].update(piece)
        digests = tuple(checksum.intdigest() for checksum in checksums)
        payloads.append(Payload(name, tuple(shape), payload_nbytes(name, shape), digests))
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


def _pieces(source: Any, chunk_nbytes: int) -> Iterator[tuple[int, memoryview]]:
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


def decode(buffer: Any, *, copy: bool = True) -> Any:
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
    return verified(view, layout, copy=copy)


def verified(view: memoryview, layout: Layout, *, copy: bool) -> Any:
    """The tree of a file whose header and manifest have been read; every checksum is verified first.

    Args:
        view: The whole file, format "B".
        layout: What its manifest says.
        copy: As for `decode`.

    Returns:
        The tree.

    Raises:
        FormatError: the bytes of a payload, or those before it, are damaged.
    """
    contents: list[Any] = [None] * len(layout.payloads)
    paths = layout.paths()
    for chunk in layout.chunks:
        payload, start = layout.payloads[chunk.payload], chunk.start
        if view[start - len(chunk.gap) : start] != chunk.gap:
            raise FormatError("the bytes before its data are damaged", path=paths[chunk.payload])
        data = view[start : start + chunk.nbytes]
        if len(payload.checksums) == 1 and not copy:
            contents[chunk.payload] = data.toreadonly()
            digest = xxhash.xxh3_64_intdigest(data)
        else:
            if chunk.number == 0:
                contents[chunk.payload] = allocate(payload.nbytes)
            offset = chunk.number * layout.chunk_nbytes
            digest = _copy(data, contents[chunk.payload][offset : offset + chunk.nbytes])
        if digest != payload.checksums[chunk.number]:
            raise FormatError(f"chunk {chunk.number} of its data is damaged: wrong checksum", path=paths[chunk.payload])
    values = [build(payload, *pair) for payload, *pair in zip(layout.payloads, contents, paths, strict=True)]
    return resolve(layout.tree, values.__getitem__)


def _copy(source: memoryview, target: memoryview) -> int:
    """Copy bytes and return the checksum of the copy, each block hashed while it is in the processor's cache."""
    if len(source) <= _BLOCK:
        target[:] = source
        return xxhash.xxh3_64_intdigest(target)
    checksum = xxhash.xxh3_64()
    for start in range(0, len(source), _BLOCK):
        target[start : start + _BLOCK] = source[start : start + _BLOCK]
        checksum.update(target[start : start + _BLOCK])
    return checksum.intdigest()


def build(payload: Payload, content: memoryview | None, path: str) -> Any:
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


def resolve(tree: Any, value_of: Callable[[int], Any]) -> Any:
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
