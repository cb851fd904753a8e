"""Coming together: one connection from every rank to rank 0, each side sure of the other, and what is said first.

Rank 0 hears of every rank its machine and address, and answers with what each needs to join the collective. The
listener and the secret's file are there while the ranks meet, and no longer. docs/decisions/ranks.md says why.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Self

from learner_core.errors import LearnerGroupError, NetworkError
from learner_core.group.network import address_towards
from learner_core.state.tree import Plain, Tree

from .connection import Connection, Message
from .handshake import derive
from .joining import FixedPlace, Place, join_ranks
from .notes import HorovodNote
from .rendezvous import RendezvousServer
from .secret import find_secret
from .world import World

__all__ = ["Gathering"]


class Gathering:
    """All ranks, as this one knows them; a context manager, within which they meet.

    Args:
        environment: ``os.environ``.
        world: this rank's place.
        said: what this rank says of itself: ``size``, ``host`` and ``about``.
        deadline: by ``time.monotonic()``.

    Attributes:
        address: of this machine, on the way to the others.
        share_files: it is known that all ranks see the files of one machine.
        said: on rank 0: what each has said of itself, and its ``address``.
        key: uint8[32], of this group: all ranks have it, and nobody else.
        about: process and machine of each rank, in words.
        order: what this rank needs for the collective; on rank 0 after :meth:`send_orders`.

    Raises:
        LearnerGroupError: there is no secret, the others did not come in time, or one of them cannot be one.
    """

    def __init__(self, environment: Mapping[str, str], world: World, said: Tree, *, deadline: float) -> None:
        self.address: str = ""
        self.said: list[Message] = []
        self.key: bytes = b""
        self.about: dict[int, str] = {}
        self.order: dict[str, str] = {}
        self._connections: dict[int, Connection] = {}
        self._session = b""
        self._secret = find_secret(environment, world)
        self.share_files: bool = self._secret.on_this_machine
        try:
            self.address = address_towards(world.address, world.port)
            own = {**said, "address": self.address}
            if world.rank == 0:
                self._await_others(world, own, deadline)
            else:
                self._come(world, own, deadline)
        except BaseException:
            self._secret.close()
            raise

    def _await_others(self, world: World, own: Message, deadline: float) -> None:
        secret = self._secret.now()
        assert secret is not None  # rank 0 has it from the beginning
        note = HorovodNote(world.address, world.port) if world.served else None
        at = (self.address, 0) if world.served else (world.address, world.port)
        server = RendezvousServer(*at, self._secret, world.size)

        def publish() -> None:
            if note is not None:
                note.write(secret, server.address, server.port)

        try:
            arrived = server.await_ranks(deadline, publish)
        except BaseException as error:
            server.refuse_all(str(error))
            raise
        finally:
            server.close()
            if note is not None:
                note.erase()
        self.said = [own, *(arrived[rank].said or {} for rank in range(1, world.size))]
        self.about = {rank: str(said["about"]) for rank, said in enumerate(self.said)}
        self._connections = {rank: one.connection for rank, one in arrived.items()}
        # Sent openly; the key that follows from it and the secret is not.
        self._session = os.urandom(32)
        self.key = _group_key(secret, self._session)

    def _come(self, world: World, own: Message, deadline: float) -> None:
        place: Place = FixedPlace(world.address, world.port)
        if world.served:
            place = HorovodNote(world.address, world.port)
        joined = join_ranks(place, self._secret, rank=world.rank, said=own, deadline=deadline)
        self._connections = {0: joined.connection}
        self.key = _group_key(joined.keys.secret, joined.order["session"])
        self.about, self.order = joined.order["about"], joined.order["order"]

    def send_orders(self, orders: Sequence[Mapping[str, str]]) -> None:
        """On rank 0: tell every rank what it needs for the collective, in rank order."""
        for rank, connection in self._connections.items():
            connection.send({"order": dict(orders[rank]), "about": self.about, "session": self._session})
        self.order = dict(orders[0])

    def exchange(self, value: Plain, *, deadline: float) -> list[Plain]:
        """Every rank's plain value, in rank order, on every rank; when all have their orders.

        Args:
            value: this rank's.
            deadline: by ``time.monotonic()``.

        Raises:
            NetworkError: a rank has ended, or nothing came from it in time.
            LearnerGroupError: rank 0 gives up; says why.
        """
        every = [value]
        for rank, connection in sorted(self._connections.items()):
            try:
                if not rank:
                    connection.send({"value": value})
                said = connection.await_message(deadline)
            except OSError as error:
                raise NetworkError(f"rank {rank} ({self.about[rank]}) is lost while the ranks meet: {error}") from error
            if "refused" in said:
                raise LearnerGroupError(f"rank {rank} says: {said['refused']}")
            every = list(said["every"]) if not rank else [*every, said["value"]]
        for rank, connection in self._connections.items():
            if rank:
                connection.send({"every": every})
        return every

    def take_connections(self) -> dict[int, Connection]:
        """On rank 0 the connections to all others, else the one to rank 0; they are the caller's from now on."""
        taken, self._connections = self._connections, {}
        return taken

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._secret.close()
        for connection in self.take_connections().values():
            if error is not None:
                connection.send({"refused": f"{type(error).__name__}: {error}"[:2000]})
            connection.close()


def _group_key(secret: bytes, session: bytes) -> bytes:
    return derive(secret, "group", session)
