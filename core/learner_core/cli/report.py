"""What a run shows while it runs: a progress bar on a terminal, plain lines everywhere else."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TextIO

from learner_core.state.tree import Tree

from .console import count, duration, number

__all__ = ["Moment", "Report", "StopConditions", "flatten", "make_report", "moment_of", "rows_of"]


@dataclass(frozen=True)
class StopConditions:
    """When a run ends; the first that holds ends it. None: never.

    Args:
        episode_return: Mean return of the training episodes to reach.
        timesteps: Environment steps over the run's whole life.
        seconds: Seconds of training over the run's whole life, sessions added up.
        iterations: Training iterations over the run's whole life.
    """

    episode_return: float | None = None
    timesteps: int | None = None
    seconds: float | None = None
    iterations: int | None = None

    def reached(self, moment: Moment) -> str | None:
        """Say in words which condition holds; None when none does."""
        value = moment.episode_return
        if self.episode_return is not None and value is not None and value >= self.episode_return:
            return f"mean return {value:.1f} >= {self.episode_return:g}"
        if self.timesteps is not None and moment.timesteps >= self.timesteps:
            return f"{moment.timesteps} timesteps"
        if self.seconds is not None and moment.seconds >= self.seconds:
            return f"{duration(moment.seconds)} of training"
        if self.iterations is not None and moment.iteration >= self.iterations:
            return f"{moment.iteration} iterations"
        return None

    def fraction(self, moment: Moment) -> float | None:
        """How far the run is, from 0 to 1, by the condition that is nearest; None when nothing can be said."""
        shares = [
            done / limit
            for done, limit in (
                (moment.timesteps, self.timesteps),
                (moment.seconds, self.seconds),
                (moment.iteration, self.iterations),
            )
            if limit
        ]
        if not shares and self.episode_return and self.episode_return > 0 and moment.episode_return is not None:
            shares = [moment.episode_return / self.episode_return]
        return min(max(0.0, *shares), 1.0) if shares else None

    def time_left(self, moment: Moment) -> float | None:
        """Seconds until a countable condition holds at the present speed; None when there is none."""
        rests = []
        if self.seconds is not None:
            rests.append(self.seconds - moment.seconds)
        if self.timesteps is not None and moment.steps_per_second > 0:
            rests.append((self.timesteps - moment.timesteps) / moment.steps_per_second)
        if self.iterations is not None and moment.iteration > 0 and moment.seconds > 0:
            rests.append((self.iterations - moment.iteration) * moment.seconds / moment.iteration)
        return max(min(rests), 0.0) if rests else None

    @staticmethod
    def problem_of(stored: object) -> str:
        """What is wrong with stop conditions that a file holds, in words; empty if they are as ``asdict`` gave them."""
        if not isinstance(stored, dict):
            return f"stop: expected an object, got {type(stored).__name__}"
        for name, value in stored.items():
            whole = name in ("timesteps", "iterations")
            if not whole and name not in ("episode_return", "seconds"):
                return f"stop: there is no condition {name!r}"
            fits = (type(value) is int and abs(value) < 1 << 63) or (not whole and type(value) is float)
            if value is not None and not (fits and math.isfinite(value) and (value > 0 or name == "episode_return")):
                kind = "whole number" if whole else "number"
                positive = "" if name == "episode_return" else "positive "
                return f"stop/{name}: expected a {positive}{kind} below 2^63, or null"
        return ""

    @property
    def is_empty(self) -> bool:
        """Whether nothing ends the run but the user."""
        return all(v is None for v in (self.episode_return, self.timesteps, self.seconds, self.iterations))


@dataclass(frozen=True)
class Moment:
    """Where a run is after an iteration.

    Args:
        iteration: Training iterations so far.
        timesteps: Environment steps so far.
        seconds: Seconds of training so far.
        steps_per_second: Environment steps per second, over this session.
        episode_return: Mean return of recent training episodes; None while none has ended.
        episode_length: Their mean length; None while none has ended.
        rows: Recorded rows an offline algorithm has learned from, which steps no environment; else None. Then
            `steps_per_second` counts rows, and the episodes are those of the last evaluation.
    """

    iteration: int
    timesteps: int
    seconds: float
    steps_per_second: float
    episode_return: float | None = None
    episode_length: float | None = None
    rows: int | None = None

    @property
    def progress(self) -> tuple[str, int]:
        """What the run counts, and how many: ("steps", 2048), or ("rows", 512) of an offline algorithm."""
        return ("steps", self.timesteps) if self.rows is None else ("rows", self.rows)


def rows_of(row: Tree) -> int | None:
    """How many recorded rows an offline algorithm has learned from.

    Args:
        row: Flat results, or a row of ``metrics.jsonl``.

    Returns:
        The number; None for an algorithm that samples.
    """
    rows = row.get("learners/__all__/num_rows_trained_lifetime")
    return None if rows is None else int(rows)


def moment_of(results: Tree, *, seconds: float, steps_per_second: float) -> Moment:
    """Read a :class:`Moment` from what ``Algorithm.train()`` returned."""
    rows = rows_of(flatten(results))
    episodes = results.get("env_runners" if rows is None else "evaluation") or {}
    return Moment(
        iteration=int(results["training_iteration"]),
        timesteps=int(results["num_env_steps_sampled_lifetime"]),
        seconds=seconds,
        steps_per_second=steps_per_second,
        episode_return=_finite(episodes.get("episode_return_mean")),
        episode_length=_finite(episodes.get("episode_len_mean")),
        rows=rows,
    )


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(float(value)) else float(value)


def flatten(tree: Tree, prefix: str = "") -> dict[str, float | int | str]:
    """Nested results -> ``{"learners/default_policy/policy_loss": ...}``; what is no number or text is left out."""
    flat: dict[str, float | int | str] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{name}/"))
        elif isinstance(value, (bool, int, float, str)):
            flat[name] = value
        elif getattr(value, "ndim", None) == 0 and callable(getattr(value, "item", None)):
            flat[name] = value.item()
    return flat


class Report(Protocol):
    """Shows a run's progress; used as a context manager."""

    def __enter__(self) -> Report: ...

    def __exit__(self, *details: object) -> None: ...

    def update(self, moment: Moment) -> None:
        """Called after every iteration."""

    def say(self, text: str) -> None:
        """Print a line without disturbing the bar."""


