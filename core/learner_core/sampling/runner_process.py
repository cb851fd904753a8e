"""Runners as processes of this machine: forked warm, fed through shared memory, watched, ended in bounded time.

Needs Linux. A nursery (``learner_core.group.nursery``) has imported what runners need, no framework unless the backend
answers observations, and forks them. Three sockets join a runner and the driver: requests and answers, signs of life,
and descriptors of shared memory. A thread of its own sends the signs; it ends the process, and whatever processes its
environments have started, when the driver is gone.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import select
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import cloudpickle

from ..errors import EnvError
from ..group.nursery import Nursery, nursery_for
from .runner_memory import FragmentReader, FragmentWriter, WeightsBoard, WeightsReader
from .runner_server import RunnerServer

__all__ = ["LocalRunners", "ProcessRunner", "preload", "serve"]

PULSE_S = 0.25
_LENGTH = struct.Struct("<Q")
_ALIVE, _MOVED = b".", b"!"


# ---- the runner's side -----------------------------------------------------------------------------------------------


def preload(framework: str) -> None:
    """Import, in the nursery, what runners need."""
    for module in ("gymnasium", "gymnasium.vector", "learner_core.sampling.runner_process"):
        importlib.import_module(module)
    importlib.import_module("learner_core.config.algorithm_config")
    if framework:
        from ..plugins import discovery

        discovery.load("learner_core.backends", framework)


def serve(channel: int, pulse: int, descriptors: int) -> int:
    """Serve the driver until it says stop or is gone; returns the exit code.

    Args:
        channel: file descriptor of the socket for requests and answers.
        pulse: for signs of life.
        descriptors: over which memory segments come and go.
    """
    os.setpgid(0, 0)  # with the processes that environments start, so that all can be ended together
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, files = socket.socket(fileno=channel), socket.socket(fileno=descriptors)
    board: list[WeightsReader] = []
    server = RunnerServer(lambda: board[0].take() if board else None)
    writer = FragmentWriter(lambda descriptor: _hand_over(files, descriptor))
    signs = threading.Thread(target=_live, args=(socket.socket(fileno=pulse), server), name="pulse", daemon=True)
    signs.start()
    while True:
        try:
            operation, argument = pickle.loads(_receive(requests))
        except (EOFError, OSError):
            _end()
        if operation == "stop":
            server.close()
            return 0
        if operation == "weights":
            _, (descriptor,), _, _ = socket.recv_fds(files, 16, 1)
            board[:] = [WeightsReader(descriptor, **argument)]
            continue
        if operation == "build":
            _settle(**argument.pop("process"))
        slot = argument.pop("slot", 0)
        good, answer = server.handle(operation, argument)
        if good and operation == "sample":
            message = pickle.dumps(("fragment", writer.write(slot, answer)))
        else:
            message = _dumps("answer" if good else "error", answer)
        try:
            requests.sendall(_LENGTH.pack(len(message)) + message)
        except OSError:
            _end()


def _hand_over(files: socket.socket, descriptor: int) -> None:
    with contextlib.suppress(OSError):  # the driver is gone: announcing the fragment finds that out
        socket.send_fds(files, [b"f"], [descriptor])


def _settle(*, environment: Mapping[str, str], folder: str, framework: str) -> None:
    """Be where the driver is: its folder, its environment variables; one thread of computation."""
    os.environ.update(environment)
    with contextlib.suppress(OSError):
        os.chdir(folder)
    if framework:
        from ..plugins import discovery

        discovery.load("learner_core.backends", framework).limit_threads(1)


def _dumps(kind: str, answer: Any) -> bytes:
    try:
        return bytes(cloudpickle.dumps((kind, answer)))
    except Exception as error:
        text = f"the answer cannot be sent: {type(error).__name__}: {error}"
        return pickle.dumps(("error", (EnvError(text), text)))


def _receive(requests: socket.socket) -> bytearray:
    (length,) = _LENGTH.unpack(_exactly(requests, _LENGTH.size))
    return _exactly(requests, length)


def _exactly(requests: socket.socket, length: int) -> bytearray:
    data = bytearray(length)
    view = memoryview(data)
    while view:
        count = requests.recv_into(view)
        if not count:
            raise EOFError
        view = view[count:]
    return data


def _live(pulse: socket.socket, server: RunnerServer) -> None:
    seen = None
    while True:
        readable, _, _ = select.select([pulse], [], [], PULSE_S)
        if readable and not pulse.recv(16):
            _end()
        progress = server.progress
        try:
            pulse.send(_ALIVE if progress == seen else _MOVED, socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass  # the driver is busy and has not read the last ones
        except OSError:
            _end()
        seen = progress


def _end() -> None:
    """The driver is gone: nobody wants to know how this ends."""
    with contextlib.suppress(OSError):
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(0)


# ---- the driver's side -----------------------------------------------------------------------------------------------


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
        self.ended = False
        self.last_sign = self.last_move = time.monotonic()
        self._nursery = nursery
        self._num_slots = num_slots
        self._num_samples = 0
        self.channel, theirs = socket.socketpair()
        self._pulse, their_pulse = socket.socketpair()
        self._files, their_files = socket.socketpair()
        with theirs, their_pulse, their_files:
            try:
                self.pid = nursery.fork([end.fileno() for end in (theirs, their_pulse, their_files)], list(sys.path))
            except BaseException:
                for end in (self.channel, self._pulse, self._files):
                    end.close()
                raise
        for end in (self.channel, self._pulse):
            end.setblocking(False)
        self._reader = FragmentReader(self._receive_descriptor)
        self._out = bytearray()
        self._in = bytearray()

    def send(self, operation: str, argument: Mapping[str, Any]) -> None:
        """As ``RunnerHandle.send``."""
        if operation == "sample":
            argument = {**argument, "slot": self._num_samples % self._num_slots}
            self._num_samples += 1
        message = pickle.dumps((operation, dict(argument)))
        self._out += _LENGTH.pack(len(message)) + message
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

    def poll(self) -> list[tuple[bool, Any]]:
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
        while len(self._in) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._in)
            end = _LENGTH.size + length
            if len(self._in) < end:
                break
            message = bytes(self._in[_LENGTH.size : end])
            del self._in[:end]
            answers.append(self._read(message))
        return answers

    def _read(self, message: bytes) -> tuple[bool, Any]:
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
                if _MOVED in signs:
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

    def __init__(self, config: Any, setup: bytes, framework: str) -> None:
        self._num_slots = int(getattr(config, "max_requests_in_flight_per_env_runner", 1))
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

    def publish(self, weights: Mapping[str, Mapping[str, Any]], version: int) -> None:
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
