"""Regular files alone: reading with a limit, appending whole lines, never a device, a pipe or somebody else's link.

Opening never waits: a named pipe without a writer is an error like any other.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

from ..errors import StateError, StateIOError

__all__ = ["AppendedFile", "check_regular", "is_there", "kind_of", "open_regular", "read_regular"]

_KINDS = (
    (stat.S_ISREG, "a regular file"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def kind_of(mode: int) -> str:
    """What a file is, in words, by its ``st_mode``."""
    return next((name for is_kind, name in _KINDS if is_kind(mode)), "something unknown")


def is_there(path: str | os.PathLike[str], *, folder: bool = False) -> bool:
    """Whether there is a regular file (or a folder), links followed.

    Raises:
        StateIOError: the operating system does not say; ``Path.is_file`` would raise an error of its own.
    """
    name = os.fspath(path)
    try:
        mode = os.stat(name).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
            return False
        raise StateIOError.of(error, f"cannot look at {name}") from error
    return stat.S_ISDIR(mode) if folder else stat.S_ISREG(mode)


def check_regular(path: str | os.PathLike[str], *, folder: bool = False) -> None:
    """Refuse whatever is neither missing nor a regular file (or a folder), a symbolic link included.

    Args:
        path: Where to look.
        folder: Whether a folder is expected.

    Raises:
        StateError: there is something else.
        StateIOError: the operating system does not say.
    """
    name = os.fspath(path)
    try:
        mode = os.lstat(name).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise StateIOError.of(error, f"cannot look at {name}") from error
    except ValueError as error:  # a zero byte
        raise StateError(f"{name!r} is no path: {error}") from None
    if not (stat.S_ISDIR(mode) if folder else stat.S_ISREG(mode)):
        raise StateError(
            f"{name} is {kind_of(mode)} where {'a folder' if folder else 'a regular file'} belongs: move it away"
        )


@contextlib.contextmanager
def open_regular(path: str | os.PathLike[str], *, limit: int, follow: bool = True) -> Iterator[BinaryIO]:
    """Open a regular file of at most ``limit`` bytes for reading.

    Args:
        path: The file.
        limit: Bytes.
        follow: Whether symbolic links are followed.

    Raises:
        StateError: it is no regular file, or larger.
        StateIOError: the operating system does not open or read it.
    """
    name = os.fspath(path)
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(name, flags)
    except OSError as error:
        if error.errno == errno.ELOOP and not follow:
            raise StateError(f"{name} is a symbolic link where a regular file belongs: move it away") from None
        raise StateIOError.of(error, f"cannot read {name}") from error
    except ValueError as error:  # a zero byte
        raise StateError(f"{name!r} is no path: {error}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise StateError(f"{name} is {kind_of(status.st_mode)}, not a regular file")
        if status.st_size > limit:
            raise StateError(f"{name} has {status.st_size} bytes, more than the {limit} that such a file may have")
        with open(descriptor, "rb", closefd=False) as stream:
            yield stream
    finally:
        os.close(descriptor)


def read_regular(path: str | os.PathLike[str], *, limit: int, follow: bool = True) -> bytes:
    """The bytes of a regular file; arguments and errors as for :func:`open_regular`."""
    with open_regular(path, limit=limit, follow=follow) as stream:
        try:
            data = stream.read(limit + 1)
        except OSError as error:
            raise StateIOError.of(error, f"cannot read {os.fspath(path)}") from error
    if len(data) > limit:
        raise StateError(f"{os.fspath(path)} grows while it is read")
    return data


class AppendedFile:
    """A file that grows by whole pieces: one that was written in part is taken back before the next.

    Nobody else may write to it meanwhile; a symbolic link, a pipe or a device in its place is refused.

    Args:
        path: The file; made by the first piece if it is not there.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        self._size: int | None = None  # where the next piece goes, once something went wrong

    def append(self, piece: bytes) -> None:
        """Write a piece at the end.

        Raises:
            OSError: not all of it could be written. It is as if none had been: calling again writes it once.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
        descriptor = os.open(self._path, flags, 0o666)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, f"it is {kind_of(status.st_mode)}")
            end = status.st_size if self._size is None else min(self._size, status.st_size)
            self._size = end
            if status.st_size > end:
                os.ftruncate(descriptor, end)
            try:
                rest, place = memoryview(piece), end
                while rest:
                    written = os.pwrite(descriptor, rest, place)
                    rest, place = rest[written:], place + written
            except OSError:
                with contextlib.suppress(OSError):  # else the next piece does it
                    os.ftruncate(descriptor, end)
                raise
        finally:
            os.close(descriptor)
        self._size = None
