"""An operating system that fails when told to, or writes down what it was asked (rows 4 and 5 of the reliability plan).

Stands in for the module `os` inside learner_core.state.atomic (saving) or learner_core.state.files (loading).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import numpy as np

INPUT_OUTPUT = frozenset(
    (
        "open close fstat lstat fchmod fchown write writev pread preadv fsync replace rename unlink listdir mkdir "
        "posix_fadvise"
    ).split()
)
FAULTS: dict[str, int] = {
    "ENOSPC": errno.ENOSPC,
    "EIO": errno.EIO,
    "EACCES": errno.EACCES,
    "EINTR": errno.EINTR,
    "short write": 0,
    "failing fsync": errno.EIO,
}


class FaultyOS:
    """The module `os`, whose n-th input/output call fails in the given way.

    Args:
        fail_at: Number of the call, from 0; None never fails, which counts the calls.
        fault: A key of `FAULTS`.
    """

    def __init__(self, fail_at: int | None = None, fault: str = "EIO") -> None:
        self.fail_at = fail_at
        self.fault = fault
        self.calls: list[str] = []
        self.struck: str | None = None

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        return self._wrap(name, real) if name in INPUT_OUTPUT else real

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            number = len(self.calls)
            self.calls.append(name)
            if number != self.fail_at:
                return real(*arguments, **options)
            if self.fault == "short write":
                if name != "writev":
                    return real(*arguments, **options)
                self.struck = name
                first = memoryview(arguments[1][0]).cast("B")
                return os.write(arguments[0], first[: max(1, len(first) // 2)])
            if self.fault == "failing fsync" and name != "fsync":
                return real(*arguments, **options)
            self.struck = name
            if name == "close":
                real(*arguments)  # Linux frees the descriptor even when close fails
            code = FAULTS[self.fault]
            raise OSError(code, os.strerror(code))

        return call


class Recorder:
    """The module `os`, noting every call that changes the disk.

    `log` holds ("create", name, inode) ("data", inode, offset, bytes) ("sync", inode) ("rename", old, new)
    ("sync folder",) ("unlink", name).
    """

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self._inodes: dict[int, tuple[int, int]] = {}  # descriptor -> inode, offset
        self._count = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        descriptor = os.open(path, flags, mode)
        if flags & os.O_CREAT:
            self._count += 1
            self._inodes[descriptor] = (self._count, 0)
            self.log.append(("create", os.path.basename(path), self._count))
        elif flags & os.O_DIRECTORY:
            self._inodes[descriptor] = (0, 0)
        return descriptor

    def writev(self, descriptor: int, buffers: list[memoryview]) -> int:
        written = os.writev(descriptor, buffers)
        inode, offset = self._inodes[descriptor]
        data = b"".join(buffers)[:written]
        self.log.append(("data", inode, offset, data))
        self._inodes[descriptor] = (inode, offset + written)
        return written

    def fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)
        inode, _ = self._inodes[descriptor]
        self.log.append(("sync", inode) if inode else ("sync folder",))

    def replace(self, old: str, new: str) -> None:
        os.replace(old, new)
        self.log.append(("rename", os.path.basename(old), os.path.basename(new)))

    def unlink(self, path: str) -> None:
        os.unlink(path)
        self.log.append(("unlink", os.path.basename(path)))

    def close(self, descriptor: int) -> None:
        os.close(descriptor)
        self._inodes.pop(descriptor, None)


SECTOR = 512


def after_power_loss(
    log: list[tuple[Any, ...]], *, crash: int, old: dict[str, bytes], rng: np.random.Generator
) -> dict[str, bytes]:
    """One state in which the disk may be found when the power fails before log[crash].

    What was synced is there. Of everything else any part may be: each unsynced sector was written or not, each name
    changed in the folder since its last fsync was changed or not, in any combination; even the files' sizes.

    Args:
        log: What `Recorder` wrote down.
        crash: How many calls had returned.
        old: The folder before the log: {name: bytes}.
        rng: Chooses among the possible states.

    Returns:
        The folder: {name: bytes}.
    """
    files: dict[int, bytearray] = {-index - 1: bytearray(data) for index, data in enumerate(old.values())}
    names: dict[str, int] = {name: -index - 1 for index, name in enumerate(old)}
    unsynced: dict[int, list[tuple[int, bytes]]] = {}
    pending: list[tuple[Any, ...]] = []
    for call in log[:crash]:
        kind = call[0]
        if kind == "create":
            files[call[2]] = bytearray()
            pending.append(call)
        elif kind == "data":
            unsynced.setdefault(call[1], []).append((call[2], call[3]))
        elif kind == "sync":
            for offset, data in unsynced.pop(call[1], []):
                _write(files[call[1]], offset, data)
        elif kind == "sync folder":
            for change in pending:
                _apply(names, change, pending)
            pending = []
        else:
            pending.append(call)
    for inode, writes in unsynced.items():
        share = rng.choice([0.0, 0.5, 0.9, 1.0])
        for offset, data in writes:
            for start in range(0, len(data), SECTOR):
                if rng.random() < share:
                    _write(files[inode], offset + start, data[start : start + SECTOR])
        if rng.random() < 0.2:
            del files[inode][int(rng.integers(0, len(files[inode]) + 1)) :]
    survivors = list(pending)
    for change in survivors:
        if rng.random() < 0.6:
            _apply(names, change, survivors)
    return {name: bytes(files[inode]) for name, inode in names.items()}


def _write(file: bytearray, offset: int, data: bytes) -> None:
    if len(file) < offset + len(data):
        file.extend(bytes(offset + len(data) - len(file)))
    file[offset : offset + len(data)] = data


def _apply(names: dict[str, int], change: tuple[Any, ...], pending: list[tuple[Any, ...]]) -> None:
    kind, name, *rest = change
    if kind == "create":
        names[name] = rest[0]
    elif kind == "unlink":
        names.pop(name, None)
    else:  # the rename may reach the disk though the creation of the old name did not
        created = {other[1]: other[2] for other in pending if other[0] == "create"}
        inode = names.pop(name, created.get(name))
        if inode is not None:
            names[rest[0]] = inode
