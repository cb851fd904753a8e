"""Which cases of the grid have run, as a table that fits a screen: a line for algorithm, backend and launcher.

The grid takes hours: the table is kept, so that it can be run in parts, and nobody has to believe a sum.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

from .grid import AXES, Case, every_case

__all__ = ["BOOK", "HOLDS", "NOT_RUN", "read_book", "write_book"]

BOOK = Path(__file__).with_name("grid.txt")
#: What the letters say, and which of them is as it should be.
LETTERS = {"t": "trained", "r": "refused as it should be", "F": "failed", ".": "not run"}
HOLDS, NOT_RUN = "tr", "."
_LINES, _COLUMNS = ("algorithm", "backend", "launcher"), ("collective", "compile", "environment")


def read_book(path: Path) -> dict[Case, str]:
    """{case: letter} of every case that has run; {} where there is no such file.

    Raises:
        ValueError: a line has another length than the grid, a letter that says nothing, or a case that there is not.
    """
    lines = path.read_text().splitlines() if path.exists() else []
    columns = list(itertools.product(*(AXES[axis] for axis in _COLUMNS)))
    known = set(every_case())
    found = {}
    for line in lines:
        if line.startswith("#") or not line:
            continue
        *values, letters = line.split()
        if len(letters) != len(columns) or set(letters) - set(LETTERS):
            raise ValueError(f"{path}: {line!r}: expected {len(columns)} of the letters {''.join(LETTERS)}")
        for column, letter in zip(columns, letters, strict=True):
            case = Case(**dict(zip((*_LINES, *_COLUMNS), (*values, *column), strict=True)))
            if case not in known:
                raise ValueError(f"{path}: {line!r}: there is no case {case}")
            if letter != NOT_RUN:
                found[case] = letter
    return found


def write_book(path: Path, letters: Mapping[Case, str]) -> None:
    """Write what :func:`read_book` reads, the axes named above it."""
    head = [f"# {letter}: {meaning}" for letter, meaning in LETTERS.items()]
    head += [f"# columns: {' x '.join(_COLUMNS)}, the last the fastest:"]
    head += [f"#   {axis}: {' '.join(AXES[axis])}" for axis in _COLUMNS]
    lines = []
    for values in itertools.product(*(AXES[axis] for axis in _LINES)):
        row = [
            letters.get(Case(**dict(zip((*_LINES, *_COLUMNS), (*values, *column), strict=True))), NOT_RUN)
            for column in itertools.product(*(AXES[axis] for axis in _COLUMNS))
        ]
        lines.append(f"{values[0]:7} {values[1]:6} {values[2]:11} {''.join(row)}")
    path.write_text("\n".join([*head, *lines]) + "\n")
