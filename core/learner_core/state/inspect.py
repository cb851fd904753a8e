"""What a state file holds, as text: the tree, sizes, the state of every checksum, provenance; two files compared.

Reads without trusting: a file whose header or manifest is damaged raises, damaged arrays are listed as such.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from .atomic import PathLike
from .files import damaged_payloads, load_state, read_layout
from .layout import VERSION
from .manifest import Layout, Reference
from .tree import Difference, Plain, describe, diff, flatten

__all__ = ["FileReport", "LeafReport", "compare_files", "inspect_file", "provenance", "render", "render_differences"]

_PLAIN = ("None", "bool", "int", "float", "str")


@dataclasses.dataclass(frozen=True, slots=True)
class LeafReport:
    """One leaf of a file."""

    path: str
    description: str
    """"float32 (64, 4)" for arrays, type and value for plain leaves."""
    nbytes: int
    """Size of its payload; 0 for leaves stored in the manifest."""
    checksum: str
    """"ok", "DAMAGED" or "unchecked"."""


@dataclasses.dataclass(frozen=True, slots=True)
class FileReport:
    """What a state file holds."""

    path: str
    version: int
    nbytes: int
    info: dict[str, Any]
    leaves: list[LeafReport]

    @property
    def intact(self) -> bool:
        """Whether no checksum was found wrong."""
        return all(leaf.checksum != "DAMAGED" for leaf in self.leaves)


def inspect_file(path: PathLike, *, verify: bool = True) -> FileReport:
    """Look into a state file without loading its arrays.

    Args:
        path: A file that `save_state` wrote.
        verify: Whether to read all of it and check its arrays; header and manifest are always checked.

    Returns:
        The report; arrays whose bytes are damaged are marked, not refused.

    Raises:
        FormatError: header, manifest or size of the file are not as they must be.
        StateIOError: the operating system cannot read it.
    """
    layout, damaged = damaged_payloads(path) if verify else (read_layout(path), set[int]())
    leaves = []
    for place, leaf in flatten(layout.tree).items():
        if not isinstance(leaf, Reference):
            leaves.append(LeafReport(place, _plain(leaf), 0, "ok"))
            continue
        payload = layout.payloads[leaf.index]
        text = f"{payload.dtype_name} {payload.shape}"
        if payload.dtype_name in ("str", "bytes"):
            text = f"{payload.dtype_name} of {payload.nbytes} bytes"
        state = "unchecked" if not verify else "DAMAGED" if leaf.index in damaged else "ok"
        leaves.append(LeafReport(place, text, payload.nbytes, state))
    return FileReport(os.fspath(path), VERSION, layout.file_nbytes, layout.info, leaves)


def _plain(leaf: Plain) -> str:
    if leaf is None or isinstance(leaf, (dict, list)):
        return "None" if leaf is None else f"empty {type(leaf).__name__}"
    if type(leaf) is int and leaf.bit_length() > 200:
        return f"int of {leaf.bit_length()} bits"  # Python refuses to print very long ones
    value = str(leaf) if isinstance(leaf, np.generic) else repr(leaf)
    return f"{describe(leaf)} {value if len(value) <= 60 else value[:57] + '...'}"


def size_text(nbytes: int) -> str:
    """A size for people: "24 B", "1.0 kB", "245.3 MB".

    Args:
        nbytes: The size, in bytes.

    Returns:
        The text, in decimal units.
    """
    if nbytes < 1000:
        return f"{nbytes} B"
    size = float(nbytes)
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"


def render(report: FileReport) -> str:
    """A report as text: provenance, the tree indented, totals.

    Args:
        report: What `inspect_file` gave.

    Returns:
        Several lines, without a final newline.
    """
    damaged = [leaf.path for leaf in report.leaves if leaf.checksum == "DAMAGED"]
    unchecked = any(leaf.checksum == "unchecked" for leaf in report.leaves)
    verdict = "arrays not checked" if unchecked else "intact" if not damaged else f"DAMAGED in {len(damaged)} places"
    lines = [f"{report.path}: state file, format version {report.version}, {size_text(report.nbytes)}, {verdict}"]
    width = max(map(len, report.info), default=0)
    lines += [f"  {_printable(key):{width}}  {_printable(str(value))}" for key, value in report.info.items()]
    rows: list[tuple[str, str, str, str]] = []
    open_segments: list[str] = []
    for leaf in _lists_in_a_line(report.leaves):
        *front, last = leaf.path.split("/")
        shared = 0
        while shared < min(len(front), len(open_segments)) and front[shared] == open_segments[shared]:
            shared += 1
        rows += [("  " * depth + _printable(front[depth]), "", "", "") for depth in range(shared, len(front))]
        open_segments = front
        size = size_text(leaf.nbytes) if leaf.nbytes else ""
        state = leaf.checksum if leaf.nbytes else ""
        rows.append(("  " * len(front) + _printable(last or "(the whole tree)"), leaf.description, size, state))
    first, second, third = (max((len(row[column]) for row in rows), default=0) for column in range(3))
    lines += [f"{row[0]:{first}}  {row[1]:{second}}  {row[2]:>{third}}  {row[3]}".rstrip() for row in rows]
    arrays = [leaf for leaf in report.leaves if leaf.nbytes]
    total = size_text(sum(leaf.nbytes for leaf in arrays))
    return "\n".join([*lines, f"{len(report.leaves)} leaves, {len(arrays)} of them arrays with {total}"])


def _list_of(path: str) -> str:
    """The path of the outermost list that a path leads through, or the path itself."""
    before, found, _ = path.partition("/[")
    return before if found else path


def _lists_in_a_line(leaves: list[LeafReport]) -> Iterator[LeafReport]:
    """The leaves, those of a list of plain values put together into one."""
    for path, group in itertools.groupby(leaves, key=lambda leaf: _list_of(leaf.path)):
        inside = list(group)
        plain = all(not leaf.nbytes and leaf.description.split(" ")[0] in _PLAIN for leaf in inside)
        if inside[0].path == path or not plain:
            yield from inside
            continue
        values = [leaf.description.split(" ", 1)[-1] for leaf in inside[:20]]
        text = ", ".join(values)
        if len(text) > 60 or len(inside) > len(values):
            text = text[:57] + "..."
        yield LeafReport(path, f"list, {len(inside)} value{'s' if len(inside) > 1 else ''}: {text}", 0, "ok")


def _printable(text: str) -> str:
    """Text from a file must not steer a terminal."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text[:200])


