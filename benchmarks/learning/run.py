"""Train a task with fixed settings and write its learning curve and final evaluation as JSON.

    python benchmarks/learning/run.py --task acrobot --backend torch --seed 1
    python benchmarks/learning/run.py --all        every task, backend and seed that has no result yet

A run takes one thread. Results go to benchmarks/results/learning/, one file a run; report.py makes the table and the
picture of them. ``--all`` runs each in a process of its own, and stable-baselines3's in .venv-bench where there is one.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
for _name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tasks import SEEDS, TASKS, Task  # noqa: E402 - after the environment is set

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "learning"
BACKENDS = ("torch", "tf")
_PEER_PYTHON = ROOT / ".venv-bench" / "bin" / "python"

__all__ = ["describe", "main", "result_path", "train", "write"]


def build_config(task: Task, backend: str, seed: int) -> Any:
    """The configuration of a task."""
    import learner_core as lc

    config = lc.get_config(task.algorithm).framework(backend, compile=task.compile)
    config.environment(task.env, env_config=dict(task.env_config))
    config.env_runners(**task.env_runners).training(**task.training)
    if task.policies:
        config.multi_agent(policies=list(task.policies))
    return config.rl_module(model=dict(task.model)).debugging(seed=seed)


def train(
    task: Task, backend: str, seed: int, *, checkpoint: Path | None = None, quiet: bool = False
) -> dict[str, Any]:
    """Train and evaluate.

    Args:
        task: what to train.
        backend: on which backend.
        seed: seed of everything.
        checkpoint: save the final state here.
        quiet: print no progress.

    Returns:
        ``curve`` [[environment steps, mean return of the last episodes, seconds], ...] and ``final``, the evaluation of
        the final policy (most likely actions).
    """
    config = build_config(task, backend, seed)
    recorded = None
    with tempfile.TemporaryDirectory() as folder:
        if task.recorded is not None:
            path = Path(folder) / "recording.state"
            recorded = _record(task, backend, seed, path)
            config.training(input_path=str(path))
        began, cpu = time.perf_counter(), time.process_time()
        curve: list[list[float]] = []
        timers: dict[str, float] = {}
        with config.build() as algorithm:
            while not _finished(algorithm, task):
                results = algorithm.train()
                for name, seconds in results["timers"].items():
                    timers[name] = timers.get(name, 0.0) + seconds
                position = results["num_env_steps_sampled_lifetime"] or results["training_iteration"]
                mean = results["env_runners"].get("episode_return_mean")
                if task.recorded is not None:
                    mean = algorithm.evaluate(20)["episode_return_mean"]
                if mean is not None:
                    curve.append([position, round(mean, 3), round(time.perf_counter() - began, 2)])
                    if not quiet:
                        print(f"{task.name} {backend} seed {seed}: {position} {mean:.1f}", flush=True)
            seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
            final = algorithm.evaluate(task.episodes)
            compiled = results["learners"].get("__all__", {}).get("compiled")
            if checkpoint is not None:
                algorithm.save(str(checkpoint))
    return {
        "curve": curve,
        "final": _rounded(final),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "timers": {name: round(value, 1) for name, value in timers.items()},
        "compiled": compiled,
        **({} if recorded is None else {"recorded": recorded}),
    }


def _rounded(results: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _rounded(value) if isinstance(value, dict) else round(float(value), 3) for name, value in results.items()
    }


def _finished(algorithm: Any, task: Task) -> bool:
    if task.iterations:
        return bool(algorithm.iteration >= task.iterations)
    return bool(algorithm.num_env_steps_sampled_lifetime >= task.steps)


def _record(task: Task, backend: str, seed: int, path: Path) -> dict[str, Any]:
    """Train the task that is imitated and record its final policy; says what the recording holds."""
    from learner_core.algorithm.recording import record

    assert task.recorded is not None
    name, episodes = task.recorded
    other = TASKS[name]
    with build_config(other, backend, seed).build() as algorithm:
        while not _finished(algorithm, other):
            algorithm.train()
        summary = record(algorithm, path, num_episodes=episodes)
    print(f"recorded {name}: {summary}", flush=True)
    return summary


def describe(task: Task, backend: str, seed: int) -> dict[str, Any]:
    """What a result has to say about how it came about."""
    versions = {}
    from importlib import metadata

    for package in (
        "learner-core",
        "torch",
        "tensorflow-cpu",
        "stable-baselines3",
        "gymnasium",
        "pettingzoo",
        "numpy",
        "mujoco",
    ):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "task": task.name,
        "algorithm": task.algorithm,
        "env": task.env,
        "steps": task.steps,
        "backend": backend,
        "seed": seed,
        "target": task.target,
        "episodes": task.episodes,
        "command": f"python benchmarks/learning/run.py --task {task.name} --backend {backend} --seed {seed}",
        "date": datetime.date.today().isoformat(),
        "machine": _machine(),
        "commit": _commit(),
        "settings": task.settings,
        "python": platform.python_version(),
        "versions": versions,
    }


def _commit() -> str | None:
    """The commit of the code that is run, "+" after it where the code differs from it; None outside a checkout."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "core", "plugins", "backends", "benchmarks/learning")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _machine() -> str:
    model = platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return f"{model}, {os.cpu_count()} cores, one thread a run"


def result_path(task: str, backend: str, seed: int) -> Path:
    """Where the result of a run stands."""
    return RESULTS / f"{task}-{backend}-{seed}.json"


def write(result: dict[str, Any], folder: Path) -> Path:
    """Write a result; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result['task']}-{result['backend']}-{result['seed']}.json"
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in result.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return path


def _run_all(names: list[str], backends: list[str], seeds: list[int]) -> int:
    """Every run that has no result yet, each in its own process; no ``seeds``: each task's. Returns how many failed."""
    failed = 0
    for name in names:
        for seed in seeds or TASKS[name].seeds:
            for backend in backends:
                if result_path(name, backend, seed).exists() or (backend == "sb3" and TASKS[name].peer is None):
                    continue
                if backend == "sb3" and not _PEER_PYTHON.exists():
                    print(f"{name} sb3 seed {seed}: not run, there is no .venv-bench (make bench makes it)")
                    continue
                python = str(_PEER_PYTHON) if backend == "sb3" else sys.executable
                arguments = ["--task", name, "--backend", backend, "--seed", str(seed)]
                code = subprocess.run([python, __file__, *arguments], check=False).returncode
                failed += code != 0
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(TASKS), action="append", help="which; more than one with --all")
    parser.add_argument("--backend", choices=[*BACKENDS, "sb3"], action="append")
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--all", action="store_true", help="all runs (or those of the tasks, backends, seeds given)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    given = parser.parse_args()
    if given.all:
        failed = _run_all(given.task or list(TASKS), given.backend or [*BACKENDS, "sb3"], given.seed or [])
        return 1 if failed else 0
    if not given.task:
        parser.error("--task or --all")
    task, backend, seed = TASKS[given.task[0]], (given.backend or ["torch"])[0], (given.seed or [SEEDS[0]])[0]
    if backend == "sb3":
        from sb3 import train as train_peer

        result = train_peer(task, seed)
    else:
        result = train(task, backend, seed)
    result = {**describe(task, backend, seed), **result}
    path = write(result, given.out)
    final = result["final"]["episode_return_mean"]
    verdict = "" if task.target is None else f" (target {task.target:g})"
    print(f"{task.name} {backend} seed {seed}: {final:.1f}{verdict} in {result['seconds']:.0f} s -> {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
