"""Entry points of all installed distributions, each read by itself: a damaged one is named and hides no other.

``importlib.metadata.entry_points()`` ends with the first file that cannot be decoded, without saying which. Needs no
import of any plugin. Refuses what is no regular file, is not UTF-8 or larger than 1 MiB, and lines that mean nothing.
"""

from __future__ import annotations

import importlib.metadata
import re
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from .containment import said, shown

__all__ = ["Claim", "Unreadable", "read_claims"]

_FILE = "entry_points.txt"
_MOST_BYTES = 1 << 20
_MOST_NAME = 100


@dataclass(frozen=True)
class Claim:
    """One line of an ``entry_points.txt``: ``name = value`` in the section ``group``."""

    name: str
    group: str
    value: str
    distribution: str
    version: str


@dataclass(frozen=True)
class Unreadable:
    """A distribution whose entry points, or one of them, cannot be read, and why."""

    distribution: str
    version: str
    reason: str


def read_claims(groups: Collection[str]) -> tuple[list[Claim], list[Unreadable]]:
    """Read the entry points of some groups.

    Args:
        groups: names of entry-point groups; other sections are passed over.

    Returns:
        What is claimed, and what could not be read although it may have claimed something: a file that is no UTF-8
        counts where it names a group, for other projects' damage is no affair of ours.
    """
    claims: list[Claim] = []
    unreadable: list[Unreadable] = []
    seen: set[str] = set()
    for distribution in importlib.metadata.distributions():
        stem = _stem(distribution)
        if stem is not None:
            if stem in seen:
                continue  # an earlier folder of the path has it
            seen.add(stem)
        try:
            data = _read(distribution)
            if data is None or not any(group.encode() in data for group in groups):
                continue
            name, version = _identity(distribution, stem)
            for point in _points(data, groups):
                if isinstance(point, str):
                    unreadable.append(Unreadable(name, version, f"its {_FILE}, {point}"))
                else:
                    claims.append(Claim(*point, name, version))
        except Exception as error:
            unreadable.append(Unreadable(*_identity(distribution, stem), f"its {_FILE} cannot be read: {said(error)}"))
    return claims, unreadable


def _folder(distribution: importlib.metadata.Distribution) -> Path | None:
    # Of an installed distribution; one from an importer of its own has read_text alone.
    folder = getattr(distribution, "_path", None)
    return folder if isinstance(folder, Path) else None


def _stem(distribution: importlib.metadata.Distribution) -> str | None:
    """The distribution's normalised name, from its folder's, as importlib.metadata tells them apart."""
    folder = _folder(distribution)
    if folder is None or folder.suffix not in (".dist-info", ".egg-info"):
        return None
    return re.sub(r"[-_.]+", "-", folder.stem.partition("-")[0]).lower()


def _read(distribution: importlib.metadata.Distribution) -> bytes | None:
    folder = _folder(distribution)
    if folder is None:
        text = distribution.read_text(_FILE)
        return None if text is None else text.encode()
    file = folder / _FILE
    try:
        status = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{shown(str(file))} is no regular file")
    if status.st_size > _MOST_BYTES:
        raise ValueError(f"{shown(str(file))} has {status.st_size} bytes; at most {_MOST_BYTES} are read")
    return file.read_bytes()


def _identity(distribution: importlib.metadata.Distribution, stem: str | None) -> tuple[str, str]:
    """Name and version, from METADATA if that can be read, else from the folder's name."""
    name = version = None
    try:
        folder = _folder(distribution)
        metadata = None if folder is None else folder / "METADATA"
        if metadata is None or not metadata.exists() or metadata.stat().st_size <= _MOST_BYTES:
            name, version = distribution.metadata["Name"], distribution.metadata["Version"]
    except Exception:
        pass  # damaged in its turn: the folder's name says enough
    known = [shown(text.strip())[:_MOST_NAME] if isinstance(text, str) else "" for text in (name, version)]
    return known[0].replace("\n", " ") or shown(stem or "an unknown distribution"), known[1].replace("\n", " ")


def _points(data: bytes, groups: Collection[str]) -> Iterator[tuple[str, str, str] | str]:
    """(name, group, value) for each entry point of these groups, or what is wrong with a line."""
    group: str | None = None
    for number, raw in enumerate(data.decode("utf-8-sig").split("\n"), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("[") and line.endswith("]"):
            group = line[1:-1].strip()
            continue
        if group not in groups or group is None:
            continue
        name, found, value = (part.strip() for part in line.partition("="))
        if not found or not name or not value:
            yield f"line {number}, is no `name = value`: {shown(line)[:_MOST_NAME]!r}"
        elif not name.isprintable() or len(name) > _MOST_NAME or any(c.isspace() for c in name):
            yield f"line {number}: a name is up to {_MOST_NAME} printable characters, not {shown(name)[:_MOST_NAME]!r}"
        else:
            yield name, group, value
