"""Environments that raise, hang, die or return garbage, somewhere in a run; and what has to come of it.

Every fault is a run of its own (``play``): an Algorithm is built, trains a few iterations, is stopped. Whatever the
environment does, the process lives, every call ends in bounded time, an error is one of ours and names environment and
runner, what was lost is counted, and nothing is left behind.
"""

from __future__ import annotations

import gc
import os
import random
import re
import signal
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

import learner_core as lc
from learner_core_algorithms import PPOConfig

from .leftovers import belongings, deadline, nothing_left
from .outcomes import LostError

__all__ = ["CRASHES", "GARBAGE", "RAISED", "EnvFault", "Played", "draw", "play"]

#: Exceptions; the last ones are no ``Exception``.
RAISED = ("ValueError", "RecursionError", "MemoryError", "mute", "SystemExit", "GeneratorExit", "BaseException")
#: What ``step`` (or ``reset``, where it can) returns instead of what it should.
GARBAGE = (
    "four", "none", "number", "nan-reward", "inf-reward", "none-reward", "text-reward", "nan-obs", "inf-obs", "shape",
    "none-obs", "text-obs", "object-obs", "dict-obs",
)  # fmt: skip
#: Only where the environment is in a process of its own.
CRASHES = ("kill", "exit", "segfault", "stop", "hang")
#: Longest that a run may take, times the machine's load on each core if that is above one.
LIMIT_S = 60.0


@dataclass(frozen=True)
class EnvFault:
    """One fault.

    Attributes:
        backend: a backend's name.
        number, seed: which one, of which draw.
        what: of ``RAISED``, ``GARBAGE`` or ``CRASHES``.
        where: "init", "reset", "step" or "close".
        always: whenever it comes there; else once.
        step: how many steps or resets before that.
        agents: several of them, by PettingZoo's interface.
        runners: "here", "processes", "async" (gymnasium's vector of processes) or "native" (a vector environment).
        restarts: ``max_env_restarts``.
    """

    backend: str
    number: int
    seed: int
    what: str
    where: str
    always: bool
    step: int
    agents: bool
    runners: str
    restarts: int = 3


@dataclass
class Played:
    """What came of it: "went on", or "refused" with the error's text; the counts; the seconds."""

    result: str
    said: str = ""
    restarts: int = 0
    lost: int = 0
    seconds: float = 0.0


def draw(seed: int, number: int, backend: str) -> EnvFault:
    """The fault of this number."""
    rng = random.Random(seed * 100_003 + number)
    runners = rng.choice(["here", "here", "processes", "processes", "async", "native"])
    agents = runners in ("here", "processes") and rng.random() < 0.3
    kinds: list[tuple[str, ...]] = [RAISED, GARBAGE]
    if runners in ("processes", "async"):
        kinds.append(CRASHES)
    kind = kinds[number % len(kinds)]
    what = rng.choice(kind)
    where = "step" if kind is GARBAGE else rng.choice(["init", "reset", "step", "step"])
    if kind is RAISED and rng.random() < 0.15:
        where = "close"
    if runners == "async" and where == "init":
        where = "reset"  # gymnasium waits for the constructors of its processes without a limit
    always = rng.random() < 0.4
    step = rng.randrange(1, 6 if always else 12)
    if where == "reset":  # three iterations have few episodes, and a new environment counts from the beginning
        step = 1 if always or runners == "native" else rng.randrange(1, 4)
    restarts = 0 if rng.random() < 0.25 else 3
    return EnvFault(backend, number, seed, what, where, always, step, agents, runners, restarts)


