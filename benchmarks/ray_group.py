"""Two learners as Ray actors beside two local processes: start, round trip, update, transport of a batch.

Usage: python benchmarks/ray_group.py [--backend torch] [--collective torch] [--updates 200] [--out FILE]

Both groups live at the same time and are asked in turn, so that load on the machine meets both. Times are in
milliseconds, minimum and median; the starts are cold (a new process each) and warm (again, with Ray or the nursery
already there).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
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
        "backend": arguments.backend,
        "collective": arguments.collective,
        "cores": os.cpu_count(),
        "machine": platform.processor() or platform.machine(),
        "load_at_start": os.getloadavg()[0],
        "start_s": {},
    }
    groups = {}
    for launcher in ("local", "ray"):
        cold, group = timed(lambda: config(PPOConfig(), arguments, launcher).build_learner_group())  # noqa: B023
        group.shutdown()
        warm, groups[launcher] = timed(lambda: config(PPOConfig(), arguments, launcher).build_learner_group())  # noqa: B023
        report["start_s"][launcher] = {"cold": round(cold, 2), "warm": round(warm, 2)}
    batch = ppo_batch(256)
    report["empty_call_ms"] = paired(groups, lambda group: group.foreach_learner(nothing), arguments.updates)
    report["update_of_one_step_ms"] = paired(
        groups, lambda group: group.update_from_batch(batch=batch), arguments.updates
    )
    for group in groups.values():
        group.shutdown()
    # One step on few rows of a batch with many: what grows is the transport.
    groups = {name: config(BCConfig(), arguments, name).build_learner_group() for name in groups}
    for megabytes in (1, 30):
        rows = megabytes * 1_000_000 // (8 * 4 + 8)
        large = {"obs": np.zeros((rows, 8), np.float32), "actions": np.zeros(rows, np.int64)}
        report[f"put_{megabytes}_MB_ms"] = paired(
            groups,
            lambda group: group._learners._fleet.put_batch(large),  # noqa: B023
            20,
        )
    for group in groups.values():
        group.shutdown()
    report["load_at_end"] = os.getloadavg()[0]
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


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


def paired(groups: dict[str, Any], function: Any, count: int) -> dict[str, dict[str, float]]:
    times: dict[str, list[float]] = {name: [] for name in groups}
    for _ in range(count):
        for name, group in groups.items():
            times[name].append(1e3 * timed(lambda: function(group))[0])  # noqa: B023
    return {
        name: {"min": round(min(found), 3), "median": round(statistics.median(found), 3)}
        for name, found in times.items()
    }


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