def make_report(title: str, stop: StopConditions, *, stream: TextIO | None = None, quiet: bool = False) -> Report:
    """The right report for where the output goes.

    Args:
        title: "ppo on CartPole-v1, torch".
        stop: When the run ends.
        stream: Where to write; None: standard output.
        quiet: Say messages only, no progress.

    Returns:
        A bar on a terminal, else plain lines.
    """
    stream = stream or sys.stdout
    if not quiet and stream.isatty():
        return _BarReport(title, stop, stream)
    return _PlainReport(title, stop, stream, quiet=quiet)


class _PlainReport:
    """A line at most every few seconds: what a log file wants."""

    def __init__(self, title: str, stop: StopConditions, stream: TextIO, *, quiet: bool, interval: float = 5.0) -> None:
        self._title, self._stop, self._stream, self._quiet, self._interval = title, stop, stream, quiet, interval
        self._last = -math.inf
        self._unshown: Moment | None = None

    def __enter__(self) -> _PlainReport:
        self.say(self._title)
        return self

    def __exit__(self, *details: object) -> None:
        if self._unshown is not None:
            self._show(self._unshown)

    def update(self, moment: Moment) -> None:
        self._unshown = moment
        if time.monotonic() - self._last >= self._interval:
            self._show(moment)

    def say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def _show(self, moment: Moment) -> None:
        self._last, self._unshown = time.monotonic(), None
        if self._quiet:
            return
        unit, done = moment.progress
        self.say(
            f"iteration {moment.iteration:5d}  {unit} {count(done):>7}"
            f"  return {number(moment.episode_return):>8}  length {number(moment.episode_length):>7}"
            f"  {count(moment.steps_per_second):>6} {unit}/s"
            f"  {duration(moment.seconds):>7}  left {duration(self._stop.time_left(moment))}"
        )


class _BarReport:
    """One live line, by rich."""

    def __init__(self, title: str, stop: StopConditions, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self._stop = stop
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[shown]}"),
            console=Console(file=stream),
            expand=True,
            refresh_per_second=4,
        )
        self._task = self._progress.add_task(title, total=None, shown="building...")

    def __enter__(self) -> _BarReport:
        self._progress.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._progress.stop()

    def update(self, moment: Moment) -> None:
        unit, done = moment.progress
        shown = (
            f"return [bold]{number(moment.episode_return)}[/]  {count(done)} {unit}  "
            f"{count(moment.steps_per_second)}/s  left {duration(self._stop.time_left(moment))}"
        )
        fraction = self._stop.fraction(moment)
        total = None if fraction is None else 1.0
        self._progress.update(self._task, total=total, completed=fraction or 0.0, shown=shown)

    def say(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)
