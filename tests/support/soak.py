"""Soak: a million updates, or as many as told, while memory, descriptors and threads of every process are watched.

    PYTHONPATH=tests python -m support.soak --backend torch --kind learner --updates 1000000 [--out FILE]

An update is one minibatch step, as the optimizers count. Three kinds. ``learner``: one learner of PPO, compiled, on
batches of changing size. ``group``: two learners on ``launcher="local"``. ``run``: an Algorithm with two runner
processes. The first tenth warms up: caches fill, executables are made. Over the rest a straight line is fitted to each
process's memory. It may rise by less than 1 MB per 100,000 updates; descriptors and threads may not grow.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Discrete

from learner_core_algorithms import PPOConfig

from .learners import OBS, ppo_batch
from .sampling import CountEnv

__all__ = ["MOST_MB_PER_100K", "Outcome", "Series", "problems", "soak"]

#: Most that a process's memory may grow by, in MB for each 100,000 updates.
MOST_MB_PER_100K = 1.0
#: Share of the updates that warm up.
WARM_UP = 0.1
#: Measurements over a soak.
NUM_SAMPLES = 200
#: Rows of the batches, in turn: less than a minibatch, one, one and a half.
ROWS = (5, 8, 3, 8, 12)


@dataclass
class Series:
    """What was measured of one process.

    Attributes:
        name: "driver", or what the process is, and its number.
        updates, memory_mb, descriptors, threads: one entry for each measurement; memory is that of no file: what the
            process has written to, shared or not.
    """

    name: str
    updates: list[int] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)

    def measure(self, pid: int | str, updates: int) -> None:
        """Add a measurement of a process, now."""
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
        )
        kilobytes = sum(int(status[name].split()[0]) for name in ("RssAnon", "RssShmem", "VmSwap"))
        self.updates.append(updates)
        self.memory_mb.append(kilobytes / 1024)
        self.threads.append(int(status["Threads"]))
        self.descriptors.append(sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()))

    def after_warm_up(self, of: int) -> slice:
        """The measurements after the first tenth of all updates."""
        return slice(int(np.searchsorted(self.updates, WARM_UP * of)), None)

    def slope(self, of: int) -> float:
        """MB per 100,000 updates of the straight line that fits best after the warm-up."""
        kept = self.after_warm_up(of)
        x = np.asarray(self.updates[kept], np.float64) / 1e5
        return float(np.polyfit(x, np.asarray(self.memory_mb[kept]), 1)[0])

    def growth(self, name: str, of: int) -> int:
        """How many more descriptors or threads there are at the end than at the most crowded moment of the warm-up.

        A descriptor that is open while a message is on its way may be met or missed: the smallest of the last tenth
        counts.
        """
        values = getattr(self, name)
        start = self.after_warm_up(of).start
        return min(values[-max(1, len(values) // 10) :]) - max(values[: start + 1])


@dataclass
class Outcome:
    """A soak: how many updates in how many seconds, and each process's series."""

    kind: str
    backend: str
    updates: int
    seconds: float
    compiled: float
    series: list[Series]

    def lines(self) -> Iterator[str]:
        """A line for each process."""
        for one in self.series:
            kept = one.after_warm_up(self.updates)
            memory = one.memory_mb[kept]
            yield (
                f"{self.kind} {self.backend} {one.name}: {self.updates} updates in {self.seconds:.0f} s, "
                f"{memory[0]:.1f} to {memory[-1]:.1f} MB, {one.slope(self.updates):+.3f} MB per 100,000; descriptors "
                f"{one.descriptors[kept][0]} to {one.descriptors[-1]}, threads {one.threads[kept][0]} to "
                f"{one.threads[-1]}; compiled {self.compiled:g}"
            )


def problems(outcome: Outcome, *, most_mb: float = MOST_MB_PER_100K) -> list[str]:
    """What a soak has found, in words; empty if nothing grew."""
    found = []
    for one in outcome.series:
        slope = one.slope(outcome.updates)
        if slope >= most_mb:
            found.append(f"{one.name}: memory grows by {slope:.2f} MB per 100,000 updates")
        for name in ("descriptors", "threads"):
            if (more := one.growth(name, outcome.updates)) > 0:
                found.append(f"{one.name}: {more} {name} more than after the warm-up")
    return found


