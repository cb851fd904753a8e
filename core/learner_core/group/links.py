"""The ways between all pairs of ranks: tried before a collective is joined, and listened to afterwards.

Libraries answer a way that is closed by ending the process, or by waiting for half an hour; signs of life, which go
through one place, do not show that two others have lost each other.

Every rank listens at the address that its collective will use, and connects to all others. A listener says a word that
the asking rank has heard of over a way that is trusted, then a pulse twice a second, and reads nothing: so whoever else
connects has done nothing, and a rank that reaches somebody else (itself, by a loopback address) finds out.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from ..errors import NetworkError

__all__ = ["Links", "check_reach"]

_WORD_BYTES = 32
_PULSE_S = 0.5
_MOST_AT_ONCE = 64
_MOST_NAMED = 8
#: Connections that are kept beyond one per rank: strangers' may be among them.
_SPARE = 16


class Links:
    """One rank's end, with a thread of its own; a context manager.

    Args:
        address: IPv4 address of this machine, at which the collective will listen.
        size: number of ranks.

    Attributes:
        where: what others need for :meth:`reach`: plain strings.

    Raises:
        NetworkError: one cannot listen there.
    """

    def __init__(self, address: str, size: int) -> None:
        try:
            self._listener = socket.create_server((address, 0), backlog=1024)
        except OSError as error:
            raise NetworkError(f"{socket.gethostname()} cannot listen at {address}: {error}") from error
        self._listener.setblocking(False)
        word = os.urandom(_WORD_BYTES // 2).hex()
        self._word = word.encode()
        self.where: dict[str, str] = {"address": address, "port": str(self._listener.getsockname()[1]), "word": word}
        self._most = size + _SPARE
        self._asking: list[socket.socket] = []  # they hear from this rank
        self._heard: dict[int, socket.socket] = {}  # rank -> where its pulses come from
        self._last: dict[int, float] = {}
        self._silence_s = 0.0
        self._tell: Callable[[int], None] | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="learner-links", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def reach(self, others: Mapping[int, Mapping[str, str]], *, timeout_s: float) -> dict[int, str]:
        """Connect to all other ranks; before :meth:`watch`.

        Args:
            others: rank -> its ``where``.
            timeout_s: for each; 64 are tried at a time.

        Returns:
            rank -> why it cannot be reached; empty: all answer.
        """
        if not others:
            return {}
        with ThreadPoolExecutor(min(len(others), _MOST_AT_ONCE)) as pool:
            attempts = list(pool.map(lambda where: _connect(where, timeout_s), others.values()))
        reasons = dict(zip(others, attempts, strict=True))
        for connection in self._heard.values():
            connection.close()
        self._heard = {rank: found for rank, found in reasons.items() if isinstance(found, socket.socket)}
        return {rank: found for rank, found in reasons.items() if isinstance(found, str)}

    def watch(self, tell: Callable[[int], None], *, silence_s: float) -> None:
        """From now on, say which rank has not been heard for so long; one whose connection has ended is none.

        Args:
            tell: called with a rank, from another thread, once.
        """
        self._last = dict.fromkeys(self._heard, time.monotonic())
        self._silence_s, self._tell = silence_s, tell

    def close(self) -> None:
        """Let go of all connections; may be called twice."""
        self._closing.set()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=2)

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        with contextlib.closing(self._listener), selectors.DefaultSelector() as ready:
            ready.register(self._listener, selectors.EVENT_READ)
            next_pulse = 0.0
            while not self._closing.is_set():
                ready.select(0.1)
                self._take_in()
                now = time.monotonic()
                if now >= next_pulse:
                    next_pulse = now + _PULSE_S
                    self._asking = [connection for connection in self._asking if _said(connection, b".")]
                if self._tell is not None:
                    self._listen(now)
        for connection in [*self._asking, *self._heard.values()]:
            connection.close()

    def _take_in(self) -> None:
        with contextlib.suppress(OSError):  # nobody more
            while True:
                connection, _ = self._listener.accept()
                if _said(connection, self._word) and len(self._asking) < self._most:
                    self._asking.append(connection)
                else:
                    connection.close()

    def _listen(self, now: float) -> None:
        for rank, connection in self._heard.items():
            if rank not in self._last:
                continue
            try:
                if connection.recv(1 << 12):
                    self._last[rank] = now
                else:
                    del self._last[rank]  # it has ended, of which others tell
            except BlockingIOError:
                if now - self._last[rank] > self._silence_s and self._tell is not None:
                    self._tell(rank)
                    del self._last[rank]
            except OSError:
                del self._last[rank]


def _said(connection: socket.socket, words: bytes) -> bool:
    try:
        connection.send(words, socket.MSG_DONTWAIT)
    except BlockingIOError:
        pass  # a full buffer: nobody has read for long
    except OSError:
        connection.close()
        return False
    return True


def _connect(where: Mapping[str, str], timeout_s: float) -> socket.socket | str:
    """The connection, or why there is none."""
    connection = None
    try:
        connection = socket.create_connection((where["address"], int(where["port"])), timeout=timeout_s)
        said = b""
        while len(said) < _WORD_BYTES:
            part = connection.recv(_WORD_BYTES - len(said))
            if not part:
                break
            said += part
        if hmac.compare_digest(said, where["word"].encode()):
            connection.setblocking(False)
            return connection
        reason = "another process answers there"
    except TimeoutError:
        reason = f"no answer in {timeout_s:g} s: are packets dropped between the two, by a firewall, say?"
    except OSError as error:
        reason = str(error)
    if connection is not None:
        connection.close()
    return reason


def check_reach(names: Sequence[str], found: Sequence[Mapping[int, str]], addresses: Sequence[str]) -> None:
    """Raise if any rank has not reached another.

    Args:
        names: of the ranks, in words.
        found: what :meth:`Links.reach` found on each rank.
        addresses: at which each rank was tried.

    Raises:
        NetworkError: names each pair, with both hosts and the reason.
    """
    pairs = [
        f"{names[rank]} cannot reach {names[other]} at {addresses[other]} ({reason})"
        for rank, reasons in enumerate(found)
        for other, reason in sorted(reasons.items())
    ]
    if pairs:
        more = f"; and {len(pairs) - _MOST_NAMED} more pairs" if len(pairs) > _MOST_NAMED else ""
        raise NetworkError(
            f"{'; '.join(pairs[:_MOST_NAMED])}{more}. The learners must reach each other at any port: look at firewalls"
            " and, if the address is not the one they share, name another interface (docs/deployment.md)"
        )
