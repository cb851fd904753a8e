"""Metrics on disk: CSV and JSON lines always, TensorBoard event files where TensorBoard is installed.

A resumed run goes on in the same files; rows after the checkpoint it starts from are dropped, since they are about to
be made again.
"""

from __future__ import annotations

import csv
import io
import json
import math
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .report import rows_of
from .run_folder import RunFolder, write_text_atomically

__all__ = ["MetricFiles", "read_rows"]

Row = Mapping[str, float | int | str]

_STEP = "num_env_steps_sampled_lifetime"


class MetricFiles:
    """Appends one row per iteration to every file of a run.

    Args:
        folder: The run.
        after_iteration: Rows of later iterations are dropped first; 0 for a new run.
    """

    def __init__(self, folder: RunFolder, *, after_iteration: int) -> None:
        self._folder = folder
        rows = [row for row in read_rows(folder.jsonl_file) if int(row["training_iteration"]) <= after_iteration]
        self._columns: list[str] = []
        for row in rows:
            self._columns += [name for name in row if name not in self._columns]
        write_text_atomically(folder.jsonl_file, "".join(_json_line(row) for row in rows))
        self._rewrite_csv(rows)
        self._events = _EventFile.open(folder.tensorboard)

    def write(self, row: Row) -> None:
        """Append a row.

        Args:
            row: Flat name -> value, with ``training_iteration`` and ``num_env_steps_sampled_lifetime``.
        """
        with self._folder.jsonl_file.open("a", encoding="utf-8") as stream:
            stream.write(_json_line(row))
        new = [name for name in row if name not in self._columns]
        if new:  # a metric that appears late gets its column; earlier rows are empty there
            self._columns += new
            self._rewrite_csv(read_rows(self._folder.jsonl_file))
        else:
            with self._folder.csv_file.open("a", encoding="utf-8", newline="") as stream:
                csv.writer(stream).writerow([row.get(name, "") for name in self._columns])
        if self._events is not None:
            self._events.write(row)

    def close(self) -> None:
        """Finish the event file."""
        if self._events is not None:
            self._events.close()

    def _rewrite_csv(self, rows: list[dict[str, Any]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        if self._columns:
            writer.writerow(self._columns)
        writer.writerows([row.get(name, "") for name in self._columns] for row in rows)
        write_text_atomically(self._folder.csv_file, text.getvalue())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a metrics.jsonl; a line cut short by a crash is left out.

    Args:
        path: The file; one that does not exist has no rows.

    Returns:
        The rows in order; null (JSON has no NaN) is left out of a row.
    """
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "training_iteration" in row:
            rows.append({name: value for name, value in row.items() if value is not None})
    return rows


def _json_line(row: Row) -> str:
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(clean) + "\n"


class _EventFile:
    """TensorBoard's own record writer on a plain file: its EventFileWriter would import TensorFlow where installed."""

    def __init__(self, folder: Path, record_writer: Any, event_pb2: Any, summary_pb2: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self._writer = record_writer((folder / name).open("wb"))
        self._writer.write(self._event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())

    @classmethod
    def open(cls, folder: Path) -> _EventFile | None:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError:  # the extra "tensorboard" is not installed
            return None
        return cls(folder, RecordWriter, event_pb2, summary_pb2)

    def write(self, row: Row) -> None:
        summary = self._summary()
        for name, value in row.items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                summary.value.add(tag=name, simple_value=float(value))
        event = self._event(wall_time=time.time(), step=int(rows_of(row) or row[_STEP]), summary=summary)
        self._writer.write(event.SerializeToString())
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