def compare_files(first: PathLike, second: PathLike) -> list[Difference]:
    """Where the trees of two files differ, to the bit. Provenance is not compared.

    Args:
        first: A state file.
        second: Another.

    Returns:
        The differences.

    Raises:
        FormatError: one of the files is not intact.
        StateIOError: the operating system cannot read one of them.
    """
    return diff(load_state(first, mmap=True), load_state(second, mmap=True))


def render_differences(differences: list[Difference]) -> str:
    """Differences as text, one line each.

    Args:
        differences: What `compare_files` gave.

    Returns:
        "- " lines only in the first, "+ " only in the second, "~ " in both but different; or "no difference".
    """
    signs = {"missing": "-", "extra": "+"}
    lines: list[str] = []
    for (kind, path), group in itertools.groupby(differences, key=lambda one: (one.kind, _list_of(one.path))):
        inside = list(group)
        if kind in signs and len(inside) > 1 and inside[0].path != path:
            which = "first" if kind == "missing" else "second"
            lines.append(f"{signs[kind]} {_printable(path)}: {len(inside)} values of the list only in the {which}")
            continue
        lines += [f"{signs.get(kind, '~')} {_printable(one.path)}: {_printable(one.message)}" for one in inside]
    return "\n".join(lines) or "no difference"


def provenance(path: PathLike) -> dict[str, Plain]:
    """The `info` that was stored with a tree.

    Args:
        path: A file that `save_state` wrote.

    Returns:
        Provenance; never needed to use the tree.

    Raises:
        FormatError: header, manifest or size of the file are not as they must be.
        StateIOError: the operating system cannot read it.
    """
    layout: Layout = read_layout(path)
    return layout.info
