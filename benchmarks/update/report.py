"""The measurements of a run as JSON, a Markdown table and a plot."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from pathlib import Path
from typing import Any

from machine import output, processor

__all__ = ["write"]

_COLOURS = {"tf": "#c44e52", "torch": "#4c72b0"}
_COLUMNS = (
    *("peer", "us/step, best", "median", "CPU, best", "ratio", "quartiles", "CPU ratio"),
    *("overhead", "build, s", "RSS, MB"),
)
#: Peers drawn, from slow to fast; levels above the bare Learner are in the table.
_DRAWN = ("sb3", "plain-torch", "torch-eager", "torch", "tf")


def write(found: dict[str, Any], folder: Path, *, began: str, reference: str, others: str) -> None:
    """Write ``update.json``, ``update.md`` and, with matplotlib, ``update.png``.

    Args:
        found: workload -> {"steps", "load_before", "load_after", "peers": {name: {"facts", "seconds", "cpu_seconds"}}}.
        folder: made if missing.
        began: when the run began.
        reference: peer that ratios are against.
        others: interpreter of the other libraries.
    """
    folder.mkdir(parents=True, exist_ok=True)
    about = _about(began, others)
    for result in found.values():
        base = result["peers"][reference]
        for name, peer in result["peers"].items():
            peer["ratio"] = _spread(_ratios(base["seconds"], peer["seconds"]))
            peer["cpu_ratio"] = _spread(_ratios(base["cpu_seconds"], peer["cpu_seconds"]))
            bare = result["peers"].get(name.split("-", 1)[0])
            if name.endswith(("-group", "-algorithm")) and bare is not None:
                pairs = zip(peer["seconds"], bare["seconds"], strict=True)
                peer["overhead"] = _spread([whole / part - 1 for whole, part in pairs])
    (folder / "update.json").write_text(json.dumps({"about": about, "workloads": found}, indent=1) + "\n")
    (folder / "update.md").write_text(_markdown(about, found, reference))
    _plot(found, folder / "update.png")


def _ratios(theirs: list[float], ours: list[float]) -> list[float]:
    return [a / b for a, b in zip(theirs, ours, strict=True)]


def _spread(values: list[float]) -> dict[str, float]:
    quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"min": min(values), "q1": quartiles[0], "median": quartiles[1], "q3": quartiles[2], "max": max(values)}


def _about(began: str, others: str) -> dict[str, str]:
    code = "import importlib.metadata as m; print(*(f'{n} {m.version(n)}' for n in %r), sep=', ')"
    mine = code % (("torch", "tensorflow-cpu", "numpy"),)
    theirs = code % (("stable-baselines3", "torch"),)
    commit = output(["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"])
    return {
        "date": began,
        "machine": f"{processor()}, {os.cpu_count()} logical processors, {platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "ours": f"learner-core {commit}, {output([sys.executable, '-c', mine])}",
        "others": output([others, "-c", theirs]),
        "command": "make bench" if sys.argv[1:] == [] else "python benchmarks/run.py " + " ".join(sys.argv[1:]),
        "threads": "1",
    }


def _markdown(about: dict[str, str], found: dict[str, Any], reference: str) -> str:
    lines = ["# PPO's update beside other libraries", ""]
    lines += [f"- {key}: {value}" for key, value in about.items()]
    lines += [
        "",
        f"Ratios are against {reference} in the same round (above 1: faster): median, and first to third quartile.",
        "CPU is the process's own time on a processor, which other processes on the machine disturb least.",
        "Overhead: time above the bare Learner's in the same round. Build is everything from settings to the first",
        "possible update, compilation and imports of the framework included.",
        "Caches are empty at first; torch-group and torch-algorithm then load what torch has compiled.",
    ]
    for workload, result in found.items():
        load = f"{result['load_before']:.1f} to {result['load_after']:.1f}"
        lines += ["", f"## {workload}: {result['steps']} steps an update (load average {load})", ""]
        lines += [f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|"]
        for name, peer in result["peers"].items():
            lines.append(_row(name, peer, result["steps"]))
    return "\n".join([*lines, ""])


def _row(name: str, peer: dict[str, Any], steps: int) -> str:
    scale = 1e6 / steps
    ratio, facts = peer["ratio"], peer["facts"]
    overhead = f"{100 * peer['overhead']['median']:+.1f} %" if "overhead" in peer else ""
    cells = [
        name,
        f"{min(peer['seconds']) * scale:.0f}",
        f"{statistics.median(peer['seconds']) * scale:.0f}",
        f"{min(peer['cpu_seconds']) * scale:.0f}",
        f"{ratio['median']:.2f}",
        f"{ratio['q1']:.2f}-{ratio['q3']:.2f}",
        f"{peer['cpu_ratio']['median']:.2f}",
        overhead,
        f"{facts['build_s']:.1f}",
        f"{facts['rss_mb']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _plot(found: dict[str, Any], path: Path) -> None:
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found), figsize=(3.2 * len(found), 3.4), squeeze=False)
    for axis, (workload, result) in zip(axes[0], found.items(), strict=True):
        names = [name for name in _DRAWN if name in result["peers"]]
        ratios = [result["peers"][name]["ratio"] for name in names]
        medians = [ratio["median"] for ratio in ratios]
        errors = [[r["median"] - r["q1"] for r in ratios], [r["q3"] - r["median"] for r in ratios]]
        colours = [
            "#c44e52" if name.startswith("tf") else "#4c72b0" if name.startswith("torch") else "#999999"
            for name in names
        ]
        axis.barh(names, medians, xerr=errors, color=colours, ecolor="#333333")
        for place, median in enumerate(medians):
            axis.text(median, place, f" {median:.1f}x", va="bottom", fontsize=8)
        axis.set_title(workload)
        axis.set_xlabel("times as fast as SB3")
        axis.set_xlim(0, max(r["q3"] for r in ratios) * 1.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
