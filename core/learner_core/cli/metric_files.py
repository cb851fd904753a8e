"""Metrics on disk: CSV and JSON lines always, TensorBoard event files where TensorBoard is installed.

A resumed run goes on in the same files; rows after the checkpoint it starts from are dropped, since they are about to
be made again. A file that cannot be written while the run goes on does not end it: rows wait and are tried again.
"""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from learner_core.errors import StateError, StateIOError
from learner_core.state.regular import AppendedFile, is_there, open_regular
from learner_core.state.tree import Plain

from .event_files import EventFile
from .report import rows_of
from .run_folder import RunFolder

__all__ = ["MetricFiles", "read_rows"]

Row = Mapping[str, float | int | str]

_STEP = "num_env_steps_sampled_lifetime"
#: Columns that are read again, and must be numbers.
_NUMBERS = (
    *("seconds", "steps_per_second", "env_runners/episode_return_mean", "env_runners/episode_len_mean"),
    "learners/__all__/num_rows_trained_lifetime",
)
#: Bytes of metrics.jsonl, and of a line of it, at most.
_FILE_LIMIT = 1 << 32
_LINE_LIMIT = 1 << 20
#: Rows that wait for a file that cannot be written, at most; the oldest are given up then.
_WAITING = 10_000


class MetricFiles:
    """Appends one row per iteration to every file of a run.

    Args:
        folder: The run, which this process has claimed.
        after_iteration: Rows of later iterations are dropped first; 0 for a new run.
        say: Told, once, that a file cannot be written, and when it can be again.

    Raises:
        StateError: What is there cannot be read, or not be written now.
    """

    def __init__(self, folder: RunFolder, *, after_iteration: int, say: Callable[[str], None]) -> None:
        self._folder, self._say = folder, say
        self._columns: list[str] = []

        def kept() -> Iterator[dict[str, Plain]]:
            return (row for row in read_rows(folder.jsonl_file) if row["training_iteration"] <= after_iteration)

        last: Row | None = None
        for row in kept():
            self._note_columns(row)
            last = row
        # The event files first: where a new one cannot be made, nothing has changed.
        known = None if last is None else _step_of(last)
        if known is None and is_there(folder.jsonl_file):
            known = 0
        self._events = EventFile.open(folder.tensorboard, known, say)
        folder.write(folder.jsonl_file, (_json_line(row) for row in kept()))
        self._lines = AppendedFile(folder.jsonl_file)
        self._rewrite_csv()
        self._waiting: list[Row] = []
        self._table_is_whole = True
        self._failing = False
        self.num_failures: int = 0
        """Iterations after which some file could not be written."""
        self.num_lost: int = 0
        """Rows that were given up."""

    def write(self, row: Row) -> None:
        """Append a row, and those before it that could not be written. Never raises an OSError.

        Args:
            row: Flat name -> value, with ``training_iteration`` and ``num_env_steps_sampled_lifetime``.
        """
        self._waiting.append(row)
        if len(self._waiting) > _WAITING:
            del self._waiting[0]
            self.num_lost += 1
        problems = [self._tried(self._write_lines)]
        if self._events is not None:
            self._events.add(_step_of(row), row)
            problems.append(self._tried(self._events.write))
        if any(problems):
            self._fail(next(filter(None, problems)))
        elif self._failing:
            self._failing = False
            self._say("The metric files can be written again.")

    @property
    def trouble(self) -> str:
        """What could not be written in all, in words; empty if everything was."""
        if not self.num_failures:
            return ""
        missing = len(self._waiting) + self.num_lost
        state = f"{missing} rows are missing in the files" if missing else "no row is missing in metrics.jsonl"
        return f"could not be written after {self.num_failures} iterations; {state}"

    def close(self) -> None:
        """Try once more what waits."""
        if self._failing:
            self._tried(self._write_lines)
            if self._events is not None:
                self._tried(self._events.write)

    @staticmethod
    def _tried(function: Callable[[], None]) -> str:
        """What hindered a function, in words; empty where it went well."""
        try:
            function()
        except (OSError, StateError) as error:
            return str((error.strerror if isinstance(error, OSError) else None) or error)
        return ""

    def _write_lines(self) -> None:
        rows = list(self._waiting)
        if rows:
            self._lines.append(b"".join(map(_json_line, rows)))
            self._waiting.clear()
        known = len(self._columns)
        for row in rows:
            self._note_columns(row)
        whole, self._table_is_whole = self._table_is_whole, False
        if (
            not whole or len(self._columns) > known
        ):  # a metric that appears late gets its column; earlier rows are empty there
            self._rewrite_csv()
        else:
            self._table.append(b"".join(self._csv_line([row.get(name, "") for name in self._columns]) for row in rows))
        self._table_is_whole = True

    def _fail(self, reason: str) -> None:
        self.num_failures += 1
        if self._failing:
            return
        self._failing = True
        self._say(
            f"Warning: the metric files in {self._folder.path} cannot be written ({reason}). Training and its "
            "checkpoints go on; the rows wait and are tried again."
        )

    def _note_columns(self, row: Row) -> None:
        self._columns += [name for name in row if name not in self._columns]

    def _rewrite_csv(self) -> None:
        def lines() -> Iterator[bytes]:
            if self._columns:
                yield self._csv_line(self._columns)
            for row in read_rows(self._folder.jsonl_file):
                yield self._csv_line([row.get(name, "") for name in self._columns])

        self._folder.write(self._folder.csv_file, lines())
        self._table = AppendedFile(self._folder.csv_file)

    @staticmethod
    def _csv_line(cells: Iterable[object]) -> bytes:
        text = io.StringIO(newline="")
        csv.writer(text).writerow(cells)
        return text.getvalue().encode("utf-8", "backslashreplace")


