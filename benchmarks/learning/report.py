"""The table and the picture of the results that run.py wrote.

    python benchmarks/learning/report.py

Writes README.md and curves.png beside the results. What was not run is not shown, and the text says what is missing,
what was made with other settings than tasks.py has now, and what passes narrowly. What is to be said of a task's
settings stands beside them, in its ``note``.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from tasks import TASKS, Task

RESULTS = Path(__file__).resolve().parents[1] / "results" / "learning"
#: What ours has to reach of the peer's mean return where a task has no target of its own.
SHARE = 0.9
#: A seed passes narrowly where its margin is less than this share of its episodes' standard deviation.
NARROW = 0.1
#: From so many seeds on their distribution is told instead of each.
MANY = 10
#: Runs of the two backends often lie on each other: one is drawn broad, the other dashed upon it.
LINES: dict[str, dict[str, Any]] = {
    "torch": {"color": "#e4572e", "lw": 1.8, "alpha": 0.75},
    "tf": {"color": "#17408b", "lw": 1.1, "ls": "--"},
    "sb3": {"color": "#8a8f98", "lw": 1.1},
}
NEWLINE = "\n"
NAMES = {"torch": "Torch", "tf": "TensorFlow", "sb3": "SB3"}
#: Which of them are learner-core's.
OURS = ("torch", "tf")

Runs = dict[str, dict[str, list[dict[str, Any]]]]


def read(folder: Path) -> Runs:
    """task -> backend -> results, by seed."""
    runs: Runs = defaultdict(lambda: defaultdict(list))
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        if result["task"] in TASKS:
            runs[result["task"]][result["backend"]].append(result)
    return runs


def finals(results: list[dict[str, Any]]) -> list[float]:
    """The final evaluations' means."""
    return [float(result["final"]["episode_return_mean"]) for result in results]


#: Beside a peer: what is compared of a result. The first decides.
MEASURES = {
    "final evaluation": lambda result: finals([result])[0],
    "training episodes": lambda result: float(result["curve"][-1][1]),
}


def shown(value: float) -> str:
    """Three digits or more."""
    return f"{value:.1f}" if abs(value) >= 10.0 else f"{value:.2f}"


def verdict(task: Task, backend: str, results: list[dict[str, Any]], runs: Runs) -> tuple[str, str]:
    """What was asked for, and whether it was reached."""
    if backend == "sb3":
        return "", ""
    if task.target is not None:
        return f">= {task.target:g}", _all_or_some([result >= task.target for result in finals(results)])
    if task.ceiling is not None:
        return f"< {task.ceiling:g}", _all_or_some([result < task.ceiling for result in finals(results)])
    peer = runs[task.name].get("sb3", [])
    asked = f">= {SHARE:.0%} of SB3"
    seeds = {result["seed"] for result in peer} & {result["seed"] for result in results}
    if not seeds:
        return asked, "SB3 not run"
    so_far = f"so far ({len(seeds)} of {len(task.seeds)} seeds) " if len(seeds) < len(task.seeds) else ""
    told = []
    for name, measure in MEASURES.items():
        ours, theirs = (np.array([measure(r) for r in some if r["seed"] in seeds]) for some in (results, peer))
        reached = "yes" if ours.mean() - theirs.mean() >= (SHARE - 1.0) * abs(theirs.mean()) else "no"
        told.append(
            f"{name} {reached}: {ours.mean():.0f} (spread of seeds {ours.std():.0f}) against "
            f"{theirs.mean():.0f} ({theirs.std():.0f}){quotient(ours, theirs)}"
        )
    return asked, so_far + "; ".join(told)


def _all_or_some(reached: list[bool]) -> str:
    return "yes" if all(reached) else f"{sum(reached)} of {len(reached)} seeds"


def quotient(ours: np.ndarray, theirs: np.ndarray) -> str:
    """The quotient of two means, its 95 % bootstrap interval over seeds and that of the means of the middle halves."""
    if min(len(ours), len(theirs)) < MANY:
        return ""
    rng = np.random.default_rng(0)
    draws = [rng.choice(some, (10_000, len(some))).mean(axis=1) for some in (ours, theirs)]
    low, high = np.percentile(draws[0] / draws[1], [2.5, 97.5])
    middle = middle_half(ours) / middle_half(theirs)
    return (
        f", {ours.mean() / theirs.mean():.2f} of it (95 % interval {low:.2f} to {high:.2f}; of the middle half of the "
        f"seeds {middle:.2f})"
    )


