"""The driver's end of one learner process."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import sys
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from .nursery import Nursery

__all__ = ["Member"]


class Member:
    """One learner process, forked from a nursery.

    Args:
        rank: its place in the ring.
        nursery: that forks it.

    Raises:
        LearnerGroupError: the nursery has died.
    """

    def __init__(self, rank: int, nursery: Nursery) -> None:
        self.rank = rank
        self.nursery = nursery
        ours, theirs = socket.socketpair()
        self.pulse, their_pulse = socket.socketpair()
        self.descriptors, their_descriptors = socket.socketpair()
        with theirs, their_pulse, their_descriptors:
            # One duplicate each: the child owns what it is sent.
            numbers = [end.fileno() for end in (theirs, their_pulse, their_descriptors)]
            self.pid = nursery.fork(numbers, list(sys.path))
        self.channel = Connection(ours.detach())
        self.pulse.setblocking(False)
        self.last_sign = time.monotonic()
        self.waiting = False

    def send(self, operation: str, argument: Mapping[str, Any]) -> None:
        """Make a request; its answer must be taken before the next."""
        self.waiting = True
        with contextlib.suppress(OSError):  # it has died; waiting for the answer finds out how
            self.channel.send_bytes(pickle.dumps((operation, dict(argument))))

    def hear(self) -> None:
        """Take in the signs of life that have come."""
        with contextlib.suppress(OSError):
            while self.pulse.recv(4096):
                self.last_sign = time.monotonic()

    def exit_code(self, timeout_s: float) -> int | None:
        """How it ended; ``None`` if it has not within the timeout."""
        return self.nursery.exit_code(self.pid, timeout_s)

    def kill(self) -> None:
        """End it now."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Let go of the sockets; a learner that lives sees that and ends."""
        for end in (self.channel, self.pulse, self.descriptors):
            with contextlib.suppress(OSError):
                end.close()
