"""What the subcommands share: tables, durations, numbers with a suffix."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = [
    "add_override_spaces",
    "add_trust",
    "count",
    "duration",
    "number",
    "parse_count",
    "parse_duration",
    "parse_file",
    "table",
]


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust MODULE``, for commands that open checkpoints; what was given is a list of names."""
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="MODULE",
        help="a module of yours whose classes and environments a file may name; repeat for more",
    )


def add_override_spaces(parser: argparse.ArgumentParser) -> None:
    """Add ``--override-spaces``, for commands that go on from checkpoints."""
    parser.add_argument(
        "--override-spaces",
        action="store_true",
        help="go on in an environment whose spaces are not those of the checkpoint's",
    )


def table(rows: Iterable[Sequence[object]], *, header: Sequence[str] = ()) -> str:
    """Align columns: numbers to the right, text to the left.

    Args:
        rows: The lines' cells.
        header: Column titles; none: no header.

    Returns:
        Lines joined by newlines, without trailing blanks.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    lines = ([list(header)] if header else []) + cells
    if not lines:
        return ""
    columns = range(max(len(line) for line in lines))
    lines = [line + [""] * (len(columns) - len(line)) for line in lines]
    widths = [max(len(line[column]) for line in lines) for column in columns]
    numeric = [
        bool(cells) and all(_is_number(line[column]) for line in cells if column < len(line) and line[column])
        for column in columns
    ]
    texts = [
        "  ".join(
            line[column].rjust(widths[column]) if numeric[column] else line[column].ljust(widths[column])
            for column in columns
        ).rstrip()
        for line in lines
    ]
    if header:
        texts.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(texts)


def _is_number(text: str) -> bool:
    try:
        float(text.rstrip("%x").replace(" ", "").replace(",", ""))
    except ValueError:
        return False
    return True


def duration(seconds: float | None) -> str:
    """``75`` -> ``"1:15"``; None and infinity -> ``"-"``."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def count(value: float) -> str:
    """``1234567`` -> ``"1.23M"``."""
    for limit, divisor, suffix in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= limit:
            return f"{value / divisor:.3g}{suffix}"
    return f"{value:.0f}"


def number(value: float | None) -> str:
    """Four significant digits; None and NaN -> ``"-"``."""
    return "-" if value is None or math.isnan(value) else f"{value:.4g}"


def parse_count(text: str) -> int:
    """Read a number of steps: ``"200000"``, ``"200_000"``, ``"2e5"``, ``"200k"``, ``"1.5M"``.

    Raises:
        argparse.ArgumentTypeError: Not a positive whole number.
    """
    factors = {"k": 1e3, "m": 1e6, "g": 1e9}
    factor = factors.get(text[-1:].lower(), 1.0)
    try:
        value = float(text[:-1] if factor != 1.0 else text) * factor
    except ValueError:
        value = math.nan
    if not (1 <= value < math.inf and value == int(value)):
        raise argparse.ArgumentTypeError(f"expected a positive whole number (200000, 2e5, 200k), got {text!r}")
    return int(value)


def parse_duration(text: str) -> float:
    """Read seconds: ``"90"``, ``"90s"``, ``"15m"``, ``"2h"``.

    Raises:
        argparse.ArgumentTypeError: Not a positive duration.
    """
    factors = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    factor = factors.get(text[-1:].lower())
    try:
        value = float(text[:-1] if factor else text) * (factor or 1.0)
    except ValueError:
        value = math.nan
    if not (0 < value < math.inf):
        raise argparse.ArgumentTypeError(f"expected a duration (90, 90s, 15m, 2h), got {text!r}")
    return value


def parse_file(text: str) -> Path:
    """Read the name of a file to be written.

    Raises:
        argparse.ArgumentTypeError: It is empty or ends in a slash, as a folder's does; a Path would forget that.
    """
    if not text or text.endswith("/"):
        raise argparse.ArgumentTypeError(f"expected the name of a file, got {text!r}")
    return Path(text)
