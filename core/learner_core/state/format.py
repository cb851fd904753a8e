"""State trees as bytes and back: the codec of docs/format.md, version 1.

Needs msgpack and xxhash. Refuses, by path, everything a state may not hold (tuples, subclasses, object arrays), and
on reading everything that is not exactly as the specification says. Nothing read is ever executed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgpack
import numpy as np
import xxhash

from ..errors import FormatError, StateError
from .dtypes import blocks, dtype_from_name, name_of, view_bytes
from .layout import (
    CHUNK_NBYTES,
    HEADER_NBYTES,
    MAX_MANIFEST_NBYTES,
    MAX_PAYLOADS,
    Chunk,
    Payload,
    chunks_of,
    header,
    parse_header,
    payload_nbytes,
)
from .tree import join
from .wire import MAX_DEPTH, MAX_KEY_NBYTES, MAX_NODES, unpack

__all__ = ["Encoded", "Layout", "Reference", "build", "decode", "encode", "parse_manifest", "resolve"]

INLINE_NBYTES = 1024
"""Longer strings and bytes become payloads."""

_REFERENCE, _SCALAR, _INTEGER = 1, 2, 3


class Encoded:
    """A state tree ready to be written: an iterable of buffers, which may be iterated again.

    It refers to the tree's arrays instead of copying them; do not change them until it has been written.
    """

    def __init__(self, front: bytes, sources: list[Any], layout: Layout) -> None:
        self._front = front
        self._sources = sources
        self._layout = layout
        self.nbytes: int = layout.file_nbytes
        """Size of the whole file, in bytes."""

    def __iter__(self) -> Iterator[memoryview]:
        yield memoryview(self._front)
        chunks = iter(self._layout.chunks)
        for source in self._sources:
            number = -1
            for at, piece in _pieces(source, self._layout.chunk_nbytes):
                if at != number:
                    number = at
                    yield memoryview(next(chunks).gap)
                yield piece

    def tobytes(self) -> bytes:
        """The whole file as one bytes object."""
        return b"".join(self)


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

        def walk(node: Any, path: str) -> None:
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
    writer = _Writer()
    packable = writer.pack(tree, "", 0)
    provenance = _Writer().plain(dict(info or {}))
    payloads: list[Payload] = []
    for source, (name, shape) in zip(writer.sources, writer.payloads, strict=True):
        checksums: list[Any] = []
        number = -1
        for at, piece in _pieces(source, chunk_nbytes):
            if at != number:
                number = at
                checksums.append(xxhash.xxh3_64())
            checksums[-1].update(piece)
        digests = tuple(checksum.intdigest() for checksum in checksums)
        payloads.append(Payload(name, tuple(shape), payload_nbytes(name, shape), digests))
    entries = [[one.dtype_name, one.shape, one.checksums] for one in payloads]
    nodes = writer.nodes + 8 + sum(4 + len(one.shape) + len(one.checksums) for one in payloads)
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


class _Writer:
    """Turns a tree into what msgpack packs, and collects its payloads."""

    def __init__(self) -> None:
        self.sources: list[Any] = []
        self.payloads: list[tuple[str, list[int]]] = []
        self.nodes = 0

    def refer(self, source: Any, name: str, shape: list[int], path: str) -> msgpack.ExtType:
        try:
            payload_nbytes(name, shape)
        except FormatError as error:
            raise StateError(str(error), path=path) from None
        self.sources.append(source)
        self.payloads.append((name, shape))
        return msgpack.ExtType(_REFERENCE, (len(self.sources) - 1).to_bytes(4, "big"))

    def pack(self, node: Any, path: str, depth: int) -> Any:
        kind = type(node)
        if node is None or kind is bool or kind is float:
            return node
        if kind is int:
            return node if -(1 << 63) <= node < 1 << 64 else _big_integer(node)
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
            return self.refer(np.asarray(node), _checked_dtype(node, path), list(node.shape), path)
        if isinstance(node, np.generic):
            name = _checked_dtype(node, path)
            return msgpack.ExtType(_SCALAR, name.encode() + b"\0" + b"".join(blocks(np.asarray(node))))
        raise StateError(_refusal(node), path=path)

    def text(self, node: str | bytes, path: str) -> Any:
        name = type(node).__name__
        try:
            data = node.encode() if isinstance(node, str) else node
        except UnicodeEncodeError as error:
            raise StateError(f"this string has no UTF-8 form: {error}", path=path) from None
        return self.refer(data, name, [len(data)], path) if len(data) > INLINE_NBYTES else node

    def plain(self, info: dict[str, Any]) -> Any:
        packed = self.pack(info, "info", 0)
        if self.sources or any(type(key) is not str for key in info):
            raise StateError("info holds str keys and short plain values only, no arrays", path="info")
        return packed


def _checked_key(key: Any, path: str) -> str | int:
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


def _checked_dtype(node: Any, path: str) -> str:
    name = name_of(node.dtype)
    if name is None:
        raise StateError(f"a state may not hold arrays or scalars of dtype {node.dtype}", path=path)
    return name


def _big_integer(value: int) -> msgpack.ExtType:
    size = (value if value >= 0 else ~value).bit_length() // 8 + 1
    return msgpack.ExtType(_INTEGER, value.to_bytes(size, "big", signed=True))


def _refusal(node: Any) -> str:
    kind = type(node)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if kind is tuple:
        return "a state may not hold tuples, which would come back as lists: make it a list"
    for base in (dict, list, str, bytes, int, float, np.ndarray):
        if issubclass(kind, base):
            return f"{name} would come back as {base.__name__}: convert it"
    return f"a state may not hold {name}"


# Reading ---------------------------------------------------------------------------------------------------------


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

    def extension(code: int, content: bytes) -> Any:
        nonlocal references
        if code == _REFERENCE:
            if content != references.to_bytes(4, "big"):
                raise FormatError(f"payload {references} is not referred to in order")
            references += 1
            return Reference(references - 1)
        if code == _SCALAR:
            return _scalar(content)
        if code == _INTEGER:
            value = int.from_bytes(content, "big", signed=True)
            if -(1 << 63) <= value < 1 << 64 or _big_integer(value).data != content:
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


def _scalar(content: bytes) -> Any:
    name, _, value = content.partition(b"\0")
    try:
        dtype = dtype_from_name(name.decode("ascii"))
    except (StateError, UnicodeDecodeError) as error:
        raise FormatError(f"a numpy scalar of unknown type: {error}") from None
    if len(value) != dtype.itemsize or (dtype.kind == "b" and value[0] > 1):
        raise FormatError(f"a numpy scalar of type {dtype.name} has the wrong bytes")
    return np.frombuffer(value, dtype)[0]


def decode(buffer: Any, *, copy: bool = True) -> Any:
    """Decode a state tree; every checksum is verified first.

    Args:
        buffer: The whole file: bytes, bytearray, memoryview, mmap, uint8 array.
        copy: Whether arrays get writable memory of their own. Without, they are read-only views of `buffer`.

    Returns:
        The tree.

    Raises:
        FormatError: the buffer is not an intact state file.
    """
    view = memoryview(buffer).cast("B")
    manifest_nbytes, checksum = parse_header(bytes(view[:HEADER_NBYTES]), file_nbytes=len(view))
    manifest = bytes(view[HEADER_NBYTES : HEADER_NBYTES + manifest_nbytes])
    layout = parse_manifest(manifest, checksum=checksum, file_nbytes=len(view))
    contents: list[Any] = [None] * len(layout.payloads)
    paths = layout.paths()
    for chunk in layout.chunks:
        payload, start = layout.payloads[chunk.payload], chunk.start
        if view[start - len(chunk.gap) : start] != chunk.gap:
            raise FormatError("the bytes before its data are damaged", path=paths[chunk.payload])
        data = view[start : start + chunk.nbytes]
        if xxhash.xxh3_64_intdigest(data) != payload.checksums[chunk.number]:
            raise FormatError(f"chunk {chunk.number} of its data is damaged: wrong checksum", path=paths[chunk.payload])
        if len(payload.checksums) == 1 and not copy:
            contents[chunk.payload] = data.toreadonly()
            continue
        if chunk.number == 0:
            contents[chunk.payload] = view_bytes(np.empty(payload.nbytes, np.uint8))
        offset = chunk.number * layout.chunk_nbytes
        contents[chunk.payload][offset : offset + chunk.nbytes] = data
    values = [build(payload, *pair) for payload, *pair in zip(layout.payloads, contents, paths, strict=True)]
    return resolve(layout.tree, values.__getitem__)


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
