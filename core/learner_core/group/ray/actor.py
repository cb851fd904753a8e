"""One Ray actor that hosts a worker, and the driver's end of it.

An actor answers requests one after the other; beside that, in threads of its own, it gives signs of life when asked
and holds one call that never returns, so that its end, by whatever death, is the end of that call.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cloudpickle

from learner_core.errors import LearnerGroupError

from ..launchers import Ending
from .cluster import import_ray

__all__ = ["Host", "RayMember", "start_actor", "wait_for"]

#: Seconds between two questions for a sign of life.
_PULSE_S = 0.5


class Host:
    """Lives in the actor: a worker, asked by ``handle``.

    Args:
        make: pickled; makes the worker, an object with ``handle(operation, argument) -> (good, answer)``.
        sys_path: of the driver; what exists here and is not yet there is appended.
    """

    def __init__(self, make: bytes, sys_path: Sequence[str]) -> None:
        sys.path.extend(folder for folder in sys_path if folder not in sys.path and os.path.isdir(folder))
        self._end = threading.Event()
        self._worker = cloudpickle.loads(make)()

    def handle(self, operation: str, argument: Mapping[str, Any]) -> bytes:
        """A request; its answer is pickled here, so that arrays arrive as the driver's own."""
        good, answer = self._worker.handle(operation, argument)
        try:
            return bytes(cloudpickle.dumps((good, answer)))
        except Exception as error:
            failed = LearnerGroupError(f"the answer to {operation} cannot be sent: {type(error).__name__}: {error}")
            return bytes(cloudpickle.dumps((False, (failed, traceback.format_exc()))))

    def pulse(self) -> tuple[int, str, str]:
        """A sign of life: the process id, the node's id and its address."""
        ray = import_ray()
        return os.getpid(), ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()

    def live(self) -> None:
        """Never returns."""
        self._end.wait()


@functools.cache
def _actor_class() -> Any:
    groups = {"pulse": 1, "live": 1}
    return import_ray().remote(max_restarts=0, max_task_retries=0, concurrency_groups=groups)(Host)


def start_actor(make: Callable[[], Any], **options: Any) -> Any:
    """Start an actor with these Ray options; returns its handle at once.

    Args:
        make: called in the actor; makes the worker.
    """
    return _actor_class().options(**options).remote(cloudpickle.dumps(make), list(sys.path))


class RayMember:
    """The driver's end of one actor; see ``launchers.Member``.

    Args:
        rank: its place among the others.
        handle: of the actor.
    """

    def __init__(self, rank: int, handle: Any) -> None:
        self.rank = rank
        self.pid = 0
        self.host = ""
        self.address = ""
        self.waiting = False
        self.last_sign = time.monotonic()
        self._handle = handle
        self._live = handle.live.options(concurrency_group="live").remote()
        self._pulse: Any = None
        self._asked = 0.0
        self._operation = ""
        self.answer: Any = None
        self.hear()

    def send(self, operation: str, argument: Mapping[str, Any]) -> None:
        """As :meth:`Member.send`."""
        self.waiting = True
        self._operation = operation
        if operation == "stop":
            # Ending from inside would look like a crash to Ray; `ending` ends it when it has left the ring.
            operation, argument = "close", {}
        self.answer = self._handle.handle.remote(operation, dict(argument))

    def receive(self) -> tuple[bool, Any]:
        """As :meth:`Member.receive`."""
        ray = import_ray()
        answer, self.answer = self.answer, None
        try:
            data = ray.get(answer)
        except ray.exceptions.RayTaskError as error:
            failed = LearnerGroupError(f"{self._operation}: {error}")
            return False, (failed, str(error))
        except ray.exceptions.RayError as error:
            raise EOFError(str(error)) from error
        good, found = cloudpickle.loads(data)
        return bool(good), found

    def hear(self) -> None:
        """As :meth:`Member.hear`."""
        ray = import_ray()
        if self._pulse is not None and ray.wait([self._pulse], timeout=0)[0]:
            with contextlib.suppress(ray.exceptions.RayError):  # it has ended; waiting for the answer finds out how
                self.pid, self.host, self.address = ray.get(self._pulse)
                self.last_sign = time.monotonic()
            self._pulse = None
        if self._pulse is None and time.monotonic() - self._asked >= _PULSE_S:
            self._asked = time.monotonic()
            self._pulse = self._handle.pulse.options(concurrency_group="pulse").remote()

    def ending(self, timeout_s: float) -> Ending | None:
        """As :meth:`Member.ending`; Ray says why, and no exit code."""
        ray = import_ray()
        if not ray.is_initialized():
            return Ending()
        if self._operation == "stop" and self.answer is not None:
            ray.wait([self.answer, self._live], timeout=timeout_s)
            self.kill()
        if not ray.wait([self._live], timeout=timeout_s)[0]:
            return None
        try:
            ray.get(self._live)
        except ray.exceptions.RayError as error:
            return Ending(reason=_reason(str(error), self.host, self.pid))
        return Ending()

    def kill(self) -> None:
        """As :meth:`Member.kill`; Ray ends one that is stopped after five seconds more."""
        ray = import_ray()
        # After the interpreter's end has begun, Ray would be started again by that.
        if ray.is_initialized():
            with contextlib.suppress(Exception):
                ray.kill(self._handle, no_restart=True)

    def close(self) -> None:
        """As :meth:`Member.close`."""
        self.answer = self._pulse = None


def wait_for(members: Sequence[Any], timeout_s: float) -> list[Any]:
    """Those of the members whose answer, or end, has come; as soon as there is one."""
    ray = import_ray()
    pending = [member.answer for member in members]
    if not pending or not ray.wait(pending, timeout=timeout_s)[0]:
        return []
    ready, _ = ray.wait(pending, num_returns=len(pending), timeout=0)
    return [member for member in members if member.answer in ready]


def _reason(text: str, host: str, pid: int) -> str:
    """What Ray says of an actor's death, in one line."""
    for start in ("The actor is dead because ", "The actor died because "):
        _, found, rest = text.partition(start)
        if found:
            text = rest
            break
    text = text.partition(" Some common causes")[0]
    return f"process {pid} on node {host[:8]}: {' '.join(text.split())[:300]}"
