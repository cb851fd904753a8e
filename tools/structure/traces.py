"""Two fixed calls, traced: how many files an update passes, and how many a step of an environment.

Each is warmed up first, so that what happens once does not count.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

import numpy as np

from .sources import PACKAGES

if TYPE_CHECKING:
    from learner_core import AlgorithmConfig

__all__ = ["Trace", "environment_step", "in_words", "trace", "update"]

_ROWS = 8
_COMPREHENSION = r"(\.<locals>\.<(listcomp|dictcomp|setcomp|genexpr)>)+$"


@dataclass(frozen=True)
class Trace:
    """What ran.

    Attributes:
        files: every file of the project in which a function was called, in the order of the first call.
        moves: (caller, called) of every pair of functions in different files, in the order of the first call; a
            function is ``file:name``.
        calls: (depth, function) of every call, in order.
    """

    files: list[str]
    moves: list[tuple[str, str]]
    calls: list[tuple[int, str]]


def trace(call: Callable[[], object]) -> Trace:
    """Call it and note every function of the project that runs meanwhile, in this thread."""
    roots = {f"{folder / package}/": f"{package}/" for package, folder in PACKAGES.items()}
    stack: list[str] = []
    calls: list[tuple[int, str]] = []
    moves: dict[tuple[str, str], None] = {}
    files: dict[str, None] = {}

    def note(frame: FrameType, event: str, _: object) -> None:
        if event not in ("call", "return"):
            return
        path = frame.f_code.co_filename
        package = next((name for root, name in roots.items() if path.startswith(root)), None)
        if package is None:
            return
        if event == "return":
            if stack:
                stack.pop()
            return
        file = package + path.split(f"/{package}", 1)[1]
        # What a comprehension calls is called by the function that it stands in.
        function = f"{file}:{re.sub(_COMPREHENSION, '', frame.f_code.co_qualname)}"
        if stack and stack[-1].split(":")[0] != file:
            moves.setdefault((stack[-1], function))
        files.setdefault(file)
        calls.append((len(stack), function))
        stack.append(function)

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return Trace(list(files), list(moves), calls)


def _config(backend: str) -> AlgorithmConfig:
    from learner_core_algorithms import PPOConfig

    config = PPOConfig().environment("CartPole-v1").framework(backend, compile=True)
    config.training(train_batch_size=_ROWS, minibatch_size=_ROWS, num_epochs=1).rl_module(model={"hidden": [8]})
    return config.env_runners(num_envs_per_env_runner=1, rollout_fragment_length=_ROWS)


def update(backend: str) -> Trace:
    """An update by PPO on one learner, from ``LearnerGroup.update_from_batch`` to its result."""
    config = _config(backend)
    group = config.build_learner_group()
    random = np.random.default_rng(0)
    batch = {
        "obs": random.normal(size=(_ROWS, 4)).astype(np.float32),
        "actions": random.integers(2, size=_ROWS),
        "action_logp": np.full(_ROWS, -0.7, np.float32),
        "action_dist_inputs": np.zeros((_ROWS, 2), np.float32),
        "advantages": random.normal(size=_ROWS).astype(np.float32),
        "value_targets": random.normal(size=_ROWS).astype(np.float32),
        "values": np.zeros(_ROWS, np.float32),
    }

    def call() -> object:
        return group.update_from_batch(batch=batch, timesteps={"num_env_steps_sampled_lifetime": _ROWS})

    call()
    try:
        return trace(call)
    finally:
        group.shutdown()


def environment_step(backend: str) -> Trace:
    """One step of one environment by an EnvRunner of PPO, until it is a row of the rollout's columns."""
    from learner_core.sampling.make_runner import make_runner

    config = _config(backend)
    learner = config.build_learner()
    runner = make_runner(config, learner.module_specs)
    (weights,) = learner.get_module_state().values()
    runner.set_weights(weights)
    runner.sample(_ROWS)
    try:
        return trace(lambda: runner.sample(1))
    finally:
        runner.close()


def in_words(found: Trace) -> list[str]:
    """The moves, in the order of the first of each."""
    return [f"{caller} -> {called}" for caller, called in found.moves]
