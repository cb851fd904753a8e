"""A runner as a process of this machine: what it does from the fork to its end. ``local_runners`` is the driver's side.

Needs Linux. Three sockets join a runner and the driver: requests and answers, signs of life, and descriptors of shared
memory. A thread of its own sends the signs; it ends the process, and whatever processes its environments have started,
when the driver is gone.
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
import threading
from collections.abc import Mapping

import cloudpickle

from ..errors import EnvError
from .runner_memory import FragmentWriter, WeightsReader
from .runner_server import RunnerServer

__all__ = ["LENGTH", "MOVED", "preload", "serve"]

_PULSE_S = 0.25
#: How long the message is that follows, in bytes.
LENGTH = struct.Struct("<Q")
#: A sign of life, and one that says that the environments get on.
_ALIVE, MOVED = b".", b"!"


def preload(framework: str) -> None:
    """Import, in the nursery, what runners need."""
    for module in ("gymnasium", "gymnasium.vector", "learner_core.sampling.runner_process"):
        importlib.import_module(module)
    importlib.import_module("learner_core.config.algorithm_settings")
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
            requests.sendall(LENGTH.pack(len(message)) + message)
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


def _dumps(kind: str, answer: object) -> bytes:
    try:
        return bytes(cloudpickle.dumps((kind, answer)))
    except Exception as error:
        text = f"the answer cannot be sent: {type(error).__name__}: {error}"
        return pickle.dumps(("error", (EnvError(text), text)))


def _receive(requests: socket.socket) -> bytearray:
    (length,) = LENGTH.unpack(_exactly(requests, LENGTH.size))
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
        readable, _, _ = select.select([pulse], [], [], _PULSE_S)
        if readable and not pulse.recv(16):
            _end()
        progress = server.progress
        try:
            pulse.send(_ALIVE if progress == seen else MOVED, socket.MSG_DONTWAIT)
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