def middle_half(values: np.ndarray) -> float:
    """Interquartile mean: a quarter of the values is left out at either end."""
    cut = len(values) // 4
    return float(np.sort(values)[cut : len(values) - cut].mean())


def by_seed(results: list[dict[str, Any]]) -> str:
    """Every seed's final return; of many, how they are distributed."""
    if len(results) < MANY:
        spreads = [result["final"]["episode_return_std"] for result in results]
        return ", ".join(f"{shown(f)} +- {shown(s)}" for f, s in zip(finals(results), spreads, strict=True))
    least, low, middle, high, most = np.percentile(finals(results), [0, 25, 50, 75, 100])
    return (
        f"{len(results)} seeds: median {shown(middle)}, quartiles {shown(low)} to {shown(high)}, all {shown(least)} to "
        f"{shown(most)}"
    )


def table(runs: Runs) -> list[str]:
    """The Markdown table."""
    lines = [
        "| task | algorithm, environment | steps | trained by | final mean return by seed | mean | asked for | reached "
        "| CPU s a run |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for task in TASKS.values():
        for backend, library in NAMES.items():
            results = sorted(runs[task.name].get(backend, []), key=lambda result: result["seed"])
            if not results:
                continue
            asked, reached = verdict(task, backend, results, runs)
            trained = sorted({result["steps"] for result in results})
            steps = ", ".join(f"{count:,}" for count in trained) if task.steps else f"{task.iterations} iterations"
            cpu = np.mean([result["cpu_seconds"] for result in results])
            lines.append(
                f"| {task.name} | {task.algorithm.upper()}, {task.env} | {steps} | {library} | {by_seed(results)} | "
                f"{shown(float(np.mean(finals(results))))} | {asked} | {reached} | {cpu:.0f} |"
            )
    return lines


def of_ours(runs: Runs) -> Iterator[tuple[Task, str, list[dict[str, Any]]]]:
    """(task, backend, results) of every task on each of our backends."""
    for task in TASKS.values():
        for backend in OURS:
            yield task, backend, runs[task.name].get(backend, [])


def which(task: Task, backend: str, seeds: list[int]) -> str:
    """Names runs."""
    return f"{task.name} on {NAMES[backend]}, seed {', '.join(map(str, seeds))}"


def missing(runs: Runs) -> list[str]:
    """Runs that there is no result of."""
    out = []
    recorded = {task.recorded[0] for task in TASKS.values() if task.recorded is not None}
    for task in TASKS.values():
        if task.name in recorded and not runs[task.name]:
            continue  # its policies are trained as a part of the task that imitates them
        for backend in [*OURS, *(("sb3",) if task.peer is not None else ())]:
            seeds = set(task.seeds) - {result["seed"] for result in runs[task.name].get(backend, [])}
            if seeds:
                out.append(which(task, backend, sorted(seeds)))
    return out


def stale(runs: Runs) -> list[str]:
    """Results of ours that were made with other settings than the task has now (older ones tell only their steps)."""
    out = []
    for task, backend, results in of_ours(runs):
        seeds = [
            result["seed"]
            for result in results
            if result.get("settings", task.settings) != task.settings or result["steps"] != task.steps
        ]
        if seeds:
            out.append(which(task, backend, seeds))
    return out


def narrow(runs: Runs) -> list[str]:
    """Seeds that reach their target with little to spare."""
    out = []
    for task, backend, results in of_ours(runs):
        for result in results if task.target is not None else ():
            final = result["final"]
            spare = final["episode_return_mean"] - task.target
            if 0.0 <= spare < NARROW * final["episode_return_std"]:
                out.append(
                    f"{which(task, backend, [result['seed']])}, with {shown(final['episode_return_mean'])} (its last "
                    f"training episodes: {shown(result['curve'][-1][1])})"
                )
    return out


def commits(runs: Runs) -> str:
    """Which code made the results of ours."""
    every = [result for _, _, results in of_ours(runs) for result in results]
    known = sorted({result["commit"] for result in every if result.get("commit")})
    older = sum(not result.get("commit") for result in every)
    told = ", ".join(known) if known else "none told"
    return f"{told} (each result's JSON has its own)" + (f"; {older} older results do not tell" if older else "")


def listed(items: list[str]) -> str:
    return "; ".join(items) if items else "nothing"


def text(runs: Runs) -> str:
    """README.md of the results."""
    every = [result for backends in runs.values() for results in backends.values() for result in results]
    if not every:
        return "# Learning\n\nNothing has been run yet.\n"
    dates = sorted({result["date"] for result in every})
    machines = sorted({result["machine"] for result in every})
    versions = sorted({f"{name} {v}" for result in every for name, v in result["versions"].items()})
    notes = [f"- {task.name}: {task.note}" for task in TASKS.values() if task.note and runs[task.name]]
    return f"""# Learning: what the algorithms reach

Fixed settings (benchmarks/learning/tasks.py has every one of them), seeds and numbers of steps. A final return is the
mean over evaluation episodes of the final policy with its most likely actions (100 episodes, 20 on HalfCheetah), +-
their standard deviation. A task is reached where every seed reaches it. Beside SB3 the mean over seeds of the final
evaluation decides, where one action that is most likely and wrong can end all of an episode's progress; the last 100
training episodes, whose actions are sampled as the algorithm assumes, are told beside it.

{NEWLINE.join(table(runs))}

![Learning curves](curves.png)

One line a seed, of many seeds median and quartiles: mean return of the last 100 training episodes (of all, while there
are fewer: on Pendulum and HalfCheetah to the end), whose actions are sampled, so the final policy may be far better;
behaviour cloning: of 20 evaluation episodes. Dotted: what the final policy has to reach; dash-dotted: what it must stay
under.

{NEWLINE.join(notes)}

- Not run: {listed(missing(runs))}.
- Made with other settings than tasks.py has now: {listed(stale(runs))}.
- Passed narrowly, by less than a tenth of a standard deviation: {listed(narrow(runs))}.
- Machine: {"; ".join(machines)}, busy with other work at the same time, so wall-clock times are not given; the CPU
  seconds are the process's own for training, compilation included.
- Date: {" to ".join(sorted({dates[0], dates[-1]}))}. Python {every[0]["python"]}; {", ".join(versions)}.
- Commits: {commits(runs)}.

Commands, from the repository root after `make install` (`make bench` makes .venv-bench):

```
.venv/bin/python benchmarks/learning/run.py --all          # what has no result yet
.venv/bin/python benchmarks/learning/run.py --task acrobot --backend tf --seed 2
.venv/bin/python benchmarks/learning/report.py
```
"""


def draw(axis: Any, curves: list[np.ndarray], label: str, line: dict[str, Any]) -> None:
    """A line a seed; of many seeds the median and the quartiles, at the steps of the first."""
    if len(curves) < MANY:
        for number, curve in enumerate(curves):
            axis.plot(curve[:, 0], curve[:, 1], label=label if number == 0 else None, **line)
        return
    steps = curves[0][:, 0]
    low, middle, high = np.percentile([np.interp(steps, c[:, 0], c[:, 1]) for c in curves], [25, 50, 75], axis=0)
    axis.plot(steps, middle, label=f"{label}, {len(curves)} seeds", **line)
    axis.fill_between(steps, low, high, color=line["color"], alpha=0.15, lw=0)


def picture(runs: Runs, path: Path) -> None:
    """All curves: one panel a task."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import EngFormatter

    tasks = [task for task in TASKS.values() if runs[task.name]]
    rows = -(-len(tasks) // 3)
    figure, axes = plt.subplots(rows, 3, figsize=(13, 3.4 * rows), squeeze=False)
    for axis in axes.flat[len(tasks) :]:
        axis.set_visible(False)
    for axis, task in zip(axes.flat, tasks, strict=False):
        for backend, line in LINES.items():
            draw(axis, [np.array(result["curve"]) for result in runs[task.name].get(backend, [])], NAMES[backend], line)
        if task.target is not None:
            axis.axhline(task.target, color="black", lw=1.0, ls=":", label=f"reach {task.target:g}")
        if task.ceiling is not None:
            axis.axhline(task.ceiling, color="black", lw=1.0, ls="-.", label=f"stay under {task.ceiling:g}")
        axis.set_title(f"{task.name} ({task.algorithm.upper()}, {task.env.rsplit(':', 1)[-1]})", fontsize=9)
        axis.set_xlabel("environment steps" if task.steps else "iterations", fontsize=8)
        axis.set_ylabel("mean return", fontsize=8)
        axis.tick_params(labelsize=8)
        if task.steps:
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> int:
    runs = read(RESULTS)
    (RESULTS / "README.md").write_text(text(runs))
    if runs:
        picture(runs, RESULTS / "curves.png")
    print("\n".join(table(runs)))
    for line in missing(runs):
        print(f"not run: {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
