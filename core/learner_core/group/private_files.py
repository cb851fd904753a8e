"""Files and folders that are one user's alone: made so, and refused where others may read or change them."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from pathlib import Path

from learner_core.errors import LearnerGroupError

__all__ = ["check_private", "open_private", "user_folder"]


def user_folder() -> Path:
    """This user's own folder among everybody's temporary files; it need not be there."""
    return Path(tempfile.gettempdir()) / f"learner-core-{os.geteuid()}"


def open_private(path: Path) -> int:
    """A descriptor of a folder that is this user's alone; made if need be.

    Raises:
        LearnerGroupError: it is somebody else's, open to others, or no folder.
    """
    try:
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise _not_ours(path, "is not a folder") from error
        raise LearnerGroupError(f"a folder for this user alone, {path}: {error}") from error
    try:
        check_private(os.fstat(folder), path, folder=True)
    except BaseException:
        os.close(folder)
        raise
    return folder


def check_private(found: os.stat_result, path: object, *, folder: bool = False) -> None:
    """Refuse what is not this user's alone.

    Args:
        found: of what has been opened at ``path``.
        path: for the message.
        folder: whether it must be one; else a regular file.

    Raises:
        LearnerGroupError: it is not.
    """
    if not (stat.S_ISDIR if folder else stat.S_ISREG)(found.st_mode):
        raise _not_ours(path, "is no folder" if folder else "is no regular file")
    if found.st_uid != os.geteuid():
        raise _not_ours(path, f"belongs to user {found.st_uid}")
    if found.st_mode & 0o077:
        raise _not_ours(path, f"is open to others (mode {stat.S_IMODE(found.st_mode):o})")


def _not_ours(path: object, what: str) -> LearnerGroupError:
    return LearnerGroupError(
        f"{path} {what}; what is secret lies where no other user has access. Remove it, or set its mode to "
        "0600 (a folder's to 0700), or name another place by TMPDIR"
    )
