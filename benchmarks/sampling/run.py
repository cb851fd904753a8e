"""Steps per second of environment runners: in this process, in one other and in two.

    python benchmarks/sampling/run.py [--seconds S] [--envs CartPole-v1 HalfCheetah-v5] [--out FOLDER]

A 64x64 network answers in numpy; every runner steps 8 environments, 128 steps a fragment. "together": the driver waits
for all (PPO). "alone": runners go on by themselves, two fragments ahead (IMPALA). "call": what sampling one single step
takes, the environments' work included, which is what SAC does by default. Starting: the first group of a program, in
which the process that forks runners is started, and a later one. Memory: RSS of a runner, and PSS, its fair share of
pages that runners have in common. On a machine with other work the durations say little; the load is written down, and
processor time is measured beside them: of the driver for each fragment of 128 steps, of the runners for each step.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np

import learner_core
from learner_core import numpy_xp
from learner_core.learning.resolve import resolve_modules
from learner_core.sampling.runner_group import EnvRunnerGroup
from learner_core_algorithms import PPOConfig

_NUM_ENVS, _LENGTH = 8, 128


def make_group(env: str, number: int) -> EnvRunnerGroup:
    """A group with weights."""
    config = PPOConfig().environment(env).env_runners(num_env_runners=number, num_envs_per_env_runner=_NUM_ENVS)
    config.env_runners(max_requests_in_flight_per_env_runner=2).freeze()
    specs = resolve_modules(config, None, None)
    group = EnvRunnerGroup(config, specs)
    rng = np.random.default_rng(0)
    group.set_weights({name: spec.build(numpy_xp).init(rng) for name, spec in specs.items()}, version=0)
    return group


def together(group: EnvRunnerGroup, seconds: float) -> dict[str, float]:
    """Environment steps per second of synchronous sampling, and the processor time it takes."""
    group.sample(_LENGTH)
    used, own = sum(group.foreach_runner(_cpu)), time.process_time()
    steps, fragments, began = 0, 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        rollouts = group.sample(_LENGTH)
        fragments += len(rollouts)
        steps += sum(rollout.num_env_steps for rollout in rollouts)
    wall = time.perf_counter() - began
    own = time.process_time() - own
    used = sum(group.foreach_runner(_cpu)) - used
    return {"together": steps / wall, "driver_cpu_ms": 1000 * own / fragments, "runner_cpu_us": 1e6 * used / steps}


def _cpu(runner: Any) -> float:
    return time.process_time()


def alone(group: EnvRunnerGroup, seconds: float) -> float:
    """Environment steps per second of asynchronous sampling."""
    group.request(_LENGTH)
    group.ready(60.0)
    steps, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        steps += sum(fragment.rollout.num_env_steps for fragment in group.ready(1.0))
    return steps / (time.perf_counter() - began)


def call_ms(group: EnvRunnerGroup, seconds: float) -> float:
    """Milliseconds of a fragment of one step, median."""
    times, began = [], time.perf_counter()
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        group.sample(1)
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times))


def memory_mb(group: EnvRunnerGroup) -> dict[str, float]:
    """RSS and PSS of a runner process, mean over runners."""
    numbers = group.foreach_runner(_pid)
    found: dict[str, list[float]] = {"rss_mb": [], "pss_mb": []}
    for number in numbers:
        lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()[1:]
        values = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}
        found["rss_mb"].append(values["Rss"])
        found["pss_mb"].append(values["Pss"])
    return {name: float(np.mean(each)) for name, each in found.items()}


def _pid(runner: Any) -> int:
    return os.getpid()


def measure(env: str, number: int, seconds: float) -> dict[str, Any]:
    """One row of the table."""
    began = time.perf_counter()
    group = make_group(env, number)
    row: dict[str, Any] = {"env": env, "num_env_runners": number, "start_s": time.perf_counter() - began}
    try:
        row.update(together(group, seconds))
        row["call_ms"] = call_ms(group, min(seconds, 1.0))
        row.update(memory_mb(group) if number else {"rss_mb": None, "pss_mb": None})
        row["alone"] = alone(group, seconds)
    finally:
        began = time.perf_counter()
        group.close()
    row["close_s"] = time.perf_counter() - began
    return row


def table(results: dict[str, Any]) -> str:
    """The results as a page."""
    lines = [
        "# Sampling throughput",
        "",
        f"{results['date']}, {results['machine']}, load {results['load']:.1f} before the run.",
        f"learner-core {results['version']}, Python {results['python']}, numpy {results['numpy']}.",
        f"Command: `{results['command']}`. What is measured is said in `benchmarks/sampling/run.py`.",
        "",
        "| environment | runners | together, steps/s | alone, steps/s | one step, ms | driver CPU, ms a fragment "
        "| runner CPU, us a step | start, s | RSS, MB | PSS, MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        memory = ["-" if row[name] is None else f"{row[name]:.0f}" for name in ("rss_mb", "pss_mb")]
        lines.append(
            f"| {row['env']} | {row['num_env_runners']} | {row['together']:,.0f} | {row['alone']:,.0f} "
            f"| {row['call_ms']:.2f} | {row['driver_cpu_ms'] if row['num_env_runners'] else 0:.2f} "
            f"| {row['runner_cpu_us']:.1f} | {row['start_s']:.2f} | {memory[0]} | {memory[1]} |"
        )
    lines += ["", f"The very first group of the program took {results['first_start_s']:.2f} s to start.", ""]
    return "\n".join(lines)


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--envs", nargs="+", default=["CartPole-v1", "HalfCheetah-v5"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "sampling")
    given = parser.parse_args()
    load = os.getloadavg()[0]
    began = time.perf_counter()
    make_group("CartPole-v1", 1).close()
    first = time.perf_counter() - began
    rows = [measure(env, number, given.seconds) for env in given.envs for number in (0, 1, 2)]
    results = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()} {platform.release()}",
        "load": load,
        "version": learner_core.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "command": f"python benchmarks/sampling/run.py --seconds {given.seconds:g} --envs {' '.join(given.envs)}",
        "first_start_s": first,
        "rows": rows,
    }
    text = table(results)
    print(text)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "sampling.json").write_text(json.dumps(results, indent=1) + "\n")
    (given.out / "sampling.md").write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
