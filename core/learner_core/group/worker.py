"""One learner process: builds a Learner, joins the ring, and does what the driver says.

A thread of its own sends a sign of life twice a second and ends the process when the driver is gone, whatever the
main thread is doing. Requests are answered in order; an exception is an answer, too.
"""

from __future__ import annotations

import contextlib
import copy
import mmap
import os
import pickle
import select
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, TypedDict

import cloudpickle
import numpy as np

from learner_core.errors import LearnerGroupError

from .collectives import Place, load_collective
from .launchers import Answer, UpdateOptions
from .links import Links
from .network import interface_of
from .results import Results
from .shared_batch import SegmentId, read_batch, receive

if TYPE_CHECKING:
    from learner_core.config.algorithm_settings import AlgorithmSettings
    from learner_core.learning.learner import Learner
    from learner_core.learning.rl_module import RLModuleSpec
    from learner_core.learning.train_state import TrainState
    from learner_core.state.tree import Plain
    from learner_core.xp import ArrayTree

__all__ = ["PULSE_S", "RESCUED", "Everything", "LearnerWorker", "Rescued", "Updated", "work"]

PULSE_S = 0.5
#: Seconds by which the driver notices who is gone before others say that they do not hear it.
_FIRST_SAY_S = 1.0
#: Key of an answer that nobody waited for: the state before the update that the learner is held up in.
RESCUED = "rescued"


class Everything(TypedDict):
    """What another learner needs to go on in one's place."""

    state: dict[str, Plain]
    config: AlgorithmSettings
    module_specs: dict[str, RLModuleSpec]


class Rescued(Everything):
    """What a learner was when the ring broke; ``num_updates`` it had applied."""

    num_updates: int


class Updated(TypedDict):
    """The answer to an update."""

    results: Results
    num_updates: int


