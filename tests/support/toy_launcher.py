"""A third party's launcher, complete: learners are spawned processes, everything goes through two pipes.

It uses nothing but learner_core.group.launchers, .remote, .local and .worker.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import cloudpickle

from learner_core.group.launchers import Ending, Learners, Member
from learner_core.group.local import LocalLearners
from learner_core.group.remote import RemoteLearners
from learner_core.group.worker import LearnerWorker
from learner_core.plugins.hookspecs import hookimpl

_SPAWN = multiprocessing.get_context("spawn")


def _serve(requests: Connection, pulse: Connection) -> None:
    def live() -> None:
        while True:
            pulse.send_bytes(b".")
            time.sleep(0.5)

    threading.Thread(target=live, daemon=True).start()
    worker = LearnerWorker()
    while True:
        try:
            operation, argument = cloudpickle.loads(requests.recv_bytes())
        except EOFError:
            return
        if operation == "stop":
            worker.close()
            return
        requests.send_bytes(cloudpickle.dumps(worker.handle(operation, argument)))


class ToyMember:
    """As learner_core.group.launchers.Member."""

    def __init__(self, rank: int) -> None:
        self.rank, self.waiting, self.last_sign = rank, False, time.monotonic()
        self.requests, theirs = _SPAWN.Pipe()
        self.pulse, their_pulse = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_serve, args=(theirs, their_pulse), daemon=True)
        self.process.start()
        theirs.close()
        their_pulse.close()
        self.pid = self.process.pid or 0

    def send(self, operation: str, argument: Mapping[str, Any]) -> None:
        self.waiting = True
        with contextlib.suppress(OSError):
            self.requests.send_bytes(cloudpickle.dumps((operation, argument)))

    def receive(self) -> tuple[bool, Any]:
        try:
            good, answer = cloudpickle.loads(self.requests.recv_bytes())
        except OSError as error:
            raise EOFError from error
        return good, answer

    def hear(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            while self.pulse.poll():
                self.pulse.recv_bytes()
                self.last_sign = time.monotonic()

    def ending(self, timeout_s: float) -> Ending | None:
        self.process.join(timeout_s)
        code = self.process.exitcode
        return None if code is None else Ending(code, f"exit code {code}")

    def kill(self) -> None:
        self.process.kill()

    def close(self) -> None:
        self.requests.close()
        self.pulse.close()


class ToyFleet:
    """As learner_core.group.launchers.Fleet; batches go with the requests."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.closed = False

    def start(self, frameworks: Sequence[str], collective: str) -> Sequence[Member]:
        return [ToyMember(rank) for rank in range(len(frameworks))]

    def build_arguments(self, rank: int) -> dict[str, Any]:
        return {"environment": {"TOY_RANK": str(rank)}, "num_threads": 1}

    def places(self) -> None:
        return None

    def put_batch(self, batch: Any) -> Mapping[str, Any]:
        return {"batch": batch}

    def wait(self, members: Sequence[Any], timeout_s: float) -> Sequence[Any]:
        ready = wait([member.requests for member in members], timeout_s)
        return [member for member in members if member.requests in ready]

    def close(self) -> None:
        self.closed = True


class ToyLauncher:
    """As learner_core.group.launchers.Launcher."""

    name = "toy"

    def make_learners(self, config: Any, env: Any) -> Learners:
        if not config.num_learners:
            return LocalLearners(config, env)
        return RemoteLearners(config, env, ToyFleet(config))


@hookimpl
def learner_core_launcher() -> ToyLauncher:
    return ToyLauncher()
