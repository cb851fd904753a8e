"""One Ray actor that hosts a worker, and the driver's end of it.

An actor answers requests one after the other; beside that, in threads of its own, it gives signs of life when asked,
hands out what can be rescued, and holds one call that never returns, so that its end, by whatever death, is the end of
that call.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import cloudpickle
import numpy as np

from learner_core.errors import LearnerGroupError

from ..launchers import Answer, Ending
from ..worker import RESCUED
from .cluster import import_ray

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorClass, ActorHandle

__all__ = ["Actor", "Host", "RayMember", "start_actor", "wait_for"]

#: Seconds between two questions for a sign of life.
_PULSE_S = 0.5


class Host:
    """Lives in the actor: a worker, asked by ``handle``.

    Args:
        make: pickled; makes the worker, an object with ``handle(operation, argument) -> (good, answer)``, and perhaps
            with ``post(value)``, for what is to be known at once, ``rescue()``, for what is wanted of it while it is
            held up, ``progress``, a number that changes while it gets on, and ``unheard``, as in ``Member``.
        sys_path: of the driver; what exists here and is not yet there is appended.
    """

    def __init__(self, make: bytes, sys_path: Sequence[str]) -> None:
        sys.path.extend(folder for folder in sys_path if folder not in sys.path and os.path.isdir(folder))
        self._end = threading.Event()
        self._worker: Any = None
        try:
            self._worker = cloudpickle.loads(make)()
        except Exception as error:
            # Ray would abort the process with pages of stack; so it is the answer to the first request.
            failed = LearnerGroupError(f"a Ray actor cannot be set up: {type(error).__name__}: {error}")
            self._failed = (failed, traceback.format_exc())

    def handle(self, operation: str, argument: Mapping[str, object]) -> tuple[bytes, list[np.ndarray]]:
        """A request. Its answer is pickled here, large arrays apart from the rest: see ``_unpickled``."""
        if self._worker is None:
            return _pickled((False, self._failed))
        good, answer = self._worker.handle(operation, argument)
        return _answer(operation, good, answer)

    def rescue(self) -> tuple[bytes, list[np.ndarray]]:
        """What ``handle`` would answer if it were not held up: past the thread that is."""
        return _answer("rescue", True, {RESCUED: None if self._worker is None else self._worker.rescue()})

    def post(self, value: object) -> None:
        """Something to know while a request is being answered."""
        if self._worker is not None:
            self._worker.post(value)

    def pulse(self) -> tuple[int, str, str, object, int | None]:
        """A sign of life: the process id, the node's id and its address, progress, and whom it does not hear."""
        ray = import_ray()
        progress, unheard = getattr(self._worker, "progress", None), getattr(self._worker, "unheard", None)
        node = ray.get_runtime_context().get_node_id()
        return os.getpid(), node, ray.util.get_node_ip_address(), progress, unheard

    def live(self) -> None:
        """Never returns."""
        self._end.wait()


def _answer(operation: str, good: bool, answer: object) -> tuple[bytes, list[np.ndarray]]:
    try:
        return _pickled((good, answer))
    except Exception as error:
        failed = LearnerGroupError(f"the answer to {operation} cannot be sent: {type(error).__name__}: {error}")
        return _pickled((False, (failed, traceback.format_exc())))


def _pickled(value: object) -> tuple[bytes, list[np.ndarray]]:
    buffers: list[pickle.PickleBuffer] = []
    data = cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return bytes(data), [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]


def _unpickled(data: bytes, buffers: Sequence[np.ndarray]) -> Answer:
    """Ray's arrays are read-only and hold the store's memory: each is copied, once, and the copy is the caller's."""
    return pickle.loads(data, buffers=[bytearray(buffer.data) for buffer in buffers])


@functools.cache
def _actor_class() -> ActorClass:
    groups = {"pulse": 1, "live": 1}
    return import_ray().remote(max_restarts=0, max_task_retries=0, concurrency_groups=groups)(Host)


def start_actor(make: Callable[[], object], **options: object) -> ActorHandle[Host]:
    """Start an actor with these Ray options; returns its handle at once.

    Args:
        make: called in the actor; makes the worker.
    """
    return _actor_class().options(**options).remote(cloudpickle.dumps(make), list(sys.path))


