"""What tests of a job's secret share: two secrets, a thing that shows when it is unpickled, rank 0 in a thread."""

from __future__ import annotations

import os
import socket
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import learner_core as lc
from learner_core.group.spmd.joining import FixedPlace, join_ranks
from learner_core.group.spmd.rendezvous import Arrived, RendezvousServer

__all__ = ["OTHER", "SAID", "SECRET", "SOON_S", "Canary", "First", "Known", "answer_all", "connect", "join_as", "take"]

SECRET = b"6f1d0c3be7a94f7b8a3f52c0d9e84b17" * 2
OTHER = b"0c3be7a94f7b8a3f52c0d9e84b176f1d" * 2
SAID = {"size": 2, "about": "pid 7 on host b", "host": "b", "address": "127.0.0.1"}
#: Seconds within which ranks meet whatever strangers do; a machine may be slow, the strangers' patience is longer.
SOON_S = 60.0


class Known:
    """A secret that is known."""

    source, fixed, on_this_machine = "the test", True, False

    def __init__(self, secret: bytes = SECRET) -> None:
        self._secret = secret

    def now(self) -> bytes:
        return self._secret

    def close(self) -> None:
        """Nothing is held."""


class Canary:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


class First:
    """Rank 0 of a job, waiting in a thread for the others."""

    def __init__(self, size: int = 2, secret: bytes = SECRET, *, wait_s: float = SOON_S) -> None:
        self.server = RendezvousServer("127.0.0.1", 0, Known(secret), size)
        self.place = ("127.0.0.1", self.server.port)
        self.arrived: dict[int, Arrived] = {}
        self.error: lc.LearnerGroupError | None = None
        self.warned: list[str] = []
        self._closing = False
        self._thread = threading.Thread(target=self._wait, args=(time.monotonic() + wait_s,), daemon=True)
        self._thread.start()

    def _wait(self, deadline: float) -> None:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            try:
                self.arrived = self.server.await_ranks(deadline)
            except lc.LearnerGroupError as error:
                self.error = error
            except (OSError, RuntimeError, ValueError, KeyError):
                if not self._closing:
                    raise
        self.warned = [str(warning.message) for warning in heard]

    def join(self, timeout_s: float = SOON_S) -> None:
        """Wait until it has stopped waiting."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive()

    def close(self) -> None:
        self._closing = True
        self.server.close()
        self.join()
        for one in self.arrived.values():
            one.connection.close()


def connect(first: First) -> socket.socket:
    return socket.create_connection(first.place, timeout=SOON_S)


def take(stream: socket.socket, nbytes: int) -> bytes:
    data = b""
    while len(data) < nbytes and (part := stream.recv(nbytes - len(data))):
        data += part
    return data


def join_as(rank: int, first: First, secret: bytes = SECRET, said: dict[str, Any] = SAID) -> list[Exception]:
    """Join in a thread until refused or told the order; the error, if there was one."""
    found: list[Exception] = []
    try:
        joined = join_ranks(
            FixedPlace(*first.place), Known(secret), rank=rank, said=said, deadline=time.monotonic() + SOON_S
        )
        joined.connection.close()
    except lc.LearnerGroupError as error:
        found.append(error)
    return found


def answer_all(first: First) -> None:
    """Rank 0 has waited long enough: tell everybody."""
    first.join()
    for one in first.arrived.values():
        one.connection.send({"order": {"a": "b"}, "about": {0: "x", 1: "y"}, "session": b"z"})
