"""Where ranks meet: rank 0 listens at one address; every other rank comes to it and proves that it is of this job.

A stranger is sent 48 bytes and read 84, and nothing of them is decoded: a wrong proof, or ``_HANDSHAKE_S`` seconds
without one, end the connection. All of that goes on side by side, in one thread: nobody holds the others up.
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

from learner_core.errors import LearnerGroupError

from .connection import Connection, Message
from .handshake import ANSWER_NBYTES, Challenge, Keys
from .secret import Secret

__all__ = ["Arrived", "RendezvousServer"]

_HANDSHAKE_S = 10.0
_PAUSE_S = 0.1
#: Connections that may be in the middle of a handshake; of more, the one that has taken longest is ended.
_MAX_PENDING = 256


@dataclass
class Arrived:
    """A rank that has come to rank 0 and proved that it is of this job.

    Attributes:
        rank: its number.
        connection: to it.
        said: what it said of itself; ``None``: nothing yet.
    """

    rank: int
    connection: Connection
    said: Message | None = None

    def fileno(self) -> int:
        """For ``select``."""
        return self.connection.fileno()


@dataclass
class _Pending:
    """A connection that has not proved anything yet."""

    stream: socket.socket
    challenge: Challenge
    until: float
    data: bytearray = field(default_factory=bytearray)

    def fileno(self) -> int:
        """For ``select``."""
        return self.stream.fileno()


class RendezvousServer:
    """Rank 0's side.

    Args:
        address, port: to listen at; port 0: one that the system chooses.
        secret: of the job.
        size: number of ranks.

    Raises:
        LearnerGroupError: the port is in use, or the address is not one of this machine.
    """

    def __init__(self, address: str, port: int, secret: Secret, size: int) -> None:
        self._secret, self._size = secret, size
        try:
            self._listener = socket.create_server((address, port), backlog=128)
        except (OSError, OverflowError) as error:
            what = {
                errno.EADDRINUSE: f"port {port} is in use on {address}: choose another MASTER_PORT",
                errno.EADDRNOTAVAIL: f"{address} is not an address of this machine: MASTER_ADDR is one of rank 0's",
            }.get(getattr(error, "errno", 0) or 0, f"cannot listen on {address}:{port}")
            raise LearnerGroupError(
                f"launcher=\"spmd\": {what}, or give launcher_options={{'rendezvous': 'HOST:PORT'}} ({error})"
            ) from error
        self._listener.setblocking(False)
        self.address: str
        self.port: int
        self.address, self.port = self._listener.getsockname()[:2]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._pending: list[_Pending] = []  # in order of arrival
        self._known: list[Arrived] = []
        self._num_refused = 0

    def await_ranks(self, deadline: float, meanwhile: Callable[[], None] = lambda: None) -> dict[int, Arrived]:
        """Wait until every rank from 1 on has come.

        Args:
            deadline: by ``time.monotonic()``.
            meanwhile: called again and again.

        Returns:
            All of them, by rank; ``said`` of each is there.

        Raises:
            LearnerGroupError: not all have come in time.
        """
        begin = time.monotonic()
        while len(arrived := {one.rank: one for one in self._known if one.said is not None}) < self._size - 1:
            if time.monotonic() > deadline:
                missing = [str(rank) for rank in range(1, self._size) if rank not in arrived]
                raise LearnerGroupError(
                    f"rank 0 of {self._size} waited for rank{'s' * (len(missing) > 1)} {', '.join(missing)} for "
                    f"{time.monotonic() - begin:.0f} s: it did not come; see its own output{self._about_refused('; ')}"
                )
            meanwhile()
            for key, _ in self._selector.select(_PAUSE_S):
                self._attend(key.fileobj)
            now = time.monotonic()
            for pending in [one for one in self._pending if one.until < now]:
                self._refuse(pending)
        if self._num_refused:
            warnings.warn(self._about_refused(), RuntimeWarning, stacklevel=2)
        return arrived

    def _about_refused(self, before: str = "") -> str:
        if not self._num_refused:
            return ""
        return (
            f"{before}{self._num_refused} connection(s) to {self.address}:{self.port} were refused: from processes "
            "that do not know this job's secret"
        )

    def _attend(self, ready: object) -> None:
        if isinstance(ready, _Pending):
            if ready in self._pending:  # not ended a moment ago
                self._hear_stranger(ready)
        elif isinstance(ready, Arrived):
            self._hear_rank(ready)
        else:
            self._accept()

    # ------------------------------------------------------------------ who has not proved anything

    def _accept(self) -> None:
        try:
            stream, _ = self._listener.accept()
        except OSError:
            return
        stream.setblocking(False)
        secret = self._secret.now()
        assert secret is not None  # rank 0 has it from the beginning
        pending = _Pending(stream, Challenge(secret), time.monotonic() + _HANDSHAKE_S)
        self._pending.append(pending)
        self._selector.register(pending, selectors.EVENT_READ)
        try:
            stream.send(pending.challenge.message)  # an empty buffer has room for it
        except OSError:
            self._refuse(pending)
        if len(self._pending) > _MAX_PENDING:
            self._refuse(self._pending[0])

    def _hear_stranger(self, pending: _Pending) -> None:
        try:
            data = pending.stream.recv(ANSWER_NBYTES - len(pending.data))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        pending.data += data
        if not data:
            self._refuse(pending)
        elif len(pending.data) == ANSWER_NBYTES:
            message, keys = pending.challenge.check(bytes(pending.data))
            with contextlib.suppress(OSError):
                pending.stream.send(message)
            if keys is None:
                self._refuse(pending)
            else:
                self._take_in(pending, keys)

    def _refuse(self, pending: _Pending) -> None:
        self._num_refused += 1
        self._forget(pending)
        pending.stream.close()

    def _forget(self, pending: _Pending) -> None:
        self._selector.unregister(pending)
        self._pending.remove(pending)

    # ------------------------------------------------------------------ who has

    def _take_in(self, pending: _Pending, keys: Keys) -> None:
        self._forget(pending)
        arrived = Arrived(keys.rank, Connection(pending.stream, keys, first=True))
        self._known.append(arrived)
        self._selector.register(arrived, selectors.EVENT_READ)

    def _hear_rank(self, arrived: Arrived) -> None:
        try:
            for message in arrived.connection.receive():
                if message is not None and arrived.said is None:
                    problem = self._problem(arrived.rank, message)
                    if problem:
                        arrived.connection.send({"refused": problem})
                        self._drop(arrived)
                        return
                    arrived.said = message
        except ConnectionError:  # it has ended, or comes again
            self._drop(arrived)

    def _problem(self, rank: int, said: Message) -> str:
        """Why this rank cannot be one of us; "": it can."""
        if said.get("size") != self._size:
            return (
                f"rank {rank} was told that there are {said.get('size')} ranks, and rank 0 that there are {self._size}"
            )
        if not 0 < rank < self._size:
            return f"there is no rank {rank} of {self._size} to come to rank 0"
        for other in self._known:
            if other.rank == rank and other.said is not None:
                return (
                    f"rank {rank} of {self._size} has come already ({other.said['about']}), and once more "
                    f"({said['about']}): each process needs a rank of its own"
                )
        return ""

    def _drop(self, arrived: Arrived) -> None:
        self._selector.unregister(arrived)
        self._known.remove(arrived)
        arrived.connection.close()

    # ------------------------------------------------------------------ the end

    def refuse_all(self, text: str) -> None:
        """Tell those who have come why it comes to nothing."""
        for arrived in list(self._known):
            arrived.connection.send({"refused": text})
            self._drop(arrived)

    def close(self) -> None:
        """Stop listening. Connections to ranks that have come stay; may be called twice."""
        self._listener.close()
        self._selector.close()
        for pending in self._pending:
            pending.stream.close()
        self._pending.clear()
