"""What a group of runners asks of whoever starts them: processes of this machine, or actors elsewhere.

A launcher of another kind (entry-point group ``learner_core.launchers``) has a method ``make_env_runners(config, setup,
framework) -> RunnerLauncher``; without it, runners are processes of this machine. On the other side, a
``learner_core.sampling.runner_server.RunnerServer`` does the work: one ``handle(operation, argument)`` per request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..config.algorithm_settings import AlgorithmSettings
from ..errors import ConfigError
from .local_runners import LocalRunners
from .make_runner import Weights
from .rollout import Sampled
from .runner_server import Answer, Argument

__all__ = ["Fragment", "RunnerHandle", "RunnerLauncher", "runner_launcher"]


@dataclass(slots=True)
class Fragment:
    """What one runner sampled on its own.

    Attributes:
        worker_index: Which runner; 0 is the one in the driver, those in processes count from 1.
        weights_version: Number of the weights that acted.
        rollout: A ``Rollout``, or {module_id: Rollout}.
    """

    worker_index: int
    weights_version: int
    rollout: Sampled


class RunnerHandle(Protocol):
    """The driver's end of one runner.

    Attributes:
        worker_index: Which one, from 1.
        ended: Its answers have ended: it died.
        last_sign: ``time.monotonic()`` of the last sign of life, as of the last ``poll``.
        last_move: The same of the last sign that its environments get on. Both may be set from outside.
    """

    worker_index: int
    ended: bool
    last_sign: float
    last_move: float

    def send(self, operation: str, argument: Argument) -> None:
        """Make a request for ``RunnerServer.handle``, or "stop"; never waits, never raises. Answers come in order."""

    def poll(self) -> list[Answer]:
        """What ``RunnerServer.handle`` returned for requests that are done since the last call; does not wait."""

    def exit_code(self, timeout_s: float) -> int | None:
        """How it ended, negative for a signal; None if that is not known within the timeout."""

    def kill(self) -> None:
        """End it now, even one that is stopped, and all that it started; does not wait, never raises."""

    def close(self) -> None:
        """Let go of what the driver holds; a runner that still lives ends by that."""


class RunnerLauncher(Protocol):
    """Starts runners and brings weights to them."""

    def start(self, worker_index: int) -> RunnerHandle:
        """Start a runner, do not wait for it. "build" has been requested: its answer is the first to come. Called again
        with the same index after a loss; it has the weights published last."""

    def renew(self, setup: bytes) -> None:
        """Start runners from this setup from now on; those that live have been told by other means."""

    def publish(self, weights: Weights, version: int) -> None:
        """Make these the weights that every runner takes before its next fragment; never waits for a runner.

        Args:
            weights: {module_id: {name: array}}; may change after the call.
            version: their number.
        """

    def wait(self, handles: Sequence[RunnerHandle], timeout_s: float) -> None:
        """Until one of ``handles`` has something to ``poll`` or has ended, or the time is over."""

    def close(self) -> None:
        """Release what the runners shared, when all are gone."""


def runner_launcher(config: AlgorithmSettings, setup: bytes, framework: str) -> RunnerLauncher:
    """The launcher that ``config.launcher`` names, if it starts environment runners; else the one of this machine.

    Args:
        config: frozen configuration.
        setup: what ``make_setup`` returned.
        framework: backend that answers observations in the runners; "" if numpy does.

    Raises:
        ConfigError: runners as processes need Linux.
        PluginNotFoundError: no such launcher.
    """
    if config.launcher:
        from ..plugins import discovery

        named = discovery.load("learner_core.launchers", config.launcher)
        if hasattr(named, "make_env_runners"):
            launcher: RunnerLauncher = named.make_env_runners(config, setup, framework)
            return launcher
    import os

    if not hasattr(os, "memfd_create"):
        raise ConfigError(f"num_env_runners={config.num_env_runners} needs Linux; take num_env_runners=0 here")
    return LocalRunners(config, setup, framework)