class Actor:
    """The driver's end of an actor: its requests, its signs of life, its end.

    Args:
        handle: of the actor.

    Attributes:
        pid, host, address: of its process, its node's id and address; 0 and "" until its first sign of life.
        unheard: a rank that it does not hear any more, as of the last ``hear``.
        last_sign: ``time.monotonic()`` of the last one, as of the last ``hear``.
        last_move: the same of the last that came with progress.
        answers: references to answers that have not been taken, in order.
    """

    def __init__(self, handle: ActorHandle[Host]) -> None:
        self.pid: int = 0
        self.host: str = ""
        self.address: str = ""
        self.unheard: int | None = None
        self.started: float = time.monotonic()
        self.last_sign: float = self.started
        self.last_move: float = self.started
        self.answers: deque[ObjectRef[object]] = deque()
        self.handle = handle
        self.live: ObjectRef[object] = handle.live.options(concurrency_group="live").remote()
        self._pulse: ObjectRef[object] | None = None
        self._asked = 0.0
        self._progress: object = None
        self._stopping: ObjectRef[object] | None = None
        self.hear()

    def ask(self, operation: str, argument: Mapping[str, object]) -> None:
        """Make a request."""
        if operation == "stop":
            # Ending from inside would look like a crash to Ray; `ending` ends it when it has let go of what it has.
            self._stopping = self.handle.handle.remote("close", {})
        else:
            self.answers.append(self.handle.handle.remote(operation, dict(argument)))

    def take(self) -> tuple[bool, Answer]:
        """The oldest answer, which has come.

        Raises:
            EOFError: there is none: the actor has ended.
        """
        return self._get(self.answers.popleft())

    def awaited(self) -> list[ObjectRef[object]]:
        """References of which one must have come before there is something to take, or its end to see."""
        return [self.answers[0] if self.answers else self.live]

    def _get(self, reference: ObjectRef[object]) -> tuple[bool, Answer]:
        ray = import_ray()
        try:
            sent = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            return False, (LearnerGroupError(f"an actor failed: {error}"), str(error))
        except ray.exceptions.RayError as error:
            raise EOFError(str(error)) from error
        try:
            good, found = _unpickled(*sent)
        except Exception as error:
            failed = LearnerGroupError(f"what an actor answers cannot be read: {type(error).__name__}: {error}")
            return False, (failed, traceback.format_exc())
        return bool(good), found

    def post(self, value: object) -> None:
        """Let it know something at once."""
        self.handle.post.options(concurrency_group="pulse").remote(value)

    def hear(self) -> None:
        """Take in a sign of life if one has come, and ask for the next from time to time."""
        ray = import_ray()
        if self._pulse is not None and ray.wait([self._pulse], timeout=0)[0]:
            with contextlib.suppress(ray.exceptions.RayError):  # it has ended; waiting for the answer finds out how
                self.pid, self.host, self.address, progress, self.unheard = ray.get(self._pulse)
                self.last_sign = time.monotonic()
                if progress != self._progress:
                    self._progress, self.last_move = progress, self.last_sign
            self._pulse = None
        if self._pulse is None and time.monotonic() - self._asked >= _PULSE_S:
            self._asked = time.monotonic()
            self._pulse = self.handle.pulse.options(concurrency_group="pulse").remote()

    def ending(self, timeout_s: float) -> Ending | None:
        """How it ended; ``None`` if it has not within the timeout. Ray says why, and no exit code."""
        ray = import_ray()
        if not ray.is_initialized():
            return Ending()
        if self._stopping is not None:
            ray.wait([self._stopping, self.live], timeout=timeout_s)
            self._stopping = None
            self.kill()
        if not ray.wait([self.live], timeout=timeout_s)[0]:
            return None
        try:
            ray.get(self.live)
        except ray.exceptions.RayError as error:
            return Ending(reason=_reason(str(error), self.host, self.pid))
        return Ending()

    def kill(self) -> None:
        """End it now; Ray ends one that is stopped after five seconds more. Never raises."""
        ray = import_ray()
        # After the interpreter's end has begun, Ray would be started again by that.
        if ray.is_initialized():
            with contextlib.suppress(Exception):
                ray.kill(self.handle, no_restart=True)

    def close(self) -> None:
        """Let go of what is in flight."""
        self.answers.clear()
        self._pulse = None


class RayMember(Actor):
    """The driver's end of one learner; see ``launchers.Member``.

    Args:
        rank: its place among the others.
        handle: of the actor.
    """

    def __init__(self, rank: int, handle: ActorHandle[Host]) -> None:
        super().__init__(handle)
        self.rank = rank
        self.waiting: bool = False
        self._rescue: ObjectRef[object] | None = None

    def rescue(self) -> None:
        """As :meth:`Member.rescue`."""
        self._rescue = self.handle.rescue.options(concurrency_group="pulse").remote()

    def awaited(self) -> list[ObjectRef[object]]:
        """As :meth:`Actor.awaited`: what is rescued comes when it comes, before the answer or behind it."""
        return [*super().awaited(), *([] if self._rescue is None else [self._rescue])]

    def send(self, operation: str, argument: Mapping[str, object]) -> None:
        """As :meth:`Member.send`."""
        self.waiting = True
        self.ask(operation, argument)

    def receive(self) -> tuple[bool, Answer]:
        """As :meth:`Member.receive`."""
        if self._rescue is not None and import_ray().wait([self._rescue], timeout=0)[0]:
            rescue, self._rescue = self._rescue, None
            return self._get(rescue)
        return self.take()

    def close(self) -> None:
        """As :meth:`Member.close`."""
        super().close()
        self._rescue = None


AnyActor = TypeVar("AnyActor", bound=Actor)


def wait_for(actors: Sequence[AnyActor], timeout_s: float) -> list[AnyActor]:
    """Those of the actors whose oldest answer, or end, has come; as soon as there is one."""
    ray = import_ray()
    pending = {reference: actor for actor in actors for reference in actor.awaited()}
    if not pending or not ray.wait(list(pending), timeout=timeout_s)[0]:
        return []
    ready, _ = ray.wait(list(pending), num_returns=len(pending), timeout=0)
    return list(dict.fromkeys(pending[reference] for reference in ready))


def _reason(text: str, host: str, pid: int) -> str:
    """What Ray says of an actor's death, in one line."""
    where = f"process {pid} on node {host[:8]}" if pid else "it did not start"
    for start in ("The actor is dead because ", "The actor died because "):
        _, found, rest = text.partition(start)
        if found:
            text = rest
            break
    text = text.partition(" Some common causes")[0].strip()
    if "creation task" in text:  # a traceback, whose last line says it
        text = text.splitlines()[-1]
    return f"{where}: {' '.join(text.split())[:300]}"
