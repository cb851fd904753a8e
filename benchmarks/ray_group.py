"""Two learners as Ray actors beside two local processes: start, round trip, update, transport of a batch.

Usage: python benchmarks/ray_group.py [--backend torch] [--collective torch] [--updates 200] [--out DIR]

Both groups live at the same time and are asked in turn, so that load on the machine meets both; ratios are of such
pairs. Starts are the first in this process (with Ray's own start, or the nursery's) and the second. ``--out`` gets
``ray_group_BACKEND.json`` and ``ray_group_BACKEND.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete

from learner_core_algorithms import BCConfig, PPOConfig

OBS = Box(-1.0, 1.0, (8,), np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--collective", default="torch")
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    report: dict[str, Any] = {
        "command": f"python {' '.join(sys.argv)}",
        "cores": os.cpu_count(),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "load": [os.getloadavg()[0]],
        "start_s": {},
        "ms": {},
    }
    groups = {}
    for launcher in ("local", "ray"):
        first, group = timed(lambda: config(PPOConfig(), arguments, launcher).build_learner_group())  # noqa: B023
        group.shutdown()
        second, groups[launcher] = timed(lambda: config(PPOConfig(), arguments, launcher).build_learner_group())  # noqa: B023
        report["start_s"][launcher] = {"first": first, "second": second}
    batch = ppo_batch(256)
    figures = report["ms"]
    figures["empty call to both"] = paired(groups, lambda group: group.foreach_learner(nothing), arguments.updates)
    figures["update, 256 rows, one step"] = paired(
        groups, lambda group: group.update_from_batch(batch=batch), arguments.updates
    )
    for group in groups.values():
        group.shutdown()
    # One step on few rows of a batch with many: what grows is the transport.
    groups = {name: config(BCConfig(), arguments, name).build_learner_group() for name in groups}
    for megabytes in (1, 30):
        rows = megabytes * 1_000_000 // (8 * 4 + 8)
        large = {"obs": np.zeros((rows, 8), np.float32), "actions": np.zeros(rows, np.int64)}
        figures[f"{megabytes} MB within reach of both"] = paired(
            groups,
            lambda group: group._learners._fleet.put_batch(large),  # noqa: B023
            20,
        )
    for group in groups.values():
        group.shutdown()
    report["load"].append(os.getloadavg()[0])
    text = table(report)
    print(text)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        stem = arguments.out / f"ray_group_{arguments.backend}"
        stem.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
        stem.with_suffix(".md").write_text(text + "\n")


def table(report: dict[str, Any]) -> str:
    """The figures as Markdown: median (minimum), and the median of the pairs' ratios with its quartiles."""
    load = " to ".join(f"{value:.0f}" for value in report["load"])
    lines = [
        f"`{report['command']}` on {report['cores']} cores ({report['machine']}), load average {load}.",
        "",
        "| | Local processes | Ray actors | Ray / local (quartiles) |",
        "|---|---|---|---|",
    ]
    for which, words in (("first", "start, the first, s"), ("second", "start, the second, s")):
        local, ray = (report["start_s"][name][which] for name in ("local", "ray"))
        lines.append(f"| {words} | {local:.2f} | {ray:.2f} | {ray / local:.1f} |")
    for what, figure in report["ms"].items():
        shown = [f"{figure[name]['median']:.2f} ({figure[name]['min']:.2f})" for name in ("local", "ray")]
        low, middle, high = figure["ratio"]
        lines.append(
            f"| {what}, ms: median (least) | {shown[0]} | {shown[1]} | {middle:.2f} ({low:.2f} to {high:.2f}) |"
        )
    return "\n".join(lines)


def config(base: Any, arguments: argparse.Namespace, launcher: str) -> Any:
    base.framework(arguments.backend).environment(observation_space=OBS, action_space=Discrete(4))
    base.training(train_batch_size=256, minibatch_size=256, num_epochs=1)
    return base.learners(num_learners=2, launcher=launcher, collective=arguments.collective)


def nothing(learner: Any) -> None:
    return None


def timed(function: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def paired(groups: dict[str, Any], function: Any, count: int) -> dict[str, Any]:
    """Milliseconds of each group, asked in turn, and the quartiles of the ratios of such pairs."""
    times: dict[str, list[float]] = {name: [] for name in groups}
    for _ in range(count):
        for name, group in groups.items():
            times[name].append(1e3 * timed(lambda: function(group))[0])  # noqa: B023
    ratios = [ray / local for local, ray in zip(times["local"], times["ray"], strict=True)]
    found: dict[str, Any] = {name: {"min": min(t), "median": statistics.median(t)} for name, t in times.items()}
    return {**found, "ratio": statistics.quantiles(ratios, n=4)}


def ppo_batch(rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((rows, 4)).astype(np.float32)
    actions = rng.integers(0, 4, rows)
    return {
        "obs": rng.uniform(-1, 1, (rows, 8)).astype(np.float32),
        "actions": actions,
        "action_dist_inputs": logits,
        "action_logp": (logits - np.log(np.exp(logits).sum(1, keepdims=True)))[np.arange(rows), actions],
        "vf_preds": rng.standard_normal(rows).astype(np.float32),
        "advantages": rng.standard_normal(rows).astype(np.float32),
        "value_targets": rng.standard_normal(rows).astype(np.float32),
    }


if __name__ == "__main__":
    main()
