"""One file replaced by another: atomic, durable, and nothing left behind (docs/format.md, section 5).

Every file of the library is written here: states, the small files of a run, exports. Needs a POSIX file system with
rename and fsync. Refuses to replace what is no regular file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable

from ..errors import StateIOError
from .regular import kind_of

__all__ = ["PathLike", "check_target", "sweep_temporaries", "sync_folder", "write_atomically"]

_SUFFIX = ".lctmp"
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{12}\.lctmp", re.DOTALL)
#: Bytes that a temporary's name has more than the stem in it.
_NAME_NBYTES = len("..") + 12 + len(_SUFFIX)
_BATCH = 256
_STRIDE = 1 << 23

PathLike = str | os.PathLike[str]


def write_atomically(path: PathLike, buffers: Iterable[memoryview | bytes], *, follow: bool = True) -> None:
    """Replace a file by new bytes so that at every moment one of the two is there, whole.

    The new file has the permissions of the one that it replaces and, where this process may give them, its owner and
    group; a file that was not there gets what the umask leaves of 0666. ACLs and hard links are not kept.

    Args:
        path: The file; its folder must exist.
        buffers: Its new bytes.
        follow: Whether a symbolic link is followed, to the file that it leads to; else it is refused.

    Raises:
        StateIOError: there is something else than a regular file (a folder, a device, a pipe, a socket), the name ends
            in a slash, or a step failed. The old file is intact and no temporary is left; only when the very last step
            failed, the fsync of the folder, the new file is in place and merely not known to survive a power loss.
    """
    target, old = check_target(path, follow=follow)
    folder, name = os.path.split(target)
    temporary: str | None = None
    descriptor = -1
    stem = name
    try:
        stem = _stem(folder, name)
        # The order is what makes this safe:
        # 1. lock the temporary, so that no sweeper takes it for an abandoned one;
        temporary, descriptor = _create(folder, stem, 0o666 if old is None else old.st_mode & 0o777)
        if old is not None:
            _keep_owner_and_mode(descriptor, old)
        # 2. write and fsync it: rename may reach the disk before data that were not synced;
        _write_all(descriptor, buffers)
        os.fsync(descriptor)
        # 3. rename: readers see the old file or the new one;
        os.replace(temporary, target)
        temporary = None
        # 4. fsync the folder: without it a power loss may undo the rename.
        sync_folder(folder)
    except OSError as error:
        raise StateIOError.of(error, f"cannot save {target}") from error
    finally:
        # The name goes before the lock: a sweeper must never find an unlocked name that is ours.
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)
    sweep_temporaries(folder, is_target=stem.__eq__)


def check_target(path: PathLike, *, follow: bool = True) -> tuple[str, os.stat_result | None]:
    """Find out what a file to be written would replace; changes nothing.

    Args:
        path: The file.
        follow: As for :func:`write_atomically`.

    Returns:
        Its absolute path without links, and the status of what is there, ``None`` if nothing is.

    Raises:
        StateIOError: as :func:`write_atomically`; or there is no folder for it.
    """
    given = os.fsdecode(path)
    try:
        if not given or "\0" in given:
            raise OSError(errno.EINVAL, f"a file's name is not empty and has no zero byte, got {given!r}")
        if os.path.basename(given) in ("", ".", ".."):
            raise OSError(errno.EISDIR, "that is the name of a folder; give the name of a file")
        if follow:
            target = os.path.realpath(given)
        else:
            target = os.path.join(os.path.realpath(os.path.dirname(given) or "."), os.path.basename(given))
        try:
            old = os.lstat(target)
        except FileNotFoundError:
            if not os.path.isdir(os.path.dirname(target)):
                raise
            return target, None
        if not stat.S_ISREG(old.st_mode):
            code = errno.EISDIR if stat.S_ISDIR(old.st_mode) else errno.EINVAL
            raise OSError(code, f"it is {kind_of(old.st_mode)}, and only regular files are replaced")
        return target, old
    except OSError as error:
        raise StateIOError.of(error, f"cannot save {given}") from error


def _stem(folder: str, name: str) -> str:
    """What stands for a file in the names of its temporaries: its name, or a hash where they would be too long."""
    try:
        limit = os.pathconf(folder, "PC_NAME_MAX")
    except (OSError, ValueError):
        limit = 255
    if len(os.fsencode(name)) + _NAME_NBYTES <= limit:
        return name
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:32]


def _create(folder: str, stem: str, mode: int) -> tuple[str, int]:
    """A new locked temporary file: its path and descriptor."""
    for _ in range(100):
        temporary = os.path.join(folder, f".{stem}.{secrets.token_hex(6)}{_SUFFIX}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with contextlib.suppress(OSError):  # a file system without locks: then nothing there is ever swept either
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:  # not swept between open and flock
                return temporary, descriptor
            os.close(descriptor)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            with contextlib.suppress(OSError):
                os.close(descriptor)
            raise
    raise OSError(16, "temporary files vanish as soon as they are created")


def _keep_owner_and_mode(descriptor: int, old: os.stat_result) -> None:
    """Give a new file the owner, group and permissions of the old one, as far as this process may.

    Nobody may do more with the new file than with the old one: where the group cannot be kept, ours gets no more than
    everyone had.
    """
    mode = old.st_mode & 0o777
    new = os.fstat(descriptor)
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        try:
            os.fchown(descriptor, old.st_uid, old.st_gid)
        except OSError:
            try:
                os.fchown(descriptor, -1, old.st_gid)
            except OSError:
                mode &= ~0o070 | (mode & 0o007) << 3
    # A file system without permissions refuses; the file was created with no more than these.
    with contextlib.suppress(OSError):
        os.fchmod(descriptor, mode)


def _write_all(descriptor: int, buffers: Iterable[memoryview | bytes]) -> None:
    """Write every byte, many small buffers in one call, large ones in strides, going on after short writes."""
    batch: list[memoryview] = []
    position = size = 0
    for buffer in buffers:
        view = memoryview(buffer).cast("B")
        for start in range(0, len(view), _STRIDE):
            batch.append(view[start : start + _STRIDE])
            size += len(batch[-1])
            if len(batch) < _BATCH and size < _STRIDE:
                continue
            _write_batch(descriptor, batch)
            # macOS has no such call: AttributeError.
            with contextlib.suppress(OSError, AttributeError):
                # Starts writing to the disk what would otherwise wait for fsync (15 % of a save of 80 MB). Dirty pages
                # stay in the cache, whatever the name says.
                os.posix_fadvise(descriptor, position, size, os.POSIX_FADV_DONTNEED)
            position += size
            batch, size = [], 0
    _write_batch(descriptor, batch)


def _write_batch(descriptor: int, batch: list[memoryview]) -> None:
    while batch:
        written = os.writev(descriptor, batch)
        while batch and written >= len(batch[0]):
            written -= len(batch.pop(0))
        if batch and written:
            batch[0] = batch[0][written:]


def sync_folder(folder: str) -> None:
    """Make the names in a folder survive a power loss.

    Args:
        folder: The folder.

    Raises:
        OSError: it cannot be opened or synced.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def sweep_temporaries(folder: PathLike, *, is_target: Callable[[str], bool]) -> list[str]:
    """Remove what killed writers have left; nothing else, and nothing a living writer holds.

    Args:
        folder: Where to look.
        is_target: Whether a file of this name is one whose temporaries are ours to remove.

    Returns:
        The paths removed. What cannot be read or removed is left alone: sweeping never fails.
    """
    removed: list[str] = []
    with contextlib.suppress(OSError):
        for entry in os.listdir(folder):
            match = _TEMPORARY.fullmatch(entry)
            if match is None or not is_target(match[1]):
                continue
            stale = os.path.join(folder, entry)
            with contextlib.suppress(OSError):
                descriptor = os.open(stale, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held by a living writer: BlockingIOError
                    os.unlink(stale)
                    removed.append(stale)
                finally:
                    os.close(descriptor)
    return removed
