"""Environments that fail on purpose, groups of runners, and what they leave behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from .sampling import SPEC, CountEnv, runner_config

SPECS = {"default_policy": SPEC}
#: Bound of what is to take bounded time: generous, for a machine may be busy; far below the minutes of a hang.
BOUND_S = 60.0


class FaultyEnv(CountEnv):
    """Does something once per machine (a file remembers it), in a step of one environment.

    Args:
        fault: "kill", "stop", "hang", "raise", "always" (raises in every step), "child" (starts a process), or None.
        once: path of the file.
        step: how many steps before that.
    """

    def __init__(self, fault: str | None = None, once: str = "", step: int = 5) -> None:
        super().__init__(length=7)
        self.fault, self.once, self.step_of_fault = fault, once, step
        self.total = 0

    def step(self, action: Any) -> Any:
        self.total += 1
        if self.fault == "always":
            raise ValueError("this environment never works")
        if self.fault is not None and self.total >= self.step_of_fault and self._first():
            if self.fault == "hang":
                time.sleep(1000)
            if self.fault == "raise":
                raise ValueError("this environment failed once")
            if self.fault == "child":
                _ = os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "1000")
            else:
                os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[self.fault])
        return super().step(action)

    def _first(self) -> bool:
        try:
            os.close(os.open(self.once, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


def faulty(**settings: Any) -> Callable[[Any], Any]:
    """A callable for ``env``."""
    return lambda config: FaultyEnv(**settings)


def group_config(env: Any, number: int = 2, num_envs: int = 2, **settings: Any) -> Any:
    """What an EnvRunnerGroup reads of a config."""
    return runner_config(env, num_envs, num_env_runners=number, seed=7, **settings)


def weights(seed: int = 1) -> Any:
    """{module_id: {name: array}} for ``SPECS``."""
    from learner_core import numpy_xp

    module = SPEC.filled(
        module_class=None,
        observation_space=CountEnv().observation_space,
        action_space=CountEnv().action_space,
        model=None,
    ).build(numpy_xp)
    return {"default_policy": module.init(np.random.default_rng(seed))}


def group_of(env: Any, number: int = 2, num_envs: int = 2, **settings: Any) -> Any:
    """A group with weights of its own spaces, version 0."""
    from learner_core.sampling.runner_group import EnvRunnerGroup

    group = EnvRunnerGroup(group_config(env, number, num_envs, **settings), SPECS)
    group.set_weights({"default_policy": group.local.policy.module.init(np.random.default_rng(1))}, version=0)
    return group


def pids(group: Any) -> list[int]:
    """Process ids of a group's runners."""
    return [] if group._elsewhere is None else [remote.handle.pid for remote in group._elsewhere.remotes]


def running(numbers: Iterable[int]) -> list[int]:
    """Those processes that are still there."""
    return [pid for pid in numbers if os.path.exists(f"/proc/{pid}")]


def gone(numbers: Iterable[int], timeout_s: float = 60.0) -> bool:
    """Whether these processes end within the timeout."""
    numbers, deadline = list(numbers), time.monotonic() + timeout_s
    while running(numbers) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not running(numbers)
