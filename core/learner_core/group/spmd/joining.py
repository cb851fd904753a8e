"""The way of every rank but the first to rank 0: find it, prove to be of this job, let it prove the same, tell, wait.

What listens at the address is read 48 bytes and 32, and believed nothing, before it has proved to know the secret.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import Protocol

from learner_core.errors import LearnerGroupError

from .connection import Connection, Message
from .handshake import CHALLENGE_NBYTES, PROOF_NBYTES, Answer, Keys, is_greeting
from .secret import MAKE_SECRET, Secret

__all__ = ["FixedPlace", "Joined", "Place", "join_ranks"]

_HANDSHAKE_S = 10.0
_CONNECT_S = 5.0
_PAUSE_S = 0.05
#: Seconds after which a rank gives up whose secret is refused and will not become another.
_REFUSED_S = 10.0


class Place(Protocol):
    """Where rank 0 listens, or is to be found.

    Attributes:
        where: in words, for messages.
    """

    where: str

    def find(self, secret: bytes) -> tuple[str, int]:
        """Address and port.

        Raises:
            LookupError: they are not known yet.
            OSError: who would know cannot be reached.
        """


class FixedPlace:
    """A place that everybody has been told."""

    def __init__(self, address: str, port: int) -> None:
        self._place = address, port
        self.where: str = f"{address}:{port}"

    def find(self, secret: bytes) -> tuple[str, int]:
        """As :meth:`Place.find`."""
        return self._place


@dataclass(frozen=True)
class Joined:
    """What a rank has when all have come.

    Attributes:
        connection: to rank 0.
        keys: that both have.
        order: what rank 0 has sent.
    """

    connection: Connection
    keys: Keys
    order: Message


class _RefusedError(ConnectionError):
    """The other side did not take the proof, or gave none."""


def join_ranks(place: Place, secret: Secret, *, rank: int, said: Message, deadline: float) -> Joined:
    """Come to rank 0 and wait until all have.

    Args:
        place: where rank 0 listens; asked again for each attempt.
        secret: of the job.
        rank: this rank.
        said: what it says of itself: ``size``, ``host``, ``address`` and ``about``.
        deadline: by ``time.monotonic()``.

    Raises:
        LearnerGroupError: not all were there in time, or rank 0 refuses; says why.
    """
    begin, until = time.monotonic(), deadline
    who = f"rank {rank} of {said['size']}"
    refusal: _RefusedError | None = None
    while True:
        try:
            connection, keys = _connect(place, secret, rank)
            break
        except _RefusedError as error:
            trouble: Exception = error
            refusal = error
            if secret.fixed:
                until = min(until, time.monotonic() + _REFUSED_S)
        except (OSError, LookupError) as error:
            trouble = error
        if time.monotonic() > until:
            raise LearnerGroupError(
                f"{who} {_failure(refusal or trouble, place, time.monotonic() - begin)}"
            ) from trouble
        time.sleep(_PAUSE_S)
    try:
        connection.send(said)
        order = connection.await_message(deadline)
        if "refused" in order:
            raise LearnerGroupError(f"{who}: rank 0 says: {order['refused']}")
    except BaseException as error:
        connection.close()
        if isinstance(error, TimeoutError):
            raise LearnerGroupError(
                f"{who} waited for rank 0 to have heard of all ranks for {time.monotonic() - begin:.0f} s: it did not "
                "come; see its own output"
            ) from error
        if isinstance(error, OSError):
            raise LearnerGroupError(f"{who}: rank 0 has ended before all ranks had come ({error})") from error
        raise
    return Joined(connection, keys, order)


def _connect(place: Place, secret: Secret, rank: int) -> tuple[Connection, Keys]:
    """One attempt.

    Raises:
        OSError, LookupError: it came to nothing.
    """
    known = secret.now()
    if known is None:
        raise LookupError(secret.source)
    stream = socket.create_connection(place.find(known), timeout=_CONNECT_S)
    try:
        until = time.monotonic() + _HANDSHAKE_S
        challenge = _exactly(stream, CHALLENGE_NBYTES, until)
        if not is_greeting(challenge):
            raise _RefusedError("another program listens there")
        answer = Answer(known, rank, challenge)
        stream.sendall(answer.message)
        said = _exactly(stream, PROOF_NBYTES, until)
        keys = answer.check(said)
        if keys is None:
            raise _RefusedError("rank 0 has another secret" if not any(said) else "it does not know the job's secret")
        return Connection(stream, keys, first=False), keys
    except BaseException:
        stream.close()
        raise


def _exactly(stream: socket.socket, nbytes: int, until: float) -> bytes:
    data = b""
    while len(data) < nbytes:
        stream.settimeout(max(until - time.monotonic(), 0.001))
        part = stream.recv(nbytes - len(data))
        if not part:
            raise ConnectionError("it closed the connection")
        data += part
    return data


def _failure(trouble: Exception, place: Place, waited_s: float) -> str:
    waited = f"within {waited_s:.0f} s"
    if isinstance(trouble, _RefusedError):
        return (
            f"was not let in at {place.where} {waited}: {trouble}. All ranks of a job have the same secret, and those "
            f"of another job meet at another port: {MAKE_SECRET}, then start every rank with it"
        )
    if isinstance(trouble, LookupError):
        return (
            f"found no sign of rank 0 {waited} ({trouble} is not there): does it run? Ranks on several machines, or "
            f"with different temporary folders, need a secret in common: {MAKE_SECRET}, then start every rank with it"
        )
    return (
        f"could not reach {place.where} {waited} ({type(trouble).__name__}: {trouble}): does rank 0 run there, and "
        "does a firewall let the port through?"
    )