class _Trouble:
    """Strikes at a place: once over all processes (a file remembers it), or whenever it is reached."""

    def __init__(self, fault: EnvFault, once: str, driver: int) -> None:
        self.fault, self.once, self.driver = fault, once, driver
        self.counts: dict[str, int] = {}

    def due(self, where: str) -> bool:
        fault = self.fault
        if where != fault.where:
            return False
        if fault.runners == "processes" and where in ("reset", "step") and os.getpid() == self.driver:
            return False  # one that the driver has made to evaluate with; the runners' are meant
        self.counts[where] = self.counts.get(where, 0) + 1
        if fault.always and where != "init":
            due = self.counts[where] >= fault.step
        else:
            due = where == "init" or self.counts[where] >= fault.step
        if not due:
            return False
        try:
            os.close(os.open(self.once, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return fault.always
        return True

    def strike(self, where: str) -> None:
        """Raise, die or hang, if that is the fault and this is the place."""
        what = self.fault.what
        if what in CRASHES and os.getpid() == self.driver:
            return  # the driver makes environments, too, to see their spaces and to evaluate
        if what in GARBAGE or not self.due(where):
            return
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif what == "exit":
            os._exit(7)
        elif what == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif what == "hang":
            time.sleep(10**6)
        elif what == "SystemExit":
            sys.exit(3)
        elif what == "mute":
            raise _MuteError
        raise {"BaseException": _OwnBaseError}.get(what) or getattr(__import__("builtins"), what)("on purpose")

    def garbage(self, answer: tuple[Any, ...], names: list[str]) -> Any:
        """What ``step`` returns instead of its answer (obs, reward, terminated, truncated, info)."""
        what = self.fault.what
        if what not in GARBAGE or not self.due("step"):
            return answer
        if what in ("four", "none", "number"):
            return {"four": answer[:4], "none": None, "number": 7}[what]
        values: dict[str, Any] = {
            "nan-reward": np.nan, "inf-reward": np.inf, "none-reward": None, "text-reward": "much",
            "nan-obs": np.full(3, np.nan, np.float32), "inf-obs": np.full(3, np.inf), "shape": np.zeros((2, 2)),
            "none-obs": None, "text-obs": "abc", "object-obs": np.array([None, {}, 1], object), "dict-obs": {"a": 1},
        }  # fmt: skip
        place = 1 if what.endswith("reward") else 0
        bad = dict.fromkeys(names, values[what]) if names else values[what]
        return tuple(bad if at == place else part for at, part in enumerate(answer))


class _MuteError(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


class _OwnBaseError(BaseException):
    pass


class FaultyGym(gym.Env):  # type: ignore[misc]
    """Seven steps an episode."""

    def __init__(self, fault: EnvFault, once: str, driver: int) -> None:
        self.trouble = _Trouble(fault, once, driver)
        self.trouble.strike("init")
        self.observation_space = spaces.Box(-1.0, 1.0, (3,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.clock = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.trouble.strike("reset")
        self.clock = 0
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> Any:
        self.trouble.strike("step")
        self.clock += 1
        return self.trouble.garbage((np.zeros(3, np.float32), 1.0, self.clock == 7, False, {}), [])

    def close(self) -> None:
        self.trouble.strike("close")


class FaultyVector(gym.vector.VectorEnv):  # type: ignore[misc]
    """Two environments in one, which resets in the step after an episode's end."""

    metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}

    def __init__(self, fault: EnvFault, once: str, driver: int) -> None:
        self.trouble = _Trouble(fault, once, driver)
        self.trouble.strike("init")
        self.num_envs = 2
        self.single_observation_space = spaces.Box(-1.0, 1.0, (3,), np.float32)
        self.single_action_space = spaces.Discrete(2)
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, 2)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, 2)
        self.clock = 0

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.trouble.strike("reset")
        self.clock = 0
        return np.zeros((2, 3), np.float32), {}

    def step(self, actions: Any) -> Any:
        self.trouble.strike("step")
        self.clock = (self.clock + 1) % 8
        done, never = np.full(2, self.clock == 7), np.zeros(2, bool)
        return self.trouble.garbage((np.zeros((2, 3), np.float32), np.ones(2), done, never, {}), [])

    def close(self, **options: Any) -> None:
        self.trouble.strike("close")


class FaultyGame:
    """Two agents, seven steps an episode."""

    metadata = {"name": "faulty"}
    possible_agents = ["a", "b"]

    def __init__(self, fault: EnvFault, once: str, driver: int) -> None:
        self.trouble = _Trouble(fault, once, driver)
        self.trouble.strike("init")
        self.agents: list[str] = []
        self.clock = 0

    def observation_space(self, agent: str) -> Any:
        return spaces.Box(-1.0, 1.0, (3,), np.float32)

    def action_space(self, agent: str) -> Any:
        return spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.trouble.strike("reset")
        self.clock, self.agents = 0, ["a", "b"]
        return {agent: np.zeros(3, np.float32) for agent in self.agents}, {agent: {} for agent in self.agents}

    def step(self, actions: Any) -> Any:
        self.trouble.strike("step")
        self.clock += 1
        names = list(self.agents)
        over = self.clock == 7
        if over:
            self.agents = []
        answer = (
            {name: np.zeros(3, np.float32) for name in names},
            dict.fromkeys(names, 1.0),
            dict.fromkeys(names, over),
            dict.fromkeys(names, False),
            {name: {} for name in names},
        )
        return self.trouble.garbage(answer, names)

    def close(self) -> None:
        self.trouble.strike("close")


def _config(fault: EnvFault, once: str) -> Any:
    kind = FaultyGame if fault.agents else FaultyVector if fault.runners == "native" else FaultyGym
    driver = os.getpid()
    config = PPOConfig().framework(fault.backend, compile=False).environment(lambda settings: kind(fault, once, driver))
    config.training(train_batch_size=32, minibatch_size=16, num_epochs=1).rl_module(model={"hidden": [4]})
    config.environment(max_env_restarts=fault.restarts)
    config.env_runners(num_envs_per_env_runner=2, max_env_runner_restarts=3)
    config.env_runners(env_runner_timeout_s=8, env_step_timeout_s=4)
    if fault.runners == "processes":
        config.env_runners(num_env_runners=2)
    if fault.runners == "async":
        config.env_runners(vectorization="async")
    if fault.agents:
        config.multi_agent(policies=["both"])
    return config


def play(fault: EnvFault, folder: Path) -> Played:
    """Run one fault.

    Raises:
        LostError: a guarantee did not hold; says the fault.
    """
    once = folder / f"struck-{fault.backend}-{fault.seed}-{fault.number}"
    once.unlink(missing_ok=True)
    before, began = belongings(), time.monotonic()
    limit = LIMIT_S * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    played = Played("went on")
    try:
        with deadline(limit), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _run(fault, once, played)
        played.said += "".join(f"\n(warned) {one.message}" for one in caught if "closing it" in str(one.message))
        played.seconds = time.monotonic() - began
        gc.collect()  # gymnasium's processes and their pipes go with the objects that hold them
        nothing_left(before)
        _check(fault, once, played)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise LostError(f"{type(error).__name__}: {error}\n  said: {played.said}\n  again: {fault}") from error
    return played


def _run(fault: EnvFault, once: Path, played: Played) -> None:
    algo = None
    try:
        algo = _config(fault, str(once)).build()
        for _ in range(3):
            results = algo.train()["env_runners"]
            played.restarts = int(results["num_env_restarts_lifetime"] + results["num_env_runner_restarts_lifetime"])
            played.lost = int(results["num_episodes_lost_lifetime"] + results["num_fragments_lost_lifetime"])
    except lc.LearnerCoreError as error:
        played.result = "refused"
        played.said = "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])
    finally:
        if algo is not None:
            algo.stop()


def _check(fault: EnvFault, once: Path, played: Played) -> None:
    """Does the outcome fit the fault?"""
    survives = fault.restarts > 0 or (fault.what in CRASHES and fault.runners == "processes")
    if not once.exists():
        if fault.where == "close" and fault.step > 1:
            return  # each environment is closed once
        raise LostError("the fault did not happen: the campaign is at fault")
    if fault.where == "close":
        if played.result != "went on":
            raise LostError("an environment that cannot be closed ended the run")
        if fault.runners in ("here", "native") and "closing it raised" not in played.said:
            raise LostError("nobody was told that closing it raised")
        return
    if played.result == "refused":
        if not played.said.startswith(("EnvError", "EnvOutputError", "EnvRunnerLostError")):
            raise LostError("the error is not one of an environment")
        named = re.search(r"environment|runner [0-9]", played.said) and (
            fault.where == "init" or re.search(r"runner [0-9]", played.said)
        )
        if not named:
            raise LostError("the error does not name environment and runner")
        finite = fault.what.startswith(("nan", "inf", "none-reward"))
        if survives and not fault.always and fault.where != "init" and fault.what not in GARBAGE and not finite:
            raise LostError("a fault that happened once ended the run")
    elif fault.always and fault.what not in GARBAGE:
        raise LostError("a fault that happens again and again did not end the run")
    elif not survives and fault.what not in GARBAGE:
        raise LostError("an environment was made anew, and nobody has asked for that")
    elif fault.what not in GARBAGE and (not played.restarts or not (played.lost or fault.where != "step")):
        raise LostError(f"{played.restarts} restarts and {played.lost} losses were counted")
