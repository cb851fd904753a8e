"""Folders whose content is trusted: nobody but the user may put anything there, or put another folder in its place.

What is loaded as code (compiled packages, wheels) is taken from such a folder alone. As ssh does with its keys, every
level up to the root is looked at. A folder that everyone may write counts as long as it is sticky (/tmp): there nobody
can remove or replace what belongs to others.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

__all__ = ["make_private_folder", "why_not_private"]

_MOST_LINKS = 40


def make_private_folder(path: Path) -> str:
    """Make a folder that only its owner may enter, with the levels above it, unless it is there.

    Args:
        path: the folder.

    Returns:
        Why it cannot be trusted, or not be made, in words; empty if it can.
    """
    try:
        # One by one: makedirs gives the levels between what the umask leaves.
        for level in [*reversed(path.absolute().parents), path.absolute()]:
            if not level.exists():
                level.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        return f"{path} cannot be made: {error.strerror or error}"
    return why_not_private(path)


def why_not_private(path: Path) -> str:
    """Whether a folder, or a file, can only be changed by this user (and root).

    Args:
        path: a folder or a regular file; a file that is a symbolic link is refused.

    Returns:
        What speaks against it, with the command that helps; empty if nothing does.
    """
    user = os.geteuid()
    parts = list(path.absolute().parts[1:])
    here = Path("/")
    num_links = 0
    try:
        problem = _problem_of(here, user, last=False)
        while parts and not problem:
            entry = here / parts.pop(0)
            if entry.name == "..":
                here = here.parent
                continue
            status = os.lstat(entry)
            if not stat.S_ISLNK(status.st_mode):
                here = entry
                problem = _problem_of(here, user, last=not parts)
                continue
            num_links += 1
            if num_links > _MOST_LINKS or (not parts and entry == path.absolute() and entry.is_file()):
                return f"{entry} is a symbolic link"
            if status.st_uid not in (0, user):
                return f"{entry} is a symbolic link of user {status.st_uid}"
            target = Path(os.readlink(entry))
            if target.is_absolute():
                here = Path("/")
            parts = [part for part in target.parts if part != "/"] + parts
    except OSError as error:
        return f"{path} cannot be looked at: {error.strerror or error}"
    return problem


def _problem_of(path: Path, user: int, *, last: bool) -> str:
    """What is wrong with one level: the path itself belongs to the user, what is above to the user or root."""
    status = os.lstat(path)
    if last and not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
        return f"{path} is neither a folder nor a file"
    if status.st_uid != user and (last or status.st_uid != 0):
        return f"{path} belongs to user {status.st_uid}"
    others_write = status.st_mode & 0o022
    if others_write and (last or not status.st_mode & stat.S_ISVTX):
        return f"others may write to {path}: chmod go-w {path}"
    return ""
