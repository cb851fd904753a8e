"""Environment runners as Ray actors: what ``local_runners`` does on one machine, over a cluster.

Needs Ray (``pip install "learner-core[ray]"``) where runners are started. Weights are one object of Ray's store for all
runners: its reference goes with each request for a fragment, and at once to a runner that is sampling, so that it takes
the newest before its next fragment. Fragments come back as objects, copied once out of the store.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Sequence
from typing import Any

from ..config.algorithm_settings import AlgorithmSettings
from ..errors import EnvError
from ..group.ray.actor import Actor, start_actor, wait_for
from ..group.ray.cluster import RayOptions, connect, describe_room, import_ray
from ..group.ray.own import hold, release
from .make_runner import Weights
from .runner_server import Answer, Argument, RunnerServer

__all__ = ["RayRunners", "RunnerActor", "RunnerWorker"]

#: (serial number, version, [reference]): weights that are on their way.
Posted = tuple[int, int, list[Any]]


class RunnerWorker:
    """Lives in the actor: a ``RunnerServer`` that finds its weights in Ray's store.

    Args:
        framework: backend that answers observations; "" if numpy does.
        fetch_timeout_s: for weights to come from another machine.
    """

    def __init__(self, framework: str, fetch_timeout_s: float) -> None:
        if framework:
            from ..plugins import discovery

            discovery.load("learner_core.backends", framework).limit_threads(1)
        self._fetch_timeout_s = fetch_timeout_s
        self._posted: Posted | None = None
        self._posting = threading.Lock()
        self._taken = 0
        self._server = RunnerServer(self._newest)

    @property
    def progress(self) -> int:
        """Changes as long as environments step."""
        return self._server.progress

    def post(self, weights: Posted) -> None:
        """There are newer weights; called from another thread than ``handle``."""
        with self._posting:  # from two threads; the newest stay
            if self._posted is None or weights[0] > self._posted[0]:
                self._posted = weights

    def handle(self, operation: str, argument: Argument) -> Answer:
        """As ``RunnerServer.handle``; a request for a fragment brings the newest weights with it."""
        if operation == "close":
            self._server.close()
            return True, None
        own = dict(argument)
        if operation == "build":
            (reference,) = own["setup"]
            own["setup"] = import_ray().get(reference, timeout=self._fetch_timeout_s)
        weights = own.pop("weights", None)
        if weights is not None:
            self.post(weights)
        return self._server.handle(operation, own)

    def _newest(self) -> tuple[int, Weights] | None:
        posted = self._posted
        if posted is None or posted[0] <= self._taken:
            return None
        serial, version, (reference,) = posted
        ray = import_ray()
        try:
            weights = ray.get(reference, timeout=self._fetch_timeout_s)
        except ray.exceptions.RayError as error:
            raise EnvError(f"weights did not come from Ray's object store: {type(error).__name__}: {error}") from error
        self._taken = serial
        return version, weights


class RunnerActor(Actor):
    """The driver's end of one runner; a ``RunnerHandle``.

    Args:
        worker_index: which runner it is.
        handle: of the actor.
        launcher: whose newest weights it takes.
    """

    def __init__(self, worker_index: int, handle: Any, launcher: RayRunners) -> None:
        super().__init__(handle)
        self.worker_index = worker_index
        self.ended: bool = False
        self._launcher = launcher

    def send(self, operation: str, argument: Argument) -> None:
        """As ``RunnerHandle.send``."""
        if operation == "sample" and self._launcher.newest is not None:
            argument = {**argument, "weights": self._launcher.newest}
        self.ask(operation, argument)

    def poll(self) -> list[Answer]:
        """As ``RunnerHandle.poll``.

        Raises:
            EnvError: Ray has not started it in ``start_timeout_s``.
        """
        self.hear()
        if not self.pid:
            self._await_room()
        ray = import_ray()
        answers = []
        while self.answers and not self.ended and ray.wait([self.answers[0]], timeout=0)[0]:
            try:
                answers.append(self.take())
            except EOFError:
                self.ended = True
        self.ended = self.ended or bool(ray.wait([self.live], timeout=0)[0])
        return answers

    def _await_room(self) -> None:
        """Until its process runs, its silence means that Ray is looking for a place."""
        self.last_sign: float = time.monotonic()
        self.last_move: float = self.last_sign
        limit = self._launcher.options.start_timeout_s
        if self.last_sign - self.started > limit:
            raise EnvError(
                f"Ray has not started environment runner {self.worker_index} in {limit:g} s: there is no room for it, "
                f"or its process starts slowly. {describe_room()}"
            )

    def exit_code(self, timeout_s: float) -> int | None:
        """As ``RunnerHandle.exit_code``: waits for its end; Ray tells no exit codes."""
        self.ending(timeout_s)
        return None


class RayRunners:
    """Starts runners as Ray actors; a ``RunnerLauncher``.

    Args:
        config: frozen configuration; ``launcher_options`` as of ``launcher="ray"``.
        setup: what ``make_setup`` returned.
        framework: the backend that answers observations in the runners; "" if numpy does.

    Raises:
        LearnerGroupError: Ray is not installed or not reachable, or an option is none.
    """

    def __init__(self, config: AlgorithmSettings, setup: bytes, framework: str) -> None:
        self.options: RayOptions = RayOptions.of(config.launcher_options)
        num_cpus = self.options.num_cpus_of_runners(config)
        self._ray = connect(self.options, num_cpus)
        hold(self, num_cpus)
        self._setup: Any = self._ray.put(setup)
        self._framework = framework
        self._handles: dict[int, RunnerActor] = {}
        self._serial = 0
        #: The weights published last.
        self.newest: Posted | None = None

    def start(self, worker_index: int) -> RunnerActor:
        """As ``RunnerLauncher.start``."""
        handle = start_actor(
            functools.partial(RunnerWorker, self._framework, self.options.fetch_timeout_s),
            num_cpus=self.options.num_cpus_per_env_runner,
            resources=self.options.env_runner_resources or None,
        )
        actor = self._handles[worker_index] = RunnerActor(worker_index, handle, self)
        actor.ask("build", {"setup": [self._setup], "worker_index": worker_index})
        return actor

    def renew(self, setup: bytes) -> None:
        """As ``RunnerLauncher.renew``."""
        self._setup = self._ray.put(setup)

    def publish(self, weights: Weights, version: int) -> None:
        """As ``RunnerLauncher.publish``."""
        self._serial += 1
        self.newest = (self._serial, version, [self._ray.put(weights)])
        for actor in self._handles.values():
            if actor.answers:  # it is at work; who is not gets them with its next request
                actor.post(self.newest)

    def wait(self, handles: Sequence[Any], timeout_s: float) -> None:
        """As ``RunnerLauncher.wait``."""
        wait_for(handles, timeout_s)

    def close(self) -> None:
        """As ``RunnerLauncher.close``."""
        self._handles.clear()
        self.newest = self._setup = None
        release(self)
