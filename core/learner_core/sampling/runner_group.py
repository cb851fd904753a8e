"""Environment runners in this process or in N others, sampled together or each on its own.

Needs a config, complete module specs, and weights before the first fragment. Runners that die or hang are replaced, a
bounded number of times. Everything a runner says is the answer to a request, in order; while answers are awaited three
things are watched: the answers, the ends of the runners, and their signs of life.

What is exact: N runners sampled together are a function of the seed and N; their normalisers' statistics are merged in
runner order after each fragment and go back with the next request.
"""

from __future__ import annotations

import contextlib
import signal
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import cloudpickle

from ..errors import EnvRunnerLostError, LearnerCoreError
from ..plugins.manager import get_manager, notify
from .make_runner import MakePolicy, Runner, Weights, give_weights, make_runner
from .normalize import merge_moments
from .numpy_backend import choose_inference
from .runner_handle import Fragment, RunnerHandle, runner_launcher
from .runner_server import make_setup

__all__ = ["EnvRunnerGroup", "Fragment"]

#: Seconds that runners have to end by themselves before they are killed.
_GRACE_S = 2.0
_TICK_S = 0.25


@dataclass(eq=False)
class _Request:
    """Something asked of a runner.

    ``alone``: nobody waits for it, its fragment is for ``ready``. ``internal``: asked for by the group itself.
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
class _Remote:
    """One runner elsewhere, and what is known of it."""

    handle: RunnerHandle
    pending: deque[_Request] = field(default_factory=deque)
    metrics: dict[str, Any] = field(default_factory=dict)
    #: Its last state without environments; None before its first fragment.
    state: dict[str, Any] | None = None
    num_requested: int = 0
    num_told: int = 0
    knows: int = 0
    #: Steps that were asked of it and lost since ``state``.
    num_steps_lost: int = 0
    #: Fragments that ``ready`` has not handed out yet.
    num_arrived: int = 0


class EnvRunnerGroup:
    """All environment runners of a run.

    Args:
        config: frozen configuration; ``num_env_runners`` says how many processes, 0 samples in this one.
        module_specs: {module_id: RLModuleSpec}, complete.
        make_policy: who answers observations, in this process and in the others; by default the modules in numpy.

    Attributes:
        num_runners: how many sample: at least 1.

    Raises:
        ConfigError: the environment cannot be sent to other processes.
        EnvError: it cannot be made.
        EnvRunnerLostError: the processes die while they are built.
    """

    def __init__(self, config: Any, module_specs: Mapping[str, Any], *, make_policy: MakePolicy | None = None) -> None:
        self._config = config
        self._limit = int(getattr(config, "max_requests_in_flight_per_env_runner", 1))
        self._max_restarts = int(getattr(config, "max_env_runner_restarts", 10))
        self._timeout_s = float(getattr(config, "env_runner_timeout_s", 30.0))
        self._step_timeout_s = float(getattr(config, "env_step_timeout_s", 120.0))
        number = int(getattr(config, "num_env_runners", 0))
        self.num_runners = max(1, number)
        self._local = make_runner(config, module_specs, make_policy=make_policy)
        self._weights: Weights | None = None
        self._version = -1
        self._num_steps = 0
        self._asked = 0
        self._arrived: deque[Fragment] = deque()
        self._failures: list[tuple[Exception, str]] = []
        self._episodes: list[Any] = []
        self._statistics: dict[str, Any] = {}
        self._statistics_version = 0
        self._num_restarts = 0
        self._num_lost = 0
        # Lifetime counts of runners that are no more: of a checkpoint of another number of them.
        self._earlier: dict[str, int] = {}
        self._broken: str | None = None
        self._remotes: list[_Remote] = []
        self._launcher: Any = None
        self._finalizer: Any = None
        if number:
            framework = _framework(config, module_specs) if make_policy is not None else ""
            self._launcher = runner_launcher(config, make_setup(config, module_specs, make_policy), framework)
            try:
                for index in range(number):
                    self._remotes.append(_Remote(self._launcher.start(index + 1), deque([_Request("build", {})])))
                self._await([remote.pending[0] for remote in self._remotes])
            except BaseException:
                self.close()
                raise
            self._finalizer = weakref.finalize(self, _abandon, self._remotes)

    # ------------------------------------------------------------------------------------------------ for everybody

    @property
    def local(self) -> Runner:
        """The runner in this process, with the newest weights: spaces, evaluation, merged statistics."""
        if self._weights is not None:
            give_weights(self._local, self._weights)
            self._weights = None
        return self._local

    @property
    def num_processes(self) -> int:
        """Runners that are processes; 0 if this process samples."""
        return len(self._remotes)

    @property
    def weights_version(self) -> int:
        """Number of the weights that were set last; -1 before the first."""
        return self._version

    def set_weights(self, weights: Weights, *, version: int) -> None:
        """Give all runners new weights; each takes them before its next fragment. Returns at once.

        Args:
            weights: {module_id: {name: array}}; must not change afterwards.
            version: their number, which fragments will carry.
        """
        self._version = int(version)
        self._weights = weights
        if self._launcher is not None:
            self._launcher.publish(weights, self._version)

    def sample(self, num_steps: int, *, explore: bool = True, random_actions: bool = False) -> list[Any]:
        """Sample together: every runner steps its environments with the newest weights.

        Args:
            num_steps: T, steps of each environment.
            explore: sample actions; False takes the most likely ones.
            random_actions: uniformly random actions instead of the policy's.

        Returns:
            One fragment of each runner, in runner order.

        Raises:
            EnvError: an environment failed; the fragments of the others are lost.
            EnvRunnerLostError: processes died or hung more often than allowed.
        """
        if not self._remotes:
            return [self.local.sample(num_steps, explore=explore, random_actions=random_actions)]
        self._drain()
        requests = [self._ask_for_fragment(remote, num_steps, explore, random_actions) for remote in self._remotes]
        answers = self._await(requests)
        self._merge([answer["statistics"] for answer in answers])
        for remote in self._remotes:
            remote.num_told = remote.num_requested
        return [answer["rollout"] for answer in answers]

    def request(self, num_steps: int) -> None:
        """Let every runner sample on its own, one fragment after the other; ``ready`` hands them out.

        As many fragments are under way for each as ``max_requests_in_flight_per_env_runner`` says. May be called again
        and again, with another length too.

        Args:
            num_steps: T of each fragment.
        """
        self._num_steps = int(num_steps)
        if not self._remotes:
            self._asked = 1
        self._top_up()

    def ready(self, timeout_s: float) -> list[Fragment]:
        """The fragments that have come since the last call, in order of arrival.

        Each runner goes on at once, with the newest weights. Without processes, one fragment is sampled here.

        Args:
            timeout_s: how long to wait for the first one, at most.

        Raises:
            EnvError: an environment failed. What came before it is handed out first.
            EnvRunnerLostError: processes died or hung more often than allowed.
        """
        if not self._remotes:
            if not self._arrived and self._asked:
                version = self._version
                self._arrived.append(Fragment(0, version, self.local.sample(self._num_steps)))
        else:
            deadline = time.monotonic() + timeout_s
            self._pump(0.0)
            while not self._arrived and not self._failures and any(remote.pending for remote in self._remotes):
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._pump(min(left, _TICK_S))
        fragments = list(self._arrived)
        self._arrived.clear()
        for remote in self._remotes:
            remote.num_arrived = 0
        if self._failures and not fragments:
            error, trace = self._failures.pop(0)
            raise _with_trace(error, trace)
        self._top_up()
        return fragments

    def metrics(self) -> dict[str, Any]:
        """What happened since the last call, and over the lifetime.

        Returns:
            As ``EnvRunner.metrics``, summed over runners, and ``num_env_runner_restarts_lifetime`` and
            ``num_fragments_lost_lifetime``.
        """
        sources = [remote.metrics for remote in self._remotes] if self._remotes else [self._local.metrics()]
        totals = {name: 0 for name in self._local.metrics() if name != "episodes"} if self._remotes else {}
        episodes, self._episodes = self._episodes, []
        for source in [*sources, self._earlier]:
            episodes += source.get("episodes", [])
            for name, value in source.items():
                if name != "episodes":
                    totals[name] = totals.get(name, 0) + value
        return {
            "episodes": episodes,
            **totals,
            "num_env_runner_restarts_lifetime": self._num_restarts,
            "num_fragments_lost_lifetime": self._num_lost,
        }

    def foreach_runner(self, function: Callable[[Any], Any]) -> list[Any]:
        """``[function(runner)]`` of the runners that sample, in runner order; function and answers are pickled."""
        if not self._remotes:
            return [function(self.local)]
        self._drain()
        pickled = cloudpickle.dumps(function)
        return self._await([self._send(remote, "call", {"function": pickled}) for remote in self._remotes])

    def close(self) -> None:
        """End all runners: in order where they answer, by force where they do not. Bounded; may be called twice."""
        if self._broken is None:
            self._broken = "it has been closed"
        remotes, self._remotes[:] = list(self._remotes), []
        for remote in remotes:
            remote.handle.send("stop", {})
        deadline = time.monotonic() + _GRACE_S
        for remote in remotes:
            if remote.handle.exit_code(max(deadline - time.monotonic(), 0.0)) is None:
                remote.handle.kill()
        for remote in remotes:
            remote.handle.kill()  # what its environments have started
            remote.handle.close()
            remote.handle.exit_code(_GRACE_S)
        if self._launcher is not None:
            self._launcher.close()
        if self._finalizer is not None:
            self._finalizer.detach()
        self._local.close()

    # ---------------------------------------------------------------------------------------------- requests, answers

    def _send(self, remote: _Remote, operation: str, argument: dict[str, Any], *, alone: bool = False) -> _Request:
        if self._broken is not None:
            raise EnvRunnerLostError(f"these environment runners are of no more use: {self._broken}; build new ones")
        request = _Request(operation, argument, alone)
        if not remote.pending:
            remote.handle.last_sign = remote.handle.last_move = time.monotonic()
        remote.pending.append(request)
        remote.handle.send(operation, argument)
        return request

    def _ask_for_fragment(
        self, remote: _Remote, num_steps: int, explore: bool = True, random_actions: bool = False, alone: bool = False
    ) -> _Request:
        remote.num_requested += 1
        news = self._statistics and remote.knows != self._statistics_version
        remote.knows = self._statistics_version
        argument = {
            "number": remote.num_requested,
            "num_steps": num_steps,
            "explore": explore,
            "random_actions": random_actions,
            "statistics": self._statistics if news else None,
            "includes": remote.num_told,
        }
        return self._send(remote, "sample", argument, alone=alone)

    def _top_up(self) -> None:
        """Have as many fragments under way, or waiting to be handed out, as each runner may."""
        if not self._num_steps:
            return
        for remote in self._remotes:
            while len(remote.pending) + remote.num_arrived < self._limit:
                self._ask_for_fragment(remote, self._num_steps, alone=True)

    def _await(self, requests: list[_Request]) -> list[Any]:
        """The answers to requests, in order; raises what the first that failed raised."""
        try:
            while not all(request.done for request in requests):
                self._pump(_TICK_S)
        except BaseException:
            for request in requests:
                request.abandoned = True
            raise
        for request in requests:
            if request.failure is not None:
                self._num_lost += sum(other.failure is None for other in requests if other.operation == "sample")
                raise _with_trace(*request.failure)
        return [request.answer for request in requests]

    def _drain(self) -> None:
        """Wait until no runner is doing anything; fragments sampled for ``ready`` are kept for it."""
        while any(remote.pending for remote in self._remotes):
            self._pump(_TICK_S)

    def _pump(self, timeout_s: float) -> None:
        """Take what has come, waiting for it at most so long; replace who is lost."""
        if self._broken is not None:
            raise EnvRunnerLostError(f"these environment runners are of no more use: {self._broken}; build new ones")
        self._launcher.wait([remote.handle for remote in self._remotes], timeout_s)
        for remote in self._remotes:
            for good, answer in remote.handle.poll():
                self._take(remote, good, answer)
            handle, now = remote.handle, time.monotonic()
            if handle.ended:
                self._replace(remote, "died")
            elif remote.pending and now - handle.last_sign > self._timeout_s:
                self._replace(remote, f"gave no sign of life for {self._timeout_s:g} s (env_runner_timeout_s)")
            elif remote.pending and now - handle.last_move > self._step_timeout_s:
                what = remote.pending[0].operation
                limit = f"{self._step_timeout_s:g} s (env_step_timeout_s)"
                self._replace(remote, f"did not get on for {limit} during {what}: an environment hangs")

    def _take(self, remote: _Remote, good: bool, answer: Any) -> None:
        """Match an answer with its request."""
        request = remote.pending.popleft()
        remote.handle.last_move = time.monotonic()
        request.done = True
        if not good:
            request.failure = answer
            if request.internal:
                raise _with_trace(*answer)
            if request.alone:
                self._failures.append(answer)
            return
        request.answer = answer
        if request.operation != "sample":
            return
        remote.metrics, remote.state = answer["metrics"], answer["state"]
        remote.num_steps_lost = 0
        self._episodes.extend(remote.metrics.pop("episodes"))
        if request.alone or request.abandoned:
            self._merge([answer["statistics"]])
            remote.num_told = request.argument["number"]
        if request.abandoned:
            self._num_lost += 1
        elif request.alone:
            index = remote.handle.worker_index
            self._arrived.append(Fragment(index, answer["weights_version"], answer["rollout"]))
            remote.num_arrived += 1

    def _merge(self, statistics: list[Mapping[str, Any]]) -> None:
        if any(statistics):
            self._statistics = merge_moments(self._statistics, *statistics)
            self._statistics_version += 1
            self._local.set_statistics(self._statistics)

    # ------------------------------------------------------------------------------------------------------- losses

    def _replace(self, remote: _Remote, what: str) -> None:
        """A new runner for one that is lost; what it had been asked for is asked again.

        Raises:
            EnvRunnerLostError: that has happened too often.
        """
        handle, index = remote.handle, remote.handle.worker_index
        handle.kill()
        code = handle.exit_code(_GRACE_S)
        handle.close()
        cause = f" ({_death(code)})" if what == "died" and code is not None else ""
        text = f"environment runner {index} of {len(self._remotes)} {what}{cause}"
        notify(get_manager(), "env_runner_lost", worker_index=index, exitcode=code, reason=text)
        again = [request for request in remote.pending if not request.abandoned]
        if remote.pending and remote.pending[0].operation == "sample":
            self._num_lost += 1
            remote.num_steps_lost += remote.pending[0].argument["num_steps"]
        if self._num_restarts >= self._max_restarts:
            self._broken = text
            for other in self._remotes:
                other.handle.kill()
            raise EnvRunnerLostError(
                f"{text}; max_env_runner_restarts={self._max_restarts} restarts are used up",
                worker_index=index,
                exitcode=code,
            )
        self._num_restarts += 1
        remote.handle = self._launcher.start(index)
        remote.handle.last_sign = remote.handle.last_move = time.monotonic()
        building = again[0] if again and again[0].operation == "build" else _Request("build", {}, internal=True)
        remote.pending.clear()
        remote.pending.append(building)
        steps = 0 if remote.state is None else int(remote.state["num_vector_steps"])
        start = {"state": remote.state, "num_vector_steps": steps + max(remote.num_steps_lost, 1)}
        self._send(remote, "restart", start).internal = True
        remote.num_steps_lost = max(remote.num_steps_lost, 1)
        for request in again:
            if request is building or request.operation == "restart":
                continue
            if request.operation == "sample":
                request.argument.update(statistics=self._statistics or None, includes=remote.num_told)
            remote.pending.append(request)
            remote.handle.send(request.operation, request.argument)
        notify(get_manager(), "env_runner_restarted", worker_index=index, num_restarts=self._num_restarts)


def _framework(config: Any, module_specs: Mapping[str, Any]) -> str:
    """The backend that answers observations, or "" if numpy does."""
    setting = getattr(config, "inference", "auto")
    chosen = {choose_inference(spec, setting=setting) for spec in module_specs.values()}
    return str(config.framework_name) if "backend" in chosen else ""


def _with_trace(error: Exception, trace: str) -> Exception:
    error.add_note(f"raised in an environment runner; its traceback:\n{trace}")
    return error


def _abandon(remotes: list[_Remote]) -> None:
    for remote in remotes:
        with contextlib.suppress(LearnerCoreError):
            remote.handle.kill()


def _death(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"exit code {code}, {signal.Signals(-code).name}"
    except ValueError:
        return f"exit code {code}"
