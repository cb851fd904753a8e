"""A connection between two ranks that have proved who they are: messages in order, each with its proof.

A message is its length, a tree of plain values in the encoding of state files (nothing for a sign of life), and
HMAC-SHA256 over its number and all of that, with the key of its direction. What comes changed, twice, out of order or
from elsewhere ends the connection before it is decoded. Nothing is encrypted.
"""

from __future__ import annotations

import contextlib
import hmac
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import TypeAlias

from learner_core.errors import FormatError
from learner_core.state.format import decode, encode
from learner_core.state.tree import Plain, Tree

from .handshake import PROOF_NBYTES, Keys

__all__ = ["Connection", "ForgedError", "Message", "readable"]

Message: TypeAlias = dict[str, Plain]
"""What ranks tell each other."""

_LENGTH = struct.Struct("<I")
_NUMBER = struct.Struct("<Q")
#: Longest message, in bytes; those of the ranks are a few hundred.
_MAX_NBYTES = 1 << 20
_MAX_WAITING_NBYTES = 4 * _MAX_NBYTES


class ForgedError(ConnectionError):
    """A message that the other rank has not sent like this."""


class Connection:
    """One end. Any thread may send; one at a time receives.

    Args:
        stream: connected; it is the connection's from now on.
        keys: of the handshake.
        first: whether this end is rank 0's.
    """

    def __init__(self, stream: socket.socket, keys: Keys, *, first: bool) -> None:
        stream.setblocking(False)
        self._stream = stream
        self._send_key, self._receive_key = (
            (keys.from_first, keys.to_first) if first else (keys.to_first, keys.from_first)
        )
        self._num_sent = self._num_received = 0
        self._out, self._in = bytearray(), bytearray()
        self._ready: deque[Message | None] = deque()
        self._lock = threading.Lock()

    def fileno(self) -> int:
        """For ``select``."""
        return self._stream.fileno()

    def send(self, message: Tree | None = None) -> None:
        """Send plain values, or a sign of life; never waits, and raises nothing: who reads notices.

        What the other side does not take waits here; what is more than a few megabytes is of one that takes nothing.
        """
        body = b"" if message is None else encode(dict(message)).tobytes()
        if len(body) > _MAX_NBYTES:
            raise ValueError(f"a message of {len(body)} bytes: at most {_MAX_NBYTES}")
        with self._lock:
            if len(self._out) + len(body) > _MAX_WAITING_NBYTES:
                return
            head = _LENGTH.pack(len(body))
            self._out += head + body + _proof(self._send_key, self._num_sent, head, body)
            self._num_sent += 1
            with contextlib.suppress(OSError):
                while self._out:
                    del self._out[: self._stream.send(self._out)]

    def receive(self) -> list[Message | None]:
        """What has come, without waiting; ``None`` is a sign of life.

        Raises:
            ConnectionError: the other side has gone; a ``ForgedError``: somebody else speaks.
        """
        self._read()
        messages = list(self._ready)
        self._ready.clear()
        return messages

    def await_message(self, deadline: float) -> Message:
        """The next message that is no sign of life.

        Args:
            deadline: by ``time.monotonic()``.

        Raises:
            TimeoutError: it has not come.
            ConnectionError: as :meth:`receive`.
        """
        while True:
            while self._ready:
                message = self._ready.popleft()
                if message is not None:
                    return message
            left = deadline - time.monotonic()
            if left <= 0 or not readable([self], left):
                raise TimeoutError("nothing came")
            self._read()

    def _read(self) -> None:
        try:
            data = self._stream.recv(1 << 16)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            raise ConnectionError(str(error)) from error
        if not data:
            raise ConnectionError("it closed the connection")
        self._in += data
        while self._take_message():
            pass

    def _take_message(self) -> bool:
        """Move a message from the bytes that have come to what is ready; whether there was a whole one."""
        if len(self._in) < _LENGTH.size:
            return False
        head = bytes(self._in[: _LENGTH.size])
        (length,) = _LENGTH.unpack(head)
        if length > _MAX_NBYTES:
            raise ForgedError(f"a message of {length} bytes")
        end = _LENGTH.size + length
        if len(self._in) < end + PROOF_NBYTES:
            return False
        body, proof = bytes(self._in[_LENGTH.size : end]), bytes(self._in[end : end + PROOF_NBYTES])
        if not hmac.compare_digest(proof, _proof(self._receive_key, self._num_received, head, body)):
            raise ForgedError("a message without a right proof")
        self._num_received += 1
        del self._in[: end + PROOF_NBYTES]
        self._ready.append(_decoded(body))
        return True

    def close(self) -> None:
        """Let go; may be called twice."""
        with contextlib.suppress(OSError):
            self._stream.close()


def readable(connections: Iterable[Connection], timeout_s: float) -> list[Connection]:
    """Those from which something has come, as soon as there is one."""
    with selectors.PollSelector() as selector:
        for connection in connections:
            selector.register(connection, selectors.EVENT_READ, connection)
        return [key.data for key, _ in selector.select(timeout_s)]


def _decoded(body: bytes) -> Message | None:
    if not body:
        return None
    try:
        message = decode(body)
    except FormatError as error:
        raise ForgedError(f"a message that cannot be read: {error}") from error
    if not isinstance(message, dict):
        raise ForgedError("a message that is no dict")
    return message


def _proof(key: bytes, number: int, head: bytes, body: bytes) -> bytes:
    return hmac.digest(key, _NUMBER.pack(number) + head + body, "sha256")
