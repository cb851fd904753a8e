"""Zip archives of which no more is read than is asked for, whatever they say about themselves."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections import Counter
from typing import BinaryIO

from ..errors import StateError

__all__ = ["UNREADABLE", "member", "open_archive"]

#: What damaged archives raise.
UNREADABLE = (
    *(OSError, EOFError, ValueError, NotImplementedError, RuntimeError, OverflowError),
    *(struct.error, zlib.error, zipfile.BadZipFile),
)
#: Bytes of an archive's directory, at most.
_DIRECTORY_LIMIT = 1 << 20
_BLOCK = 1 << 16


class _Bounded(io.RawIOBase):
    """A stream of which nobody reads more than a directory's worth at once, whatever an archive says."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._size = stream.seek(0, io.SEEK_END)

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def read(self, size: int | None = -1) -> bytes:
        rest = max(self._size - self._stream.tell(), 0)
        wanted = rest if size is None or size < 0 else min(size, rest)
        if wanted > _DIRECTORY_LIMIT:
            raise zipfile.BadZipFile(f"it has a directory of {wanted} bytes")
        return self._stream.read(wanted)


def open_archive(stream: BinaryIO) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """A zip archive and its members by name.

    Args:
        stream: the file; members are read from it.

    Raises:
        StateError: a name occurs twice.
        Exception: one of ``UNREADABLE``: it is no zip archive.
    """
    archive = zipfile.ZipFile(_Bounded(stream))
    infos = archive.infolist()
    twice = [name for name, count in Counter(info.filename for info in infos).items() if count > 1]
    if twice:
        raise StateError(f"it holds {twice[0][:100]!r} twice")
    return archive, {info.filename: info for info in infos}


def member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, *, limit: int) -> bytes:
    """A member's bytes, read and unpacked no further than ``limit``.

    Raises:
        StateError: it is larger, encrypted, or compressed otherwise than by deflate.
    """
    name = info.filename
    if info.flag_bits & 0x1:
        raise StateError(f"{name} is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise StateError(f"{name} is compressed by method {info.compress_type}; deflate alone is read")
    if info.file_size > limit:
        raise StateError(f"{name} has {info.file_size} bytes, more than the {limit} that are needed")
    parts = []
    left = info.file_size
    with archive.open(info) as stream:
        while left > 0 and (part := stream.read(min(left, _BLOCK))):
            parts.append(part)
            left -= len(part)
    if left:
        raise StateError(f"{name} has fewer bytes than the archive says")
    return b"".join(parts)
