"""Runners as processes of this machine, as the driver has them: forked warm, fed through shared memory, watched.

Needs Linux. A nursery (``learner_core.group.nursery``) has imported what runners need, no framework unless the backend
answers observations, and forks them; ``runner_process`` is what they do then. They end in bounded time.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any

from ..config.algorithm_settings import AlgorithmSettings
from ..errors import EnvError
from ..group.nursery import Nursery, nursery_for
from .make_runner import Weights
from .runner_memory import FragmentReader, WeightsBoard
from .runner_process import LENGTH, MOVED
from .runner_server import Answer, Argument

__all__ = ["LocalRunners", "ProcessRunner"]


class ProcessRunner:
    """The driver's end of one runner process; a ``RunnerHandle``.

    Args:
        worker_index: which runner it is.
        nursery: that forks it.
        num_slots: how many fragments may be under way at once.

    Raises:
        LearnerGroupError: the nursery has died.
    """

    def __init__(self, worker_index: int, nursery: Nursery, num_slots: int) -> None:
        self.worker_index = worker_index
        self.ended: bool = False
        self.last_sign: float = time.monotonic()
        self.last_move: float = self.last_sign
        self._nursery = nursery
        self._num_slots = num_slots
        self._num_samples = 0
        self.channel: socket.socket
        self.channel, theirs = socket.socketpair()
        self._pulse, their_pulse = socket.socketpair()
        self._files, their_files = socket.socketpair()
        with theirs, their_pulse, their_files:
            try:
                self.pid: int = nursery.fork(
                    [end.fileno() for end in (theirs, their_pulse, their_files)], list(sys.path)
                )
            except BaseException:
                for end in (self.channel, self._pulse, self._files):
                    end.close()
                raise
        for end in (self.channel, self._pulse):
            end.setblocking(False)
        self._reader = FragmentReader(self._receive_descriptor)
        self._out = bytearray()
        self._in = bytearray()

    def send(self, operation: str, argument: Argument) -> None:
        """As ``RunnerHandle.send``."""
        if operation == "sample":
            argument = {**argument, "slot": self._num_samples % self._num_slots}
            self._num_samples += 1
        message = pickle.dumps((operation, dict(argument)))
        self._out += LENGTH.pack(len(message)) + message
        self._flush()

    def give_board(self, board: WeightsBoard) -> None:
        """Tell it where weights are found from now on."""
        notice = board.notice()
        if notice is not None:
            with contextlib.suppress(OSError):
                socket.send_fds(self._files, [b"w"], [notice[0]])
                self.send("weights", notice[1])

    def _flush(self) -> None:
        try:
            while self._out:
                del self._out[: self.channel.send(self._out)]
        except BlockingIOError:
            pass
        except OSError:
            self._out.clear()  # it has died; reading finds out how

    @property
    def wants_to_write(self) -> bool:
        """Whether something waits to be sent."""
        return bool(self._out)

    def poll(self) -> list[Answer]:
        """As ``RunnerHandle.poll``."""
        self._flush()
        self._hear()
        try:
            while data := self.channel.recv(1 << 20):
                self._in += data
            self.ended = True
        except BlockingIOError:
            pass
        except OSError:
            self.ended = True
        answers = []
        while len(self._in) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._in)
            end = LENGTH.size + length
            if len(self._in) < end:
                break
            message = bytes(self._in[LENGTH.size : end])
            del self._in[:end]
            answers.append(self._read(message))
        return answers

    def _read(self, message: bytes) -> Answer:
        """An answer; one that cannot be read is a failed one, for each request has its own."""
        try:
            kind, answer = pickle.loads(message)
            return kind != "error", self._reader.read(answer) if kind == "fragment" else answer
        except Exception as error:
            failed = EnvError(
                f"what runner {self.worker_index} answers cannot be read: {type(error).__name__}: {error}"
            )
            return False, (failed, traceback.format_exc())

    def _hear(self) -> None:
        with contextlib.suppress(OSError):
            while signs := self._pulse.recv(4096):
                self.last_sign = time.monotonic()
                if MOVED in signs:
                    self.last_move = self.last_sign

    def _receive_descriptor(self) -> int:
        _, received, _, _ = socket.recv_fds(self._files, 16, 1)
        return received[0]

    def exit_code(self, timeout_s: float) -> int | None:
        """As ``RunnerHandle.exit_code``."""
        return self._nursery.exit_code(self.pid, timeout_s)

    def kill(self) -> None:
        """As ``RunnerHandle.kill``."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        if self._nursery.exit_code(self.pid, 0.0) is None:  # it may not lead a group yet; a pid is used again some day
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """As ``RunnerHandle.close``."""
        for end in (self.channel, self._pulse, self._files):
            end.close()
        self._reader.close()


class LocalRunners:
    """Starts runners as processes of this machine; a ``RunnerLauncher``.

    Args:
        config: frozen configuration.
        setup: what ``make_setup`` returned.
        framework: the backend that answers observations in the runners; "" if numpy does.
    """

    def __init__(self, config: AlgorithmSettings, setup: bytes, framework: str) -> None:
        self._num_slots = int(config.max_requests_in_flight_per_env_runner)
        self._setup = setup
        self._framework = framework
        self._board = WeightsBoard()
        self._handles: dict[int, ProcessRunner] = {}

    def start(self, worker_index: int) -> ProcessRunner:
        """As ``RunnerLauncher.start``."""
        module = "learner_core.sampling.runner_process"
        nursery = nursery_for(self._framework, preload=f"{module}:preload", serve=f"{module}:serve")
        handle = self._handles[worker_index] = ProcessRunner(worker_index, nursery, self._num_slots)
        process = {"environment": dict(os.environ), "folder": os.getcwd(), "framework": self._framework}
        handle.send("build", {"setup": self._setup, "worker_index": worker_index, "process": process})
        handle.give_board(self._board)
        return handle

    def renew(self, setup: bytes) -> None:
        """As ``RunnerLauncher.renew``."""
        self._setup = setup

    def publish(self, weights: Weights, version: int) -> None:
        """As ``RunnerLauncher.publish``."""
        if self._board.publish(weights, version):
            for handle in self._handles.values():
                handle.give_board(self._board)

    def wait(self, handles: Sequence[Any], timeout_s: float) -> None:
        """As ``RunnerLauncher.wait``."""
        poll = select.poll()
        for handle in handles:
            poll.register(handle.channel, select.POLLIN | (select.POLLOUT if handle.wants_to_write else 0))
        poll.poll(timeout_s * 1000)

    def close(self) -> None:
        """As ``RunnerLauncher.close``."""
        self._board.close()
        self._handles.clear()
