"""Where things lie in a state file: the header, the payloads and their chunks (docs/format.md, section 1).

Pure arithmetic on sizes. Everything that can be wrong about a size is refused here, before anything is allocated.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator, Sequence
from typing import Final

import xxhash

from ..errors import FormatError, StateError
from .dtypes import dtype_from_name
from .tree import Plain

__all__ = [
    "ALIGNMENT",
    "CHUNK_NBYTES",
    "HEADER_NBYTES",
    "MAX_MANIFEST_NBYTES",
    "MAX_PAYLOADS",
    "VERSION",
    "Chunk",
    "Payload",
    "chunks_of",
    "gap",
    "header",
    "parse_header",
]

VERSION: Final = 1
HEADER_NBYTES: Final = 64
ALIGNMENT: Final = 64
CHUNK_NBYTES: Final = 1 << 30
MAX_MANIFEST_NBYTES: Final = 1 << 24
MAX_PAYLOADS: Final = 1 << 16
MAX_NDIM: Final = 32
MAX_DIMENSION: Final = 1 << 48
MAX_PAYLOAD_NBYTES: Final = 1 << 53

_MAGIC: Final = b"\x96\xb2learner-core/state"
_FIELDS: Final = struct.Struct(">BIBQBIBQ")  # tag and value of version, file size, manifest size, manifest checksum
_PADDING: Final = b"\xc0" * 7
_FOREIGN: Final = (
    (b"PK\x03\x04", "a zip archive: an .npz, a torch.save or a Keras file"),
    (b"\x80\x02", "a pickle, which learner-core never reads"),
    (b"\x80\x03", "a pickle, which learner-core never reads"),
    (b"\x80\x04", "a pickle, which learner-core never reads"),
    (b"\x80\x05", "a pickle, which learner-core never reads"),
    (b"\x93NUMPY", "an .npy file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x1f\x8b", "a gzip archive"),
)


def header(*, file_nbytes: int, manifest: bytes) -> bytes:
    """The 64 bytes at the front of a file.

    Args:
        file_nbytes: Size of the whole file, in bytes.
        manifest: The manifest.

    Returns:
        The header.
    """
    checksum = xxhash.xxh3_64_intdigest(manifest)
    front = _MAGIC + _FIELDS.pack(0xCE, VERSION, 0xCF, file_nbytes, 0xCE, len(manifest), 0xCF, checksum)
    return front + b"\xcf" + xxhash.xxh3_64_digest(front) + _PADDING


def parse_header(data: bytes, *, file_nbytes: int) -> tuple[int, int]:
    """Check a header.

    Args:
        data: The first 64 bytes of the file, or fewer where it is shorter.
        file_nbytes: True size of the file, in bytes.

    Returns:
        Size and checksum of the manifest.

    Raises:
        FormatError: the file is foreign, damaged, truncated, too long, or of a newer version.
    """
    if not data:
        raise FormatError("the file is empty")
    if data[: len(_MAGIC)] != _MAGIC[: len(data)]:
        what = next((f"; it looks like {what}" for front, what in _FOREIGN if data.startswith(front)), "")
        raise FormatError(f"not a learner-core state file (or its first bytes are damaged){what}")
    if len(data) < HEADER_NBYTES:
        raise FormatError(f"truncated: {len(data)} bytes, a header has {HEADER_NBYTES}")
    tag_v, version, tag_f, stated, tag_m, manifest_nbytes, tag_c, checksum = _FIELDS.unpack_from(data, len(_MAGIC))
    intact = data[48:49] == b"\xcf" and data[49:57] == xxhash.xxh3_64_digest(data[:48]) and data[57:] == _PADDING
    if not intact or (tag_v, tag_f, tag_m, tag_c) != (0xCE, 0xCF, 0xCE, 0xCF):
        raise FormatError("the header is damaged: its checksum does not match")
    if version != VERSION:
        raise FormatError(
            f"format version {version}; this learner-core reads up to {VERSION}. Upgrade learner-core to open the file"
        )
    if stated != file_nbytes:
        problem = "truncated" if file_nbytes < stated else "bytes follow the end"
        raise FormatError(f"{problem}: the file has {file_nbytes} bytes, its header states {stated}")
    if manifest_nbytes > MAX_MANIFEST_NBYTES:
        raise FormatError(f"the manifest states {manifest_nbytes} bytes; at most {MAX_MANIFEST_NBYTES} are allowed")
    if HEADER_NBYTES + manifest_nbytes > file_nbytes:
        raise FormatError(f"the manifest states {manifest_nbytes} bytes, more than the file has")
    return manifest_nbytes, checksum


def gap(end: int, nbytes: int) -> bytes:
    """Padding and msgpack's five bytes before a chunk.

    Args:
        end: Offset at which what precedes the chunk ends.
        nbytes: Size of the chunk, in bytes.

    Returns:
        The bytes from `end` up to the chunk's own.
    """
    return b"\xc0" * (-(end + 5) % ALIGNMENT) + b"\xc6" + nbytes.to_bytes(4, "big")


@dataclasses.dataclass(frozen=True, slots=True)
class Payload:
    """One array, long string or long bytes of the tree."""

    dtype_name: str
    """A name of `DTYPE_NAMES`, or "str" or "bytes"."""
    shape: tuple[int, ...]
    nbytes: int
    checksums: tuple[int, ...]
    """XXH3-64 of each chunk."""

    @classmethod
    def checked(cls, entry: object, chunk_nbytes: int) -> Payload:
        """Check an entry of the manifest's `arrays`; sizes first.

        Args:
            entry: `[dtype name, [dimension, ...], [checksum, ...]]`, not to be trusted.
            chunk_nbytes: Size of a chunk, in bytes.

        Returns:
            The payload.

        Raises:
            FormatError: a type, a name, a size or the number of chunks is not allowed.
        """
        if not (type(entry) is list and len(entry) == 3 and type(entry[1]) is type(entry[2]) is list):
            raise FormatError("a payload's entry is not [dtype, shape, checksums]")
        name, shape, checksums = entry
        nbytes = payload_nbytes(name, shape)
        if len(checksums) != -(-nbytes // chunk_nbytes):
            raise FormatError(
                f"a payload of {nbytes} bytes has {len(checksums)} checksums for chunks of {chunk_nbytes} bytes"
            )
        if any(type(checksum) is not int for checksum in checksums):
            raise FormatError("a payload's checksum is not an integer")
        return cls(name, tuple(shape), nbytes, tuple(checksums))


def payload_nbytes(name: object, shape: Sequence[Plain]) -> int:
    """Size of a payload, all limits checked.

    Args:
        name: Its dtype name, not to be trusted.
        shape: Its dimensions, not to be trusted.

    Returns:
        Its size, in bytes.

    Raises:
        FormatError: the dtype or a dimension is not allowed.
    """
    if type(name) is not str:
        raise FormatError(f"a payload's dtype is not a string: {name!r:.60}")
    if len(shape) > MAX_NDIM:
        raise FormatError(f"a payload has {len(shape)} dimensions; at most {MAX_NDIM} are allowed")
    if any(type(size) is not int or not 0 <= size <= MAX_DIMENSION for size in shape):
        raise FormatError(f"a payload's shape is not made of integers from 0 to 2^48: {shape!r:.100}")
    if name in ("str", "bytes"):
        if len(shape) != 1:
            raise FormatError(f"a payload of {name} has {len(shape)} dimensions, not one")
        itemsize = 1
    else:
        try:
            itemsize = dtype_from_name(name).itemsize
        except StateError as error:
            raise FormatError(str(error)) from None
    extent = itemsize
    for size in shape:
        extent *= size or 1
    if extent > MAX_PAYLOAD_NBYTES:
        raise FormatError(f"a payload of {name} {shape} exceeds 2^53 bytes")
    return 0 if 0 in shape else extent


@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a payload as it lies in the file."""

    payload: int
    """Index of the payload."""
    number: int
    """Which chunk of the payload this is, from 0."""
    gap: bytes
    """What must stand before it."""
    start: int
    """Offset in the file."""
    nbytes: int


def chunks_of(payloads: list[Payload], *, manifest_nbytes: int, chunk_nbytes: int) -> Iterator[Chunk]:
    """Every chunk of a file, in order.

    Args:
        payloads: The file's payloads.
        manifest_nbytes: Size of the manifest, in bytes.
        chunk_nbytes: Size of a chunk, in bytes.

    Yields:
        The chunks.
    """
    end = HEADER_NBYTES + manifest_nbytes
    for index, payload in enumerate(payloads):
        for number in range(len(payload.checksums)):
            nbytes = min(chunk_nbytes, payload.nbytes - number * chunk_nbytes)
            before = gap(end, nbytes)
            start = end + len(before)
            yield Chunk(index, number, before, start, nbytes)
            end = start + nbytes
