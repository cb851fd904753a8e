"""Signs of life between ranks: who is lost is known by name, in bounded time, whatever the others wait for.

Every rank keeps one connection to rank 0 and sends a sign twice a second, from a thread of its own. A connection that
closes without a word, or a silence of ``timeout_s``, is a loss; rank 0 tells everybody. A rank that is waiting in a
collective for the one that is lost usually hears so from the collective; one that does not is ended here, after a
grace, because a wait inside a library cannot be interrupted.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from learner_core.errors import LearnerGroupError, WorkerLostError

__all__ = ["Watch"]

_PULSE_S = 0.5
#: Seconds that a rank has to come out of a collective once a loss is known.
_GRACE_S = 4.0
#: Seconds that a broken collective waits for the watch to say who it was.
_HEARSAY_S = 3.0
_CONNECT_S = 10.0


class Watch:
    """One rank's end.

    Args:
        rank, size: its place.
        timeout_s: silence after which a rank is lost.
        about: "pid 12 on host a", for messages.
    """

    def __init__(self, rank: int, size: int, *, timeout_s: float, about: str) -> None:
        self.rank = rank
        self.size = size
        self._timeout_s = timeout_s
        self._about = {rank: about}
        self._listener: socket.socket | None = None
        self._token = ""
        self._peers: dict[int, socket.socket] = {}  # rank -> connection: all others on rank 0, else rank 0 alone
        self._last: dict[int, float] = {}
        self._left: set[int] = set()
        self._lost: tuple[int, str] | None = None
        self._known = threading.Event()
        self._known_since = 0.0
        self._inside: float | None = None
        self._doing = ""
        self._lock = threading.Lock()
        self._closing = False
        self._thread: threading.Thread | None = None

    # ------------------------------------------------------------------ coming together

    def open(self, address: str) -> dict[str, Any]:
        """Rank 0: listen; returns what the others need for :meth:`join`."""
        self._listener = socket.create_server((address, 0), backlog=self.size)
        self._token = os.urandom(16).hex()
        return {"address": address, "port": self._listener.getsockname()[1], "token": self._token}

    def join(self, place: dict[str, Any] | None) -> None:
        """Meet: rank 0 takes everybody in, the others (with ``place``) come to it.

        Raises:
            LearnerGroupError: not everybody came in time.
        """
        try:
            if self._listener is not None:
                self._take_in()
            elif place is not None:
                self._come(place)
        except OSError as error:
            raise LearnerGroupError(
                f"rank {self.rank} of {self.size}: signs of life cannot be exchanged ({error}): ranks must be able to "
                "reach rank 0's machine at any port"
            ) from error
        now = time.monotonic()
        self._last = dict.fromkeys(self._peers, now)
        self._thread = threading.Thread(target=self._run, name="spmd-watch", daemon=True)
        self._thread.start()

    def _take_in(self) -> None:
        assert self._listener is not None
        deadline = time.monotonic() + _CONNECT_S + self._timeout_s
        while len(self._peers) < self.size - 1:
            self._listener.settimeout(max(deadline - time.monotonic(), 0.01))
            connection, _ = self._listener.accept()
            connection.settimeout(_CONNECT_S)
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                said = json.loads(_line(connection))
                if hmac.compare_digest(str(said["token"]), self._token) and 0 < said["rank"] < self.size:
                    self._peers[said["rank"]] = connection
                    self._about[said["rank"]] = str(said["about"])
                    continue
            connection.close()  # somebody else
        for connection in self._peers.values():
            connection.sendall(json.dumps(self._about).encode() + b"\n")
        self._listener.close()

    def _come(self, place: dict[str, Any]) -> None:
        connection = socket.create_connection((place["address"], place["port"]), timeout=_CONNECT_S + self._timeout_s)
        said = {"token": place["token"], "rank": self.rank, "about": self._about[self.rank]}
        connection.sendall(json.dumps(said).encode() + b"\n")
        self._about = {int(rank): about for rank, about in json.loads(_line(connection)).items()}
        self._peers[0] = connection

    # ------------------------------------------------------------------ what the learner's thread does

    @contextlib.contextmanager
    def during(self, doing: str, agreed: Callable[[Exception], bool]) -> Iterator[None]:
        """The block waits for other ranks: a loss ends it, as an error or, if it must be, with the process.

        Args:
            doing: what it does, for messages.
            agreed: whether an error is one that every rank raises.

        Raises:
            WorkerLostError: a rank is lost.
        """
        self._check()
        self._doing, self._inside = doing, time.monotonic()
        try:
            yield
        except LearnerGroupError as error:
            if isinstance(error, WorkerLostError) or agreed(error):
                raise
            # The collective broke; who broke it is known in a moment.
            self._inside = None
            if self.size > 1 and self._known.wait(_HEARSAY_S):
                raise self._error() from error
            raise
        finally:
            self._inside = None

    def tell_broken(self, error: BaseException) -> None:
        """This rank failed alone, within an update: the others must not wait for it."""
        text = f"rank {self.rank} of {self.size} ({self._about[self.rank]}) failed in {self._doing}: "
        self._note_loss(self.rank, f"{text}{type(error).__name__}: {error}"[:2000])

    def _check(self) -> None:
        if self._lost is not None:
            raise self._error()

    def _error(self) -> WorkerLostError:
        assert self._lost is not None
        rank, text = self._lost
        return WorkerLostError(f"{text}, noticed during {self._doing or 'the next call'}", rank=rank)

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        next_pulse = 0.0
        while not self._closing:
            with self._lock:
                peers = dict(self._peers)
            ready, _, _ = select.select(list(peers.values()), [], [], 0.1)
            now = time.monotonic()
            for rank, connection in peers.items():
                if connection in ready:
                    self._hear(rank, connection, now)
                if rank in self._peers and now - self._last[rank] > self._timeout_s:
                    self._drop(rank)
                    self._note_loss(rank, self._name(rank) + f" gave no sign of life for {self._timeout_s:g} s")
            if now >= next_pulse:
                next_pulse = now + _PULSE_S
                self._send(b".\n")
            inside = self._inside
            waits = self._lost is not None and inside is not None
            if waits and now - max(self._known_since, inside or 0.0) > _GRACE_S:
                self._end()

    def _hear(self, rank: int, connection: socket.socket, now: float) -> None:
        try:
            said = connection.recv(1 << 16)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            said = b""
        if not said:
            self._drop(rank)
            if rank in self._left:
                self._note_loss(rank, self._name(rank) + " has shut its learners down")
            else:
                self._note_loss(rank, self._name(rank) + " ended")
            return
        self._last[rank] = now
        for line in said.split(b"\n"):
            if line == b"bye":
                self._left.add(rank)
            elif line.startswith(b"{"):
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    news = json.loads(line)
                    self._note_loss(int(news["rank"]), str(news["text"]))

    def _name(self, rank: int) -> str:
        return f"rank {rank} of {self.size} ({self._about.get(rank, 'somewhere')})"

    def _note_loss(self, rank: int, text: str) -> None:
        if self._lost is None:
            self._lost = (rank, text)
            self._known_since = time.monotonic()
            self._send(json.dumps({"rank": rank, "text": text}).encode() + b"\n")
            self._known.set()

    def _drop(self, rank: int) -> None:
        with self._lock:
            connection = self._peers.pop(rank, None)
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.close()

    def _send(self, data: bytes) -> None:
        with self._lock:
            peers = dict(self._peers)
        for connection in peers.values():
            # A full buffer belongs to a rank that does not read: its silence will be noticed.
            with contextlib.suppress(OSError):
                connection.send(data, socket.MSG_DONTWAIT)

    def _end(self) -> None:
        """This process hangs in a library, waiting for a rank that is lost."""
        assert self._lost is not None
        print(
            f"learner-core: rank {self.rank} of {self.size} ends during {self._doing}: {self._lost[1]}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

    def close(self) -> None:
        """Say goodbye and stop; may be called twice."""
        if self._closing:
            return
        self._send(b"bye\n")
        self._closing = True
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=2)
        for rank in list(self._peers):
            self._drop(rank)
        if self._listener is not None:
            self._listener.close()


def _line(connection: socket.socket) -> bytes:
    """One line of at most 64 KiB."""
    data = b""
    while not data.endswith(b"\n"):
        part = connection.recv(1)
        if not part or len(data) > 1 << 16:
            raise OSError("the other side closed the connection")
        data += part
    return data
