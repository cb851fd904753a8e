"""TensorBoard's event files: written by its own records, and cut back where a resumed run goes on from earlier.

Needs the extra "tensorboard"; without it there are no event files. A resumed run writes a file of its own. What earlier
ones hold of steps that are about to be made again is taken out of them, as it is out of metrics.jsonl, and the new one
begins by saying from which step on they do not count any more, for a TensorBoard that has read them already.
"""

from __future__ import annotations

import io
import math
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from learner_core.errors import StateError, StateIOError
from learner_core.state.atomic import write_atomically
from learner_core.state.regular import AppendedFile, open_regular

__all__ = ["EventFile"]

#: Files of ours: TensorBoard's own writers give whole seconds and a process id.
_OURS = re.compile(r"events\.out\.tfevents\.\d+\.\d{6}\..+")
#: Bytes of an event file, and of one record in it, at most.
_FILE_LIMIT = 1 << 32
_RECORD_LIMIT = 1 << 24
#: Before a record: its length and a checksum of that; behind it: a checksum of the record.
_HEAD, _TAIL = struct.Struct("<QI"), 4
#: Records that wait for a file that cannot be written, at most.
_WAITING = 10_000


class EventFile:
    """One session's event file: TensorBoard's EventFileWriter would import TensorFlow where that is installed.

    Args:
        folder: Where event files are; made if it is not there.
        last_step: What earlier sessions wrote of later steps does not count any more; None: there are no earlier ones.
        say: Told of an earlier file that could not be cut back.
        modules: TensorBoard's record writer, event and summary records, and checksum.

    Raises:
        StateError: The file cannot be written.
    """

    def __init__(self, folder: Path, last_step: int | None, say: Callable[[str], None], modules: tuple[Any, ...]):
        self._record_writer, self._events, self._summaries, self._checksum = modules
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self._file = AppendedFile(folder / name)
        self._waiting = [self._event(file_version="brain.Event:2")]
        if last_step is not None:
            begun = self._events.SessionLog(status=self._events.SessionLog.START)
            self._waiting.append(self._event(step=last_step + 1, session_log=begun))
        try:
            folder.mkdir(exist_ok=True)
            self.write()
        except OSError as error:
            raise StateIOError.of(error, f"cannot write {folder / name}") from error
        if last_step is not None:
            for path in sorted(folder.iterdir()):
                if path.name != name and _OURS.fullmatch(path.name):
                    try:
                        self._cut(path, last_step)
                    except (OSError, StateError) as error:
                        say(f"Warning: {path} still has the steps after {last_step}, which are made again: {error}")

    @classmethod
    def open(cls, folder: Path, last_step: int | None, say: Callable[[str], None]) -> EventFile | None:
        """A new file in the folder; None where TensorBoard is not installed."""
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError:
            return None
        return cls(folder, last_step, say, (RecordWriter, event_pb2, summary_pb2, masked_crc32c))

    def add(self, step: int, row: Mapping[str, float | int | str]) -> None:
        """Have a row wait to be written."""
        summary = self._summaries.Summary()
        for name, value in row.items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                summary.value.add(tag=name, simple_value=float(value))
        self._waiting = [*self._waiting[-_WAITING:], self._event(step=step, summary=summary)]

    def write(self) -> None:
        """Append all that wait; an OSError leaves them waiting."""
        records = io.BytesIO()
        writer = self._record_writer(records)
        for event in self._waiting:
            writer.write(event)
        self._file.append(records.getvalue())
        self._waiting = []

    def _event(self, **fields: object) -> bytes:
        data: bytes = self._events.Event(wall_time=time.time(), **fields).SerializeToString()
        return data

    def _cut(self, path: Path, last_step: int) -> None:
        """Take the records of later steps out of a file; what a crash has left half written goes, too."""
        if all(self._step(record) <= last_step for record in self._records(path)):
            return
        kept = (record for record in self._records(path) if self._step(record) <= last_step)
        write_atomically(path, kept, follow=False)

    def _step(self, record: bytes) -> int:
        try:
            event = self._events.Event.FromString(record[_HEAD.size : -_TAIL])
        except Exception as error:  # protobuf's own kind
            raise StateError(f"a record in it is no event ({type(error).__name__})") from error
        # Of a session that went on from a step that does not count any more, nothing is left but that it began.
        return int(event.step) if event.HasField("summary") else 0

    def _records(self, path: Path) -> Iterator[bytes]:
        """The records of an event file as they stand there, up to one whose length is damaged or that is cut short.

        Raises:
            StateError: It is no regular file, or it or a record in it is too large.
        """
        with open_regular(path, limit=_FILE_LIMIT, follow=False) as stream:
            while len(head := stream.read(_HEAD.size)) == _HEAD.size:
                length, checksum = _HEAD.unpack(head)
                if self._checksum(head[:8]) != checksum:  # that of the record itself would take a second a megabyte
                    return
                if length > _RECORD_LIMIT:
                    raise StateError(f"a record in it has {length} bytes")
                rest = stream.read(length + _TAIL)
                if len(rest) < length + _TAIL:
                    return
                yield head + rest
