"""What reduces over learners: the interface, the two that come with learner-core, and how "auto" chooses.

A collective is two things under one name (entry-point group ``learner_core.collectives``): in the driver a
``CollectivePlugin`` opens the meeting point; in every learner ``create(backend)`` gives a ``Collective`` over that
backend's arrays. Rank order, names and sizes of the calls must agree on every rank; a rank that does not call leaves
the others waiting until the timeout, so whoever drives the ring keeps a deadline of its own.
docs/decisions/plugins-and-backends.md says why.
"""

from __future__ import annotations

import importlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from learner_core.backend import Backend
from learner_core.errors import LearnerGroupError, PluginError
from learner_core.plugins import discovery
from learner_core.xp import Array

from .network import interface_of, use_interface

__all__ = [
    "AUTO",
    "Collective",
    "CollectivePlugin",
    "Place",
    "Rendezvous",
    "TorchDistributed",
    "choose_collective",
    "load_collective",
]

#: The setting that leaves the choice to :func:`choose_collective`.
AUTO = "auto"
#: What "auto" tries first, also for a backend that says nothing of collectives: Horovod asks it in the learners.
_FIRST = "horovod"


@dataclass(frozen=True)
class Place:
    """Where a rank is.

    Attributes:
        host: name of its machine, the same for ranks on the same machine and for no others.
        address: IPv4 address at which the other ranks reach it.
        interface: name of the network interface that has this address; "" if none has.
        offer: what ``Collective.offer`` said, on rank 0.
        reach: what ``Links.where`` said: where the other ranks try whether they reach this one.
    """

    host: str
    address: str
    interface: str = ""
    offer: Mapping[str, str] = field(default_factory=dict)
    reach: Mapping[str, str] = field(default_factory=dict)


class Rendezvous:
    """A meeting point that the driver keeps open while its ranks meet. A context manager."""

    def for_rank(self, rank: int) -> dict[str, str]:
        """What rank ``rank`` needs to find the others: plain strings, sent to it however the driver likes."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the port or the file; may be called twice."""

    def __enter__(self) -> Rendezvous:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Collective:
    """One rank's end of a ring, over the arrays of one backend.

    Every method but ``abort`` and ``close`` raises ``LearnerGroupError`` when another rank has left the ring.
    """

    name: ClassVar[str]
    #: Variable of the environment that names a network interface for the library below; "" if there is none.
    interface_variable: ClassVar[str] = ""
    rank: int = 0
    size: int = 1

    def prepare(self) -> None:
        """Import what ``init`` needs. All ranks prepare, then all are let into ``init`` together: a rank that
        waits there for one that still imports may run into the timeout.

        Raises:
            LearnerGroupError: it is not installed or does not fit the framework; the text has the command.
        """

    def choose_interface(self, address: str) -> str:
        """Settle the network interface, on every rank after ``prepare``: the user's, else the one that leads there.

        Args:
            address: of this machine, on the way to the others.

        Returns:
            IPv4 address at which the other ranks will reach this one.

        Raises:
            NetworkError: the interface is missing or down.
        """
        if not self.interface_variable:
            return address
        return use_interface(self.interface_variable, interface_of(address)) or address

    def offer(self, address: str, *, timeout_s: float) -> dict[str, str]:
        """Open what the others meet at, where rank 0 and not the driver does that; asked of rank 0 after ``prepare``.

        Args:
            address: of this machine, for the others.
            timeout_s: as in ``init``.

        Returns:
            What ``open_rendezvous`` finds as ``places[0].offer``.
        """
        return {}

    def init(self, *, rank: int, size: int, rendezvous: Mapping[str, str], timeout_s: float) -> None:
        """Join the ring.

        Args:
            rank: this rank, 0..size-1.
            size: number of ranks.
            rendezvous: what ``Rendezvous.for_rank(rank)`` said.
            timeout_s: seconds after which a silent peer is given up, where the library can tell one that is busy
                (compiling, say) from one that is gone; else it waits much longer.
        """
        raise NotImplementedError

    def allreduce_flat_(self, flat: Array, *, name: str = "flat_grad") -> Array:
        """Sum a vector over the ranks.

        Args:
            flat: float[n] of the backend, contiguous, same n and dtype on every rank. It may be overwritten.
            name: the operation's name on the wire; the same on every rank.

        Returns:
            float[n]: the sum; ``flat`` itself where the framework reduces in place.
        """
        raise NotImplementedError

    def broadcast(self, flat: Array, *, root: int = 0, name: str = "flat") -> Array:
        """Give every rank the ``root``'s vector; arguments and result as in :meth:`allreduce_flat_`."""
        raise NotImplementedError

    def barrier(self) -> None:
        """Wait until every rank has come here."""
        raise NotImplementedError

    def abort(self) -> None:
        """Leave at once, without the others' consent; never raises, may leave this process unfit for another ring."""

    def close(self) -> None:
        """Leave in order, when every rank does; may be called twice, and without ``init``."""


