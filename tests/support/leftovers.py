"""What a group of learners may not leave behind: processes, shared memory, files, descriptors, threads; or a hang."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .outcomes import LostError

__all__ = ["belongings", "deadline", "learners", "nothing_left"]


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                found += [int(word) for word in Path(f"/proc/{pid}/task/{task}/children").read_text().split()]
    return found


def _nurseries() -> list[int]:
    out = []
    for pid in _children(os.getpid()):
        with contextlib.suppress(OSError):
            if b"learner_core.group.nursery" in Path(f"/proc/{pid}/cmdline").read_bytes():
                out.append(pid)
    return out


def _descriptors() -> int:
    """Open ones, without the arenas that the standard library's shared memory keeps for later."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            count += not os.readlink(f"/proc/self/fd/{name}").startswith("/dev/shm/pym-")
    return count


def learners() -> list[int]:
    """Process ids of the learners of this process."""
    return list(itertools.chain.from_iterable(_children(pid) for pid in _nurseries()))


def belongings() -> dict[str, Any]:
    """What this process holds that a group may have made."""
    return {
        "files in /dev/shm": set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set(),
        "files of a ring": {
            name for name in os.listdir(tempfile.gettempdir()) if name.startswith("learner-core-ring-")
        },
        "descriptors": _descriptors() - len(_nurseries()),
        "threads": {t.name for t in threading.enumerate() if t.name.startswith(("horovod", "learner"))},
    }


def nothing_left(before: dict[str, Any]) -> None:
    """Wait until nothing is there that was not there ``before``.

    Raises:
        LostError: something still is after three seconds.
    """
    until = time.monotonic() + 3
    while True:
        now = belongings()
        left = {
            "learners": learners(),
            "files in /dev/shm": [n for n in now["files in /dev/shm"] - before["files in /dev/shm"] if "learner" in n],
            "files of a ring": now["files of a ring"] - before["files of a ring"],
            "descriptors": max(0, now["descriptors"] - before["descriptors"]),
            "threads": now["threads"] - before["threads"],
        }
        left = {what: things for what, things in left.items() if things}
        if not left:
            return
        if time.monotonic() > until:
            raise LostError(f"left behind: {left}")
        time.sleep(0.05)


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Interrupt what takes longer; in the main thread.

    Raises:
        LostError: it did.
    """

    def late(number: int, frame: Any) -> None:
        raise LostError(f"hangs: not done after {seconds:.0f} s")

    previous = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
