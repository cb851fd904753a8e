"""``launcher="local"``: learners are processes of this machine, forked warm, fed through shared memory."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, LearnerGroupError
from ..plugins.hookspecs import hookimpl
from ..xp import Columns
from .devices import gpu_environment
from .launchers import Answer, Ending, Learners, Member
from .local import LocalLearners
from .nursery import Nursery, nursery_for
from .shared_batch import Segment

if TYPE_CHECKING:
    from ..config.algorithm_settings import AlgorithmSettings

__all__ = ["LocalLauncher", "ProcessFleet", "ProcessMember", "learner_core_launcher"]

PLUGIN_API = 1


class ProcessMember:
    """One learner process, forked from a nursery.

    Args:
        rank: its place in the ring.
        nursery: that forks it.
        timeout_s: how long it may neither take nor give anything in the middle of a message.

    Raises:
        LearnerGroupError: the nursery has died.
    """

    def __init__(self, rank: int, nursery: Nursery, timeout_s: float) -> None:
        self.rank = rank
        self.nursery = nursery
        ours, theirs = socket.socketpair()
        self.pulse: socket.socket
        self.descriptors: socket.socket
        self.pulse, their_pulse = socket.socketpair()
        self.descriptors, their_descriptors = socket.socketpair()
        with theirs, their_pulse, their_descriptors:
            # One duplicate each: the child owns what it is sent.
            numbers = [end.fileno() for end in (theirs, their_pulse, their_descriptors)]
            try:
                self.pid: int = nursery.fork(numbers, list(sys.path))
            except BaseException:
                for end in (ours, self.pulse, self.descriptors):
                    end.close()
                raise
        # A learner that is stopped in the middle of a large message must not hold the driver up for ever.
        limit = struct.pack("@ll", int(timeout_s), int(timeout_s % 1 * 1e6))
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            ours.setsockopt(socket.SOL_SOCKET, option, limit)
        self.channel: Connection = Connection(ours.detach())
        self.pulse.setblocking(False)
        self.last_sign: float = time.monotonic()
        self.waiting: bool = False

    def send(self, operation: str, argument: Mapping[str, object]) -> None:
        """Make a request; its answer must be taken before the next."""
        self.waiting = True
        with contextlib.suppress(OSError):  # it has died or stopped; waiting for the answer finds out how
            self.channel.send_bytes(pickle.dumps((operation, dict(argument))))

    def receive(self) -> tuple[bool, Answer]:
        """As :meth:`Member.receive`."""
        try:
            message = self.channel.recv_bytes()
        except OSError as error:
            raise EOFError(str(error)) from error
        try:
            good, answer = pickle.loads(message)
        except Exception as error:  # the other learners' answers are still to be taken
            text = f"what learner {self.rank} answers cannot be read: {type(error).__name__}: {error}"
            return False, (LearnerGroupError(text), traceback.format_exc())
        return bool(good), answer

    def rescue(self) -> None:
        """Ask, past its main thread, for its state before the update that it is held up in."""
        with contextlib.suppress(OSError):
            self.pulse.send(b"r")

    def hear(self) -> None:
        """Take in the signs of life that have come."""
        with contextlib.suppress(OSError):
            while self.pulse.recv(4096):
                self.last_sign = time.monotonic()

    def ending(self, timeout_s: float) -> Ending | None:
        """As :meth:`Member.ending`."""
        code = self.nursery.exit_code(self.pid, timeout_s)
        return None if code is None else Ending(code, _death(code))

    def kill(self) -> None:
        """End it now."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Let go of the sockets; a learner that lives sees that and ends."""
        for end in (self.channel, self.pulse, self.descriptors):
            with contextlib.suppress(OSError):
                end.close()


class ProcessFleet:
    """The processes of one group.

    Args:
        config: frozen configuration.
    """

    def __init__(self, config: AlgorithmSettings) -> None:
        self._config = config
        self._segment = Segment(0)
        self._members: list[ProcessMember] = []
        self._environments: list[dict[str, str]] = []

    def start(self, frameworks: Sequence[str], collective: str) -> Sequence[Member]:
        """As :meth:`Fleet.start`."""
        size = len(frameworks)
        self._environments = [gpu_environment(self._config, rank, size) for rank in range(size)]
        nurseries = [nursery_for(framework, collective) for framework in frameworks]
        self._members = []
        try:
            for rank, nursery in enumerate(nurseries):
                self._members.append(ProcessMember(rank, nursery, self._config.timeout_s))
        except BaseException:
            for member in self._members:
                member.kill()
                member.close()
            raise
        if self._segment.descriptor is not None:
            self._hand_out()
        return self._members

    def build_arguments(self, rank: int) -> dict[str, object]:
        """As :meth:`Fleet.build_arguments`."""
        return {"environment": self._environments[rank], "num_threads": self._config.num_cpus_per_learner}

    def places(self) -> None:
        """As :meth:`Fleet.places`."""

    def put_batch(self, batch: Columns) -> Mapping[str, object]:
        """As :meth:`Fleet.put_batch`."""
        segment, layout, new = self._segment.write(batch)
        if new is not None:
            self._hand_out()
        return {"segment": segment, "layout": layout}

    def _hand_out(self) -> None:
        for member in self._members:
            with contextlib.suppress(OSError):
                self._segment.send(member.descriptors)

    def wait(self, members: Sequence[Any], timeout_s: float) -> Sequence[Any]:
        """As :meth:`Fleet.wait`."""
        ready = wait([member.channel for member in members], timeout=timeout_s)
        return [member for member in members if member.channel in ready]

    def close(self) -> None:
        """As :meth:`Fleet.close`."""
        self._segment.close()


class LocalLauncher:
    """Processes of this machine."""

    name = "local"

    def make_learners(self, config: AlgorithmSettings, env: object) -> Learners:
        """As :meth:`Launcher.make_learners`."""
        if config.launcher_options:
            raise LearnerGroupError(
                f'launcher_options={config.launcher_options!r:.200}: launcher "local" has no options; "ray" and "spmd" '
                "have"
            )
        if not config.num_learners:
            return LocalLearners(config, env)
        if not hasattr(os, "memfd_create"):
            raise ConfigError(f"num_learners={config.num_learners} needs Linux; take num_learners=0 here")
        from .remote import RemoteLearners

        return RemoteLearners(config, env, ProcessFleet(config))


def _death(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"exit code {code}, {signal.Signals(-code).name}"
    except ValueError:
        return f"exit code {code}"


@hookimpl
def learner_core_launcher() -> LocalLauncher:
    """The launcher of local processes."""
    return LocalLauncher()