def soak(
    kind: str,
    backend: str,
    updates: int,
    *,
    compile: bool | None = True,
    steps: int = 1,
    seconds: float = math.inf,
    say: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Run one.

    Args:
        kind: "learner", "group" or "run".
        backend: a backend's name.
        updates: of the parameters: minibatch steps.
        compile: the setting.
        steps: about so many in each call of ``update_from_batch``; a run's iterations make 32.
        seconds: stop after that long with what has been done.
        say: told how far it is, now and then.
    """
    with _SUBJECTS[kind](_config(backend, compile, steps)) as (update, processes):
        series: dict[str, Series] = {}
        every, began = max(1, updates // NUM_SAMPLES), time.monotonic()
        done, due, compiled = 0, 0, 0.0
        while True:
            if done >= due:
                for name, pid in processes().items():
                    series.setdefault(name, Series(name)).measure(pid, done)
                due = done + every
                say(f"{done} updates, {time.monotonic() - began:.0f} s, {series['driver'].memory_mb[-1]:.1f} MB")
            if done >= updates or time.monotonic() - began > seconds:
                break
            done, compiled = update()
    return Outcome(kind, backend, done, time.monotonic() - began, compiled, list(series.values()))


# ---- what is soaked --------------------------------------------------------------------------------------------------

#: One step further: (updates so far, whether the last was compiled); and {process: its number}.
Subject = tuple[Callable[[], tuple[int, float]], Callable[[], dict[str, "int | str"]]]


def _config(backend: str, compile: bool | None, steps: int) -> Any:
    config = PPOConfig().framework(backend, compile=compile)
    config.training(lr=1e-4, train_batch_size=8, minibatch_size=8, num_epochs=steps)
    return config.rl_module(model={"hidden": [8]})


def _updates(one: Any) -> Callable[[], tuple[int, float]]:
    """Updates of a learner or a group on batches of changing size, with schedules that move."""
    batches = [ppo_batch(rows, Discrete(2), seed=rows) for rows in ROWS]
    done = 0

    def update() -> tuple[int, float]:
        nonlocal done
        timesteps = {"num_env_steps_sampled_lifetime": 8 * done}
        results = one.update_from_batch(batch=batches[done % len(batches)], timesteps=timesteps)
        done += int(results["default_policy"]["num_minibatch_steps"])
        return done, results["__all__"]["compiled"]

    return update


@contextmanager
def _learner(config: Any) -> Iterator[Subject]:
    config.environment(observation_space=OBS, action_space=Discrete(2))
    config.training(lr=[[0, 1e-4], [10**9, 1e-5]])
    yield _updates(config.build_learner()), lambda: {"driver": "self"}


@contextmanager
def _group(config: Any) -> Iterator[Subject]:
    config.environment(observation_space=OBS, action_space=Discrete(2))
    config.learners(num_learners=2)
    with config.build_learner_group() as group:
        pids = group.foreach_learner(_pid)
        yield _updates(group), lambda: {"driver": "self", **{f"learner {i}": pid for i, pid in enumerate(pids)}}


@contextmanager
def _run(config: Any) -> Iterator[Subject]:
    config.environment(lambda settings: CountEnv(length=7))
    config.training(train_batch_size=64, num_epochs=4).debugging(seed=0)
    config.env_runners(num_env_runners=2, num_envs_per_env_runner=2)
    with config.build() as algo:
        runners = [remote.handle.pid for remote in algo.env_runners._elsewhere.remotes]
        done = 0

        def update() -> tuple[int, float]:
            nonlocal done
            results = algo.train()
            learned = results["learners"]
            done += int(learned["default_policy"]["num_minibatch_steps"])
            return done, learned["__all__"]["compiled"]

        yield update, lambda: {"driver": "self", **{f"runner {i + 1}": pid for i, pid in enumerate(runners)}}


def _pid(learner: Any) -> int:
    return os.getpid()


_SUBJECTS: dict[str, Callable[[str], Any]] = {"learner": _learner, "group": _group, "run": _run}


def main() -> int:
    """Soak from the command line; the exit status is 1 if something grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--kind", default="learner", choices=sorted(_SUBJECTS))
    parser.add_argument("--updates", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=1, help="minibatch steps in a call of update_from_batch")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after that long")
    parser.add_argument("--compile", default="true", choices=["none", "true", "false"])
    parser.add_argument("--out", type=Path, help="all measurements, as JSON")
    given = parser.parse_args()
    setting = {"none": None, "true": True, "false": False}[given.compile]
    limits = {"updates": given.updates, "seconds": given.seconds, "compile": setting, "steps": given.steps}
    outcome = soak(given.kind, given.backend, **limits, say=lambda text: print(text, flush=True))
    print(*outcome.lines(), sep="\n")
    if given.out:
        given.out.write_text(json.dumps(asdict(outcome)) + "\n")
    found = problems(outcome)
    print(*(found or ["nothing grew"]), sep="\n", flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
