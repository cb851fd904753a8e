"""A process that has imported a framework once and forks learners from there: a warm start.

Importing Torch takes seconds and TensorFlow more; a fork of a process that has done so takes milliseconds. A process
that has already computed something must not fork (its threads would be gone), so a nursery computes nothing. The
driver keeps one per backend for as long as it lives; a nursery whose driver is gone kills its children and ends.

The nursery is the parent of the learners, so it alone learns how they ended, and tells the driver.
docs/decisions/launchers.md says why.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from learner_core.errors import LearnerGroupError

__all__ = ["Nursery", "nursery_for"]

#: What is imported beforehand for learners, and what they do: functions, written "module:name".
_LEARNERS = ("learner_core.group.nursery:_preload", "learner_core.group.worker:work")

_NURSERIES: dict[tuple[str, ...], Nursery] = {}
_LOCK = threading.Lock()


def nursery_for(*arguments: str, preload: str = _LEARNERS[0], serve: str = _LEARNERS[1]) -> Nursery:
    """The running nursery of a kind, started if need be.

    Args:
        arguments: for ``preload``; of a learner: the backend's and the collective's name.
        preload: function, written "module:name", called once in the nursery: imports what its children need.
        serve: the same, called in each child with its descriptors; returns the exit code.
    """
    key = (preload, serve, *arguments)
    with _LOCK:
        nursery = _NURSERIES.get(key)
        if nursery is None or not nursery.alive:
            if not _NURSERIES:
                atexit.register(_close_all)
            nursery = _NURSERIES[key] = Nursery(*key)
        return nursery


def _close_all() -> None:
    for nursery in _NURSERIES.values():
        nursery.close()
    _NURSERIES.clear()


class Nursery:
    """The driver's end: a subprocess that forks learners on request.

    Args:
        preload, serve, arguments: as for :func:`nursery_for`.
    """

    def __init__(self, preload: str, serve: str, *arguments: str) -> None:
        self._lock = threading.Lock()
        self._exits: dict[int, int] = {}
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "learner_core.group.nursery", str(theirs.fileno())]
            # A session of its own: Ctrl-C in a terminal goes to the driver, which ends the learners in order.
            self._process = subprocess.Popen(
                [*command, preload, serve, *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                # numpy makes initial weights here and no more; its threads cost every fork 0.1 s.
                env={"OPENBLAS_NUM_THREADS": "1", **os.environ},
            )

    @property
    def alive(self) -> bool:
        """Whether it can still fork."""
        return self._process.poll() is None

    def fork(self, descriptors: list[int], sys_path: list[str]) -> int:
        """Fork a learner.

        Args:
            descriptors: what it gets: the channel, the pulse and the descriptor socket.
            sys_path: where it finds modules.

        Returns:
            Its process id.

        Raises:
            LearnerGroupError: the nursery has died.
        """
        with self._lock:
            try:
                socket.send_fds(self._control, [pickle.dumps(sys_path)], descriptors)
                while True:
                    kind, number, code = pickle.loads(self._receive())
                    if kind == "born":
                        return int(number)
                    self._exits[number] = code
            except (OSError, EOFError) as error:
                raise LearnerGroupError(
                    f"the process that starts learners has died (exit code {self._process.poll()}): {error}"
                ) from error

    def exit_code(self, pid: int, timeout_s: float) -> int | None:
        """How a learner ended: its exit code, negative for a signal, or ``None`` if it has not within the timeout."""
        deadline = time.monotonic() + timeout_s
        with self._lock:
            while pid not in self._exits:
                left = deadline - time.monotonic()
                if left <= 0 or not select.select([self._control], [], [], left)[0]:
                    return None
                try:
                    _, number, code = pickle.loads(self._receive())
                except (OSError, EOFError):
                    return None
                self._exits[number] = code
            return self._exits[pid]

    def _receive(self) -> bytes:
        data = self._control.recv(1 << 16)
        if not data:
            raise EOFError("it closed its socket")
        return data

    def close(self) -> None:
        """End it and all that it has forked."""
        self._control.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


# ---- the subprocess --------------------------------------------------------------------------------------------------


def _main(descriptor: int, preload: str, serve: str, *arguments: str) -> None:
    control = socket.socket(fileno=descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wake, woken = socket.socketpair()
    for end in (wake, woken):
        end.setblocking(False)
    signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    # What cannot be imported here will say so where it is used.
    with contextlib.suppress(Exception):
        _function(preload)(*arguments)
    # Learners share these objects' pages until somebody writes to them: the garbage collector shall not.
    gc.collect()
    gc.freeze()
    children: set[int] = set()
    while True:
        ready, _, _ = select.select([control, wake], [], [])
        if wake in ready:
            with contextlib.suppress(BlockingIOError):
                wake.recv(4096)
            _reap(control, children)
        if control in ready:
            request, descriptors, _, _ = socket.recv_fds(control, 1 << 16, 8)
            if not request:
                break
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for end in (control, wake, woken):
                    end.close()
                _child(serve, descriptors, pickle.loads(request))
            for number in descriptors:
                os.close(number)
            children.add(pid)
            control.send(pickle.dumps(("born", pid, 0)))
    for pid in children:
        for kill in (os.killpg, os.kill):  # a child may have a group of its own
            with contextlib.suppress(ProcessLookupError):
                kill(pid, signal.SIGKILL)
    os._exit(0)


def _function(path: str) -> Callable[..., int]:
    module, _, name = path.partition(":")
    function: Callable[..., int] = getattr(importlib.import_module(module), name)
    return function


def _preload(backend_name: str, collective_name: str) -> None:
    from learner_core.plugins import discovery

    from .collectives import load_collective

    # The class alone: making a backend may start threads.
    discovery.load("learner_core.backends", backend_name)
    for module in ("learning.learner", "learning.actor_critic", "config.algorithm_settings", "group.worker"):
        importlib.import_module(f"learner_core.{module}")
    importlib.import_module("gymnasium")  # spaces
    if collective_name:
        load_collective(collective_name).preload(backend_name)


def _reap(control: socket.socket, children: set[int]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        children.discard(pid)
        with contextlib.suppress(OSError):
            control.send(pickle.dumps(("exited", pid, os.waitstatus_to_exitcode(status))))


def _child(serve: str, descriptors: list[int], sys_path: list[str]) -> None:
    code = 1
    try:
        sys.path[:] = sys_path
        code = _function(serve)(*descriptors)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    finally:
        # Handlers and buffers of the nursery are not ours to run.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _main(int(sys.argv[1]), *sys.argv[2:])