def work(channel: int, pulse: int, descriptors: int) -> int:
    """Serve the driver until it says stop or is gone; returns the exit code.

    Args:
        channel: file descriptor of the two-way connection for requests and answers.
        pulse: of the socket for signs of life.
        descriptors: of the socket over which memory segments come.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests = Connection(channel)
    worker = _SharedMemoryWorker(socket.socket(fileno=descriptors))
    sending = threading.Lock()

    def rescue() -> None:
        found = worker.rescue()
        with contextlib.suppress(OSError), sending:
            requests.send_bytes(cloudpickle.dumps((True, {RESCUED: found})))

    threading.Thread(target=_live, args=(socket.socket(fileno=pulse), rescue), name="pulse", daemon=True).start()
    while True:
        try:
            operation, argument = pickle.loads(requests.recv_bytes())
        except EOFError:
            return 0
        if operation == "stop":
            worker.close()
            return 0
        answer = worker.handle(operation, argument)
        try:
            message = cloudpickle.dumps(answer)
        except Exception as error:
            failed = LearnerGroupError(f"the answer to {operation} cannot be sent: {type(error).__name__}: {error}")
            message = pickle.dumps((False, (failed, traceback.format_exc())))
        try:
            with sending:
                requests.send_bytes(message)
        except OSError:
            return 0


def _live(pulse: socket.socket, rescue: Callable[[], None]) -> None:
    while True:
        readable, _, _ = select.select([pulse], [], [], PULSE_S)
        try:
            if readable:
                if not pulse.recv(16):
                    os._exit(0)
                rescue()
            pulse.send(b".", socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass  # the driver is busy and has not read the last ones
        except OSError:
            os._exit(0)


def _portable(error: Exception) -> Exception:
    """The exception if it can be sent, else one with its text."""
    try:
        copy = pickle.loads(cloudpickle.dumps(error))
        return copy if isinstance(copy, Exception) else LearnerGroupError(str(error))
    except Exception:
        return LearnerGroupError(f"{type(error).__name__}: {error}")


class LearnerWorker:
    """A learner in a process that a launcher started: it does what the driver asks for, by method name."""

    def __init__(self) -> None:
        self._collective: Any = None
        self._links: Links | None = None
        #: A rank that is not heard here any more, although it may live.
        self.unheard: int | None = None
        #: What the learner was before the update that is running.
        self._before: TrainState | None = None
        self.learner: Any = None

    def handle(self, operation: str, argument: Mapping[str, object]) -> tuple[bool, Answer]:
        """Do what a request says.

        Args:
            operation: "build", "locate", "reach", "join", "update", "call" or "close".
            argument: its keyword arguments.

        Returns:
            (True, the answer), or (False, (the exception, its traceback)): never raises.
        """
        try:
            return True, getattr(self, operation)(**argument)
        except Exception as error:
            return False, (_portable(error), traceback.format_exc())

    def build(
        self, *, config: bytes, module_spec: bytes, rank: int, size: int, environment: dict[str, str], num_threads: int
    ) -> dict[str, int]:
        """Make the Learner; the ring is joined later, by all together."""
        os.environ.update(environment)
        from learner_core.learning.ranks import WholeBatch
        from learner_core.learning.resolve import resolve_backend

        settings = cloudpickle.loads(config)
        learner_class = settings.get_learner_class()
        if num_threads:
            from learner_core.plugins.discovery import load

            load("learner_core.backends", settings.framework_name).limit_threads(num_threads)
        backend = resolve_backend(settings, learner_class)
        ranks = WholeBatch(rank, size)
        if size > 1:
            self._collective = load_collective(settings.collective).create(backend)
            self._collective.prepare()
            ranks = WholeBatch(rank, size, self._collective.allreduce_flat_)
        self.learner = learner_class(
            config=settings, module_spec=cloudpickle.loads(module_spec), backend=backend, ranks=ranks
        )
        return {"pid": os.getpid()}

    def locate(self, *, host: str, address: str, rank: int, size: int, timeout_s: float) -> Place:
        """Where this rank is, for the others; rank 0 opens what they meet at, if that is the collective's way.

        Args:
            host, address: as in ``Place``, known to the launcher.
        """
        self._links = Links(self._collective.choose_interface(address), size)
        offer = self._collective.offer(address, timeout_s=timeout_s) if rank == 0 else {}
        return Place(host, address, interface_of(address), offer, self._links.where)

    def reach(self, *, others: Mapping[int, Mapping[str, str]], timeout_s: float) -> dict[int, str]:
        """Which other ranks cannot be reached from here, and why; after ``locate``.

        Args:
            others: rank -> its ``Place.reach``.
        """
        assert self._links is not None
        return self._links.reach(others, timeout_s=timeout_s)

    def join(self, *, rank: int, size: int, rendezvous: dict[str, str], timeout_s: float) -> None:
        """Meet the other learners."""
        self._collective.init(rank=rank, size=size, rendezvous=rendezvous, timeout_s=timeout_s)
        if self._links is not None:
            self._links.watch(self._lose, silence_s=timeout_s + _FIRST_SAY_S)

    def _lose(self, rank: int) -> None:
        self.unheard = rank

    def fetch(self, where: Mapping[str, Plain]) -> ArrayTree:
        """The batch that ``Fleet.put_batch`` brought within reach; here, the request holds it itself.

        Args:
            where: what ``put_batch`` returned.

        Returns:
            Nested dicts of arrays, which may be read-only.
        """
        return where["batch"]

    def update(self, *, arguments: UpdateOptions, **where: object) -> Updated:
        """Train on the batch that ``fetch(where)`` finds."""
        batch = self.fetch(where)
        learner = self.learner
        before = self._before = learner.train_state.snapshot()
        try:
            results = learner.update_from_batch(batch=batch, **arguments)
        except LearnerGroupError:
            # The ring broke in the middle: be as if the update had never begun, so that it can be repeated.
            learner.train_state.restore(before)
            if self._collective is not None:
                # Others may be waiting for this learner, as it waited for the one that is lost.
                threading.Thread(target=self._collective.abort, name="abort", daemon=True).start()
            raise
        finally:
            self._before = None
        return {"results": results, "num_updates": learner.train_state.num_updates}

    def rescue(self) -> Rescued | None:
        """What the learner was before the update that it is held up in, if it is in one; for another thread."""
        before = self._before
        if before is None:
            return None
        try:
            learner = copy.copy(self.learner)
            learner.train_state = before
            found: Rescued = {**everything(learner), "num_updates": before.num_updates}
            return found
        except Exception:
            return None  # then it is waited for

    def call(self, *, function: bytes) -> Answer:
        """``function(learner)``."""
        return cloudpickle.loads(function)(self.learner)

    def close(self) -> None:
        """Leave the ring with the others."""
        if self._links is not None:
            self._links.close()
        if self._collective is not None:
            self._collective.close()


class _SharedMemoryWorker(LearnerWorker):
    """Its batches lie in memory that it shares with the driver."""

    def __init__(self, descriptors: socket.socket) -> None:
        super().__init__()
        self._descriptors = descriptors
        self._segments: dict[int, tuple[SegmentId, mmap.mmap]] = {}

    def fetch(self, where: Mapping[str, Plain]) -> ArrayTree:
        """The batch that lies in shared memory."""
        return read_batch(self._memory(where["segment"]), where["layout"])

    def _memory(self, place: SegmentId | None) -> mmap.mmap | memoryview:
        """The mapped segment; one that is new comes over the descriptor socket."""
        if place is None:
            return memoryview(b"")
        known = self._segments.get(place[0])
        if known is None or known[0] != place:
            known = self._segments[place[0]] = (place, receive(self._descriptors, place))
        return known[1]


def everything(learner: Learner) -> Everything:
    """What another learner needs to go on in this one's place."""
    return {"state": learner.get_state(), "config": learner.config, "module_specs": dict(learner.module_specs)}


def parameter_digest(learner: Learner) -> str:
    """A hash of a learner's parameters: equal on every rank that is in step."""
    import xxhash

    digest = xxhash.xxh3_128()
    for module_id, arrays in sorted(learner.get_module_state().items()):
        for name, array in sorted(arrays.items()):
            digest.update(f"{module_id}/{name}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
