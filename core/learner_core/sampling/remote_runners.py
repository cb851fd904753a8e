"""Runners elsewhere: requests and answers, who is lost, who takes their place.

Needs a ``RunnerLauncher``. Everything a runner says is the answer to a request, in order. While answers are awaited,
three things are watched: the answers, the ends of the runners (noticed at once, whatever killed them), and their signs
of life, that the process runs and that its environments get on. A lost runner is replaced, a bounded number of times.
docs/decisions/environment-runners.md says why.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..config.algorithm_settings import AlgorithmSettings
from ..errors import EnvRunnerLostError, LearnerCoreError
from ..plugins.manager import notify
from ..plugins.registry import get_manager
from ..state.tree import Plain
from .rebuilding import warn
from .runner_handle import RunnerHandle, RunnerLauncher
from .runner_server import Argument

__all__ = ["Remote", "RemoteRunners", "Request", "with_trace"]

#: Seconds that runners have to end by themselves before they are killed.
_GRACE_S = 2.0
_TICK_S = 0.25


@dataclass(eq=False)
class Request:
    """Something asked of a runner.

    ``alone``: nobody waits for it. ``internal``: asked for by the replacement of a runner. ``abandoned``: whoever
    waited for it was interrupted. ``failure``: the exception and its traceback over there.
    """

    operation: str
    argument: dict[str, Any]
    alone: bool = False
    internal: bool = False
    abandoned: bool = False
    done: bool = False
    answer: Any = None
    failure: tuple[Exception, str] | None = None


@dataclass(eq=False)
class Remote:
    """One runner elsewhere, and what the driver knows of it.

    ``state`` is its last one without environments, None before its first fragment: what a replacement goes on from.
    """

    handle: RunnerHandle
    pending: deque[Request] = field(default_factory=deque)
    metrics: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] | None = None
    #: Fragments asked for; the last of them whose statistics are merged; the merged statistics it was sent last.
    num_requested: int = 0
    num_told: int = 0
    knows: int = 0
    #: Steps that were asked of it and lost since ``state``.
    num_steps_lost: int = 0
    #: Fragments that have come and nobody has taken.
    num_arrived: int = 0


class RemoteRunners:
    """Runners that a launcher starts.

    Args:
        config: ``max_env_runner_restarts``, ``env_runner_timeout_s``, ``env_step_timeout_s``.
        launcher: starts them.
        number: how many.
        sampled: called with every fragment that comes (the answer to "sample").
        renewed: called with a "sample" that is asked for again after a loss; may change its argument.

    Attributes:
        remotes: in runner order.
        num_restarts, num_lost: replaced runners and lost fragments over the lifetime.
        failures: what requests that stood alone raised.
        broken: why these runners are of no more use; None while they are.

    Raises:
        EnvError: an environment cannot be made.
        EnvRunnerLostError: processes die while they are built.
    """

    def __init__(
        self,
        config: AlgorithmSettings,
        launcher: RunnerLauncher,
        number: int,
        *,
        sampled: Callable[[Remote, Request], None],
        renewed: Callable[[Remote, Request], None],
    ) -> None:
        self._max_restarts = int(config.max_env_runner_restarts)
        self._timeout_s = float(config.env_runner_timeout_s)
        self._step_timeout_s = float(config.env_step_timeout_s)
        self._launcher = launcher
        self._sampled, self._renewed = sampled, renewed
        self.remotes: list[Remote] = []
        self.num_restarts: int = 0
        self.num_lost: int = 0
        self.failures: list[tuple[Exception, str]] = []
        self.broken: str | None = None
        try:
            for index in range(number):
                self.remotes.append(Remote(launcher.start(index + 1), deque([Request("build", {})])))
            self.wait_for([remote.pending[0] for remote in self.remotes])
        except BaseException:
            self.close()
            raise

    def send(self, remote: Remote, operation: str, argument: Argument, *, alone: bool = False) -> Request:
        """Ask a runner for something; ``wait_for`` or ``pump`` take the answer."""
        self._check()
        request = Request(operation, dict(argument), alone)
        if not remote.pending:
            remote.handle.last_sign = remote.handle.last_move = time.monotonic()
        remote.pending.append(request)
        remote.handle.send(operation, request.argument)
        return request

    def ask(self, operation: str, arguments: Sequence[Argument]) -> list[Any]:
        """Ask all runners and wait: their answers in runner order."""
        pairs = zip(self.remotes, arguments, strict=True)
        return self.wait_for([self.send(remote, operation, argument) for remote, argument in pairs])

    def wait_for(self, requests: Sequence[Request]) -> list[Any]:
        """The answers to requests, in order; raises what the first that failed raised, when all are done."""
        try:
            while not all(request.done for request in requests):
                self.pump(_TICK_S)
        except BaseException:
            for request in requests:
                request.abandoned = True  # counted as lost when it comes; what has come is lost now
                self.num_lost += request.done and request.failure is None and request.operation == "sample"
            raise
        for request in requests:
            if request.failure is not None:
                self.num_lost += sum(other.failure is None for other in requests if other.operation == "sample")
                raise with_trace(*request.failure)
        return [request.answer for request in requests]

    def drain(self) -> None:
        """Wait until no runner is doing anything."""
        while self.busy:
            self.pump(_TICK_S)

    @property
    def busy(self) -> bool:
        """Whether answers are to come."""
        return any(remote.pending for remote in self.remotes)

    def pump(self, timeout_s: float) -> None:
        """Take what has come, waiting for it at most so long; replace who is lost."""
        self._check()
        self._launcher.wait([remote.handle for remote in self.remotes], min(timeout_s, _TICK_S))
        for remote in self.remotes:
            handle = remote.handle
            for good, answer in handle.poll():
                self._take(remote, good, answer)
                if remote.handle is not handle:
                    break  # replaced meanwhile: what it still said is of no use
            if remote.handle is not handle:
                continue
            now = time.monotonic()
            if handle.ended:
                self._replace(remote, "died")
            elif remote.pending and now - handle.last_sign > self._timeout_s:
                self._replace(remote, f"gave no sign of life for {self._timeout_s:g} s (env_runner_timeout_s)")
            elif remote.pending and now - handle.last_move > self._step_timeout_s:
                what = remote.pending[0].operation
                limit = f"{self._step_timeout_s:g} s (env_step_timeout_s)"
                self._replace(remote, f"did not get on for {limit} during {what}: an environment hangs")

    def _check(self) -> None:
        if self.broken is not None:
            raise EnvRunnerLostError(f"these environment runners are of no more use: {self.broken}; build new ones")

    def _take(self, remote: Remote, good: bool, answer: Plain) -> None:
        """Match an answer with its request."""
        request = remote.pending.popleft()
        remote.handle.last_move = time.monotonic()
        request.done = True
        if not good:
            request.failure = answer
            if request.internal:
                self._replace(remote, f"could not be built again: {type(answer[0]).__name__}: {answer[0]}")
            elif request.alone:
                self.failures.append(answer)
            return
        request.answer = answer
        if request.operation in ("sample", "set_state", "restart"):
            remote.metrics, remote.state = answer["metrics"], answer["state"]
            remote.num_steps_lost = 0 if request.operation != "restart" else remote.num_steps_lost
        if request.operation == "sample":
            self.num_lost += request.abandoned
            self._sampled(remote, request)
        for text in answer.get("warnings", ()) if isinstance(answer, dict) else ():
            warn(text)

    def _replace(self, remote: Remote, what: str) -> None:
        """A new runner for one that is lost; what it had been asked for is asked again.

        Raises:
            EnvRunnerLostError: that has happened too often.
        """
        handle, index = remote.handle, remote.handle.worker_index
        handle.kill()
        code = handle.exit_code(_GRACE_S)
        handle.close()
        cause = f" ({_death(code)})" if what == "died" and code is not None else ""
        text = f"environment runner {index} of {len(self.remotes)} {what}{cause}"
        notify(get_manager(), "env_runner_lost", worker_index=index, exitcode=code, reason=text)
        if remote.pending and remote.pending[0].operation == "sample":
            self.num_lost += 1
            remote.num_steps_lost += remote.pending[0].argument["num_steps"]
        if self.num_restarts >= self._max_restarts:
            self.broken = text
            kill_all(self.remotes)
            raise EnvRunnerLostError(
                f"{text}; max_env_runner_restarts={self._max_restarts} restarts are used up",
                worker_index=index,
                exitcode=code,
            )
        self.num_restarts += 1
        again = [request for request in remote.pending if not request.abandoned and not request.internal]
        building = again.pop(0) if again and again[0].operation == "build" else Request("build", {}, internal=True)
        try:
            remote.handle = self._launcher.start(index)
        except BaseException as error:
            self.broken = f"{text}, and no other could be started: {type(error).__name__}: {error}"
            kill_all(self.remotes)
            raise
        remote.handle.last_sign = remote.handle.last_move = time.monotonic()
        remote.pending.clear()
        remote.pending.append(building)
        # New episodes, with noise and seeds that were not used before: the lost fragment's count as used.
        remote.num_steps_lost = max(remote.num_steps_lost, 1)
        steps = 0 if remote.state is None else int(remote.state["num_vector_steps"])
        start = {"state": remote.state, "num_vector_steps": steps + remote.num_steps_lost}
        self.send(remote, "restart", start).internal = True
        for request in again:
            if request.operation == "sample":
                self._renewed(remote, request)
            remote.pending.append(request)
            remote.handle.send(request.operation, request.argument)
        notify(get_manager(), "env_runner_restarted", worker_index=index, num_restarts=self.num_restarts)

    def close(self) -> None:
        """End all runners: in order where they answer, by force where they do not. Bounded; may be called twice."""
        if self.broken is None:
            self.broken = "they have been closed"
        remotes, self.remotes[:] = list(self.remotes), []
        for remote in remotes:
            remote.handle.send("stop", {})
        deadline = time.monotonic() + _GRACE_S
        for remote in remotes:
            remote.handle.exit_code(max(deadline - time.monotonic(), 0.0))
        kill_all(remotes)  # who is left, and what their environments have started
        for remote in remotes:
            remote.handle.close()
            remote.handle.exit_code(_GRACE_S)
        self._launcher.close()


def kill_all(remotes: Sequence[Remote]) -> None:
    """End runners that nobody will close any more."""
    for remote in remotes:
        with contextlib.suppress(LearnerCoreError):
            remote.handle.kill()


def with_trace(error: Exception, trace: str) -> Exception:
    """The exception, with the traceback it had where it was raised."""
    error.add_note(f"raised in an environment runner; its traceback:\n{trace}")
    return error


def _death(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"exit code {code}, {signal.Signals(-code).name}"
    except ValueError:
        return f"exit code {code}"
