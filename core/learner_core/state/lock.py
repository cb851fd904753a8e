"""One process at a time: a lock on a folder, which goes when its holder does, however that ends.

Needs a file system with ``flock``; where there is none, that is said and nothing is locked. The lock is on a file that
stays: only whether it is locked counts, and what it holds tells who has it.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import functools
import json
import os
import socket
import stat
import time
import weakref
from typing import Any

from ..errors import StateError, StateIOError
from .regular import kind_of

__all__ = ["FolderLock", "holder_of", "refuse_if_held"]

_LIMIT = 4096
_TRIES, _PAUSE_S = 6, 0.1
_HELD = (errno.EWOULDBLOCK, errno.EACCES)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

_locks: weakref.WeakSet[FolderLock] = weakref.WeakSet()


class FolderLock:
    """The lock of one folder; a context manager, which lets go of it at the end.

    Processes that are started or forked meanwhile do not keep it.

    Args:
        path: The file that is locked, in the folder; made if it is not there.

    Raises:
        StateError: another process has it, which the message names.
        StateIOError: the file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: str = os.fspath(path)
        self.trouble: str = ""
        """Why nothing is locked, in words; empty where it is."""
        _forget_in_children()
        self._descriptor = _open(self.path, os.O_RDWR | os.O_CREAT)
        try:
            self._lock()
        except BaseException:
            self.release()
            raise
        _locks.add(self)

    def _lock(self) -> None:
        try:
            self._try()
        except OSError as error:
            if error.errno in _HELD:
                raise StateError(_in_use(self.path)) from None
            if error.errno not in _NO_LOCKS:
                raise StateIOError.of(error, f"cannot lock {self.path}") from error
            self.trouble = f"{self.path} cannot be locked ({error.strerror}): its file system has no locks"
            return
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now}) + "\n"
        # A full disk does not matter here: the lock counts, not what the file says.
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, text.encode(), 0)

    def _try(self) -> None:
        """Lock, waiting for a moment: a process that is being forked lets go of its parent's lock only once it runs."""
        for _ in range(_TRIES - 1):
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno not in _HELD:
                    raise
            time.sleep(_PAUSE_S)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def release(self) -> None:
        """Let go of the lock. Safe to call twice."""
        descriptor, self._descriptor = self._descriptor, -1
        _locks.discard(self)
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *details: object) -> None:
        self.release()


def refuse_if_held(path: str | os.PathLike[str]) -> None:
    """Refuse where another process has a lock, without taking it; where there is no file, nobody has.

    Args:
        path: The lock's file.

    Raises:
        StateError: another process has it, which the message names.
    """
    name = os.fspath(path)
    try:
        descriptor = _open(name, os.O_RDONLY)
    except StateError:  # missing, or nothing to lock: whoever locks it will say
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            raise StateError(_in_use(name)) from None
    finally:
        os.close(descriptor)


def _in_use(path: str) -> str:
    return (
        f"{os.path.dirname(path) or '.'} is in use: {holder_of(path)}. Wait until it ends or stop it (SIGTERM lets it "
        "save), or take another folder."
    )


def holder_of(path: str | os.PathLike[str]) -> str:
    """Who has a lock, in words, by what the file says; ``"another process"`` where it says nothing that can be read.

    Args:
        path: The lock's file.
    """
    found: Any = None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        descriptor = _open(os.fspath(path), os.O_RDONLY)
        try:
            found = json.loads(os.pread(descriptor, _LIMIT, 0))
        finally:
            os.close(descriptor)
    if not isinstance(found, dict) or type(found.get("pid")) is not int:
        return "another process has it"
    host, since = (str(found.get(name, "?"))[:200] for name in ("host", "since"))
    plain = "".join(letter for letter in f"on {host} has it since {since}" if letter.isprintable())
    return f"process {found['pid']} {plain}"


def _open(path: str, flags: int) -> int:
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise StateError(f"{path} is no regular file: move it away, a new one is made") from None
        raise StateIOError.of(error, f"cannot open {path}") from error
    except ValueError as error:  # a zero byte
        raise StateError(f"{path!r} is no path: {error}") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise StateError(f"{path} is {kind_of(mode)}, not a regular file: move it away, a new one is made")
    return descriptor


@functools.cache
def _forget_in_children() -> None:
    """A forked process has the descriptors too, and would go on holding the locks after this one's death."""

    def forget() -> None:
        for lock in list(_locks):
            lock.release()

    os.register_at_fork(after_in_child=forget)
