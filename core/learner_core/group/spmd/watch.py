"""Signs of life between ranks: who is lost is known by name, in bounded time, whatever the others wait for.

Every rank keeps the connection over which it has come to rank 0, and sends a sign twice a second, from a thread of its
own. A connection that closes without a word, or a silence of ``timeout_s``, is a loss; rank 0 tells everybody. A rank
that is waiting in a collective for the one that is lost usually hears so from the collective; one that does not is
ended here, after a grace, because a wait inside a library cannot be interrupted.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from learner_core.errors import LearnerGroupError, WorkerLostError

from .connection import Connection, ForgedError, readable

__all__ = ["Watch"]

_PULSE_S = 0.5
#: Seconds that a rank has to come out of a collective once a loss is known.
_GRACE_S = 4.0
#: Seconds that a broken collective waits for the watch to say who it was.
_HEARSAY_S = 3.0
_TEXT_LENGTH = 2000


class Watch:
    """One rank's end.

    Args:
        rank, size: its place.
        timeout_s: silence after which a rank is lost.
        about: "pid 12 on host a", for messages.

    Attributes:
        about: the same of every rank that is known.
    """

    def __init__(self, rank: int, size: int, *, timeout_s: float, about: str) -> None:
        self.rank = rank
        self.size = size
        self._timeout_s = timeout_s
        self.about: dict[int, str] = {rank: about}
        self._peers: dict[int, Connection] = {}  # all others on rank 0, else rank 0 alone
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

    def begin(self, peers: Mapping[int, Connection], about: Mapping[int, str]) -> None:
        """Send and expect signs of life from now on.

        Args:
            peers: on rank 0 the connections to all others by rank, on another the one to rank 0; ours from now on.
            about: of every rank.
        """
        self._peers, self.about = dict(peers), dict(about)
        self._last = dict.fromkeys(self._peers, time.monotonic())
        self._thread = threading.Thread(target=self._run, name="spmd-watch", daemon=True)
        self._thread.start()

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
        text = f"rank {self.rank} of {self.size} ({self.about[self.rank]}) failed in {self._doing}: "
        self._note_loss(self.rank, f"{text}{type(error).__name__}: {error}"[:_TEXT_LENGTH])

    def tell_unheard(self, rank: int) -> None:
        """Another rank is not heard here any more, although it may live: the ring is broken between the two."""
        me = f"rank {self.rank} of {self.size} ({self.about[self.rank]})"
        self._note_loss(rank, f"{self._name(rank)} is no longer heard by {me}")

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
            ready = readable(peers.values(), 0.1)
            now = time.monotonic()
            for rank, connection in peers.items():
                if connection in ready:
                    self._hear(rank, connection, now)
                if rank in self._peers and now - self._last[rank] > self._timeout_s:
                    self._drop(rank)
                    self._note_loss(rank, self._name(rank) + f" gave no sign of life for {self._timeout_s:g} s")
            if now >= next_pulse:
                next_pulse = now + _PULSE_S
                self._send(None)
            inside = self._inside
            waits = self._lost is not None and inside is not None
            if waits and now - max(self._known_since, inside or 0.0) > _GRACE_S:
                self._end()

    def _hear(self, rank: int, connection: Connection, now: float) -> None:
        try:
            messages = connection.receive()
        except ConnectionError as error:
            self._drop(rank)
            if isinstance(error, ForgedError):
                self._note_loss(rank, f"what came as from {self._name(rank)} is not what it sent ({error})")
            elif rank in self._left:
                self._note_loss(rank, self._name(rank) + " has shut its learners down")
            else:
                self._note_loss(rank, self._name(rank) + " ended")
            return
        if messages:
            self._last[rank] = now
        for message in messages:
            if message is None:
                continue
            if message.get("what") == "bye":
                self._left.add(rank)
            elif message.get("what") == "lost":
                self._note_loss(int(message.get("rank", rank)), str(message.get("text"))[:_TEXT_LENGTH])

    def _name(self, rank: int) -> str:
        return f"rank {rank} of {self.size} ({self.about.get(rank, 'somewhere')})"

    def _note_loss(self, rank: int, text: str) -> None:
        if self._lost is None:
            self._lost = (rank, text)
            self._known_since = time.monotonic()
            self._send({"what": "lost", "rank": rank, "text": text})
            self._known.set()

    def _drop(self, rank: int) -> None:
        with self._lock:
            connection = self._peers.pop(rank, None)
        if connection is not None:
            connection.close()

    def _send(self, message: Mapping[str, object] | None) -> None:
        with self._lock:
            peers = dict(self._peers)
        for connection in peers.values():
            # What a rank does not read waits: its silence will be noticed.
            connection.send(message)

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
        self._send({"what": "bye"})
        self._closing = True
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=2)
        for rank in list(self._peers):
            self._drop(rank)