def _step_of(row: Row) -> int:
    """Where a row stands in a curve: by steps, or for an offline algorithm by the rows it has learned from."""
    return int(rows_of(row) or row[_STEP])


def read_rows(path: Path) -> Iterator[dict[str, Plain]]:
    """Read a metrics.jsonl, row by row; a last line cut short by a crash is left out.

    Args:
        path: The file, of at most 4 GiB, its lines of at most 1 MiB; one that does not exist has no rows.

    Yields:
        The rows in order, name -> number or text; null (JSON has no NaN) is left out of a row.

    Raises:
        StateError: A line is no row; says which.
        StateIOError: The file cannot be read.
    """
    if not path.is_symlink() and not path.exists():
        return
    with open_regular(path, limit=_FILE_LIMIT, follow=False) as stream:
        number = 0
        while True:
            number += 1
            try:
                line = stream.readline(_LINE_LIMIT)
            except OSError as error:
                raise StateIOError.of(error, f"cannot read {path}") from error
            if not line:
                return
            row, problem = _row_of(line)
            if problem and not line.endswith(b"\n") and len(line) < _LINE_LIMIT:
                return
            if problem:
                raise StateError(
                    f"{path}, line {number}: {problem}. Remove the line, or move the file away: rows begin anew then, "
                    "and checkpoints are not concerned."
                )
            yield row


def _row_of(line: bytes) -> tuple[dict[str, Plain], str]:
    """A line's row, and what is wrong with it."""
    try:
        row = json.loads(line.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        return {}, "it is not UTF-8"
    except RecursionError:
        return {}, "it is nested too deeply"
    except ValueError as error:
        return {}, f"it is not JSON ({error})"
    if not isinstance(row, dict):
        return {}, f"expected an object, got {type(row).__name__}"
    row = {name: value for name, value in row.items() if value is not None}
    for name in ("training_iteration", _STEP):
        if type(row.get(name)) is not int or not 0 <= row[name] < 1 << 63:
            return {}, f"{name}: expected a whole number from 0 to 2^63"
    for name, value in row.items():
        if not isinstance(value, (int, float) if name in _NUMBERS else (int, float, str)):
            kinds = "a number" if name in _NUMBERS else "a number or text"
            return {}, f"{name[:100]!r}: expected {kinds}, got {type(value).__name__}"
        if not isinstance(value, str) and not abs(value) <= sys.float_info.max:
            return {}, f"{name[:100]!r}: the number is too large"
    return row, ""


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _json_line(row: Row) -> bytes:
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(clean).encode() + b"\n"