class CollectivePlugin(Protocol):
    """What the hook ``learner_core_collective()`` returns.

    It may also have ``check_gpus(backend_name)``, which is like ``check`` for learners with GPUs; ``collective="auto"``
    asks it, so that what would refuse only in the learners is passed over.
    """

    name: str

    def check(self, backend_name: str) -> None:
        """Raise LearnerGroupError with the exact command where this collective is not installed for a backend.

        Called in the driver: imports no framework.
        """

    def preload(self, backend_name: str) -> None:
        """Import what ``Collective.prepare`` will need, and start nothing: learners are forked from here."""

    def open_rendezvous(self, size: int, *, timeout_s: float, places: Sequence[Place] | None = None) -> Rendezvous:
        """Open the meeting point of ``size`` ranks, reachable from their machines and from no others.

        Args:
            size: number of ranks.
            timeout_s: as in :meth:`Collective.init`.
            places: where the ranks are, in rank order; ``None``: all on this host.
        """

    def create(self, backend: Backend) -> Collective:
        """Make one rank's end over ``backend``'s arrays; nothing is imported or opened before ``init``.

        Raises:
            LearnerGroupError: there is none for this backend; the text names one that there is.
        """


def load_collective(name: str) -> CollectivePlugin:
    """Load a collective by name.

    Raises:
        PluginNotFoundError: no such collective; the text has the nearest name.
        PluginError: its plugin is broken.
    """
    plugin: CollectivePlugin = discovery.load("learner_core.collectives", name)
    return plugin


def choose_collective(name: str, frameworks: Sequence[str], *, gpus: bool = False) -> str:
    """The collective that a setting means.

    "auto" is the first of these that is installed for all frameworks: Horovod, then what the first backend says that it
    has, in its order (``BackendFacts.collectives``). Another name is itself, installed or not. Imports no framework.

    Args:
        name: the setting.
        frameworks: backends' names, one at least.
        gpus: learners have GPUs.

    Raises:
        LearnerGroupError: "auto", and nothing is there; the text has the command that brings something.
        PluginNotFoundError: there is no such backend.
    """
    if name != AUTO:
        return name
    offered = [discovery.backend_facts(framework).collectives for framework in frameworks]
    known = [other for other in offered[0] if all(other in facts for facts in offered)]
    refusals: list[str] = []
    for candidate in sorted(known, key=lambda other: other != _FIRST) or [_FIRST]:
        try:
            plugin = load_collective(candidate)
            checks = [plugin.check, *([plugin.check_gpus] if gpus and hasattr(plugin, "check_gpus") else [])]
            for check in checks:
                for framework in dict.fromkeys(frameworks):
                    check(framework)
        except (LearnerGroupError, PluginError) as refusal:
            refusals.append(str(refusal))
        else:
            return candidate
    raise LearnerGroupError(
        f'collective="auto": nothing here sums gradients over learners for the framework {frameworks[0]!r}. '
        + "; ".join(refusals)
    )


class _FileRendezvous(Rendezvous):
    """A file in a folder of its own, readable by this user only."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="learner-core-ring-")

    def for_rank(self, rank: int) -> dict[str, str]:
        return {"file": f"{self._folder}/store"}

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


class _StoreRendezvous(Rendezvous):
    """The store that rank 0 has opened; the driver opens nothing."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places

    def for_rank(self, rank: int) -> dict[str, str]:
        return {"address": self._places[0].address, "interface": self._places[rank].interface, **self._places[0].offer}


class TorchDistributed:
    """``collective="torch"``: gloo on the CPU, NCCL on CUDA, as ``torch.distributed`` brings them. Torch only."""

    name = "torch"

    def check(self, backend_name: str) -> None:
        """As :meth:`CollectivePlugin.check`."""
        if self.name not in discovery.backend_facts(backend_name).collectives:
            raise LearnerGroupError(
                f'collective="torch" reduces Torch\'s arrays only, and the framework is {backend_name!r}: '
                'use collective="horovod" (learner-core horovod build)'
            )

    def preload(self, backend_name: str) -> None:
        """As :meth:`CollectivePlugin.preload`."""
        importlib.import_module(discovery.backend_facts(backend_name).collectives[self.name])

    def open_rendezvous(self, size: int, *, timeout_s: float, places: Sequence[Place] | None = None) -> Rendezvous:
        """As :meth:`CollectivePlugin.open_rendezvous`."""
        return _FileRendezvous() if places is None else _StoreRendezvous(places)

    def create(self, backend: Backend) -> Collective:
        """As :meth:`CollectivePlugin.create`."""
        self.check(backend.name)
        collective: Collective = backend.make_collective(self.name)
        return collective
