"""Ranks of ``launcher="spmd"``, started by hand: one process each, with a deadline for all."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Ended", "free_port", "start_ranks", "wait_for"]

TESTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Ended:
    """How a rank ended.

    Attributes:
        code: exit code; -9 also for a rank that the deadline killed.
        output, errors: what it printed.
        seconds: from the start.
    """

    code: int
    output: str
    errors: str
    seconds: float


#: Below the ports that Linux gives to outgoing connections: those may be taken again before a slow rank binds.
_PORTS = range(20_000, 32_000)
#: A script may meet several times, each time on the next port.
_MEETINGS = 16


def free_port() -> int:
    """The first of several consecutive ports that were free a moment ago."""
    while True:
        first = random.randrange(_PORTS.start, _PORTS.stop - _MEETINGS)
        with contextlib.ExitStack() as probes:
            try:
                for port in range(first, first + _MEETINGS):
                    probes.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
        return first


def start_ranks(
    size: int,
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    only: Sequence[int] | None = None,
) -> list[subprocess.Popen[str]]:
    """Start ``python *arguments`` as ranks 0..size-1, or as these ``only``."""
    common = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        **(environment or {}),
    }
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**common, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        for rank in (range(size) if only is None else only)
    ]


def wait_for(ranks: Sequence[subprocess.Popen[str]], *, timeout_s: float) -> list[Ended]:
    """Wait for all ranks; those that are not done in time are killed."""
    start = time.monotonic()
    ended: list[Ended | None] = [None] * len(ranks)

    def wait(rank: int) -> None:
        process = ranks[rank]
        try:
            output, errors = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()
            errors += "\nkilled by the test's deadline"
        ended[rank] = Ended(process.returncode, output, errors, time.monotonic() - start)

    threads = [threading.Thread(target=wait, args=(rank,)) for rank in range(len(ranks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [end for end in ended if end is not None]
