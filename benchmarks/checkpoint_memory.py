"""Memory that saving, restoring and opening a run take: PPO with two large networks, SAC with a full replay buffer.

    python benchmarks/checkpoint_memory.py [--backend torch|tf] [--folder DIR]

Peaks by the kernel's high-water mark, in units of the state: of ``Algorithm.save`` and ``restore`` over what was
resident before, in the run itself; of ``Algorithm.from_checkpoint`` in a process of its own, where a tiny checkpoint
of the same kind was opened before, so that frameworks are loaded. ``opened``: what stays resident of that run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from peak_memory import nbytes, resident, start_peak

import learner_core as lc
from learner_core_algorithms import PPOConfig, SACConfig


class Wide(gym.Env[Any, Any]):
    """Random observations of 400 numbers, for ever."""

    observation_space = gym.spaces.Box(-1, 1, (400,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, env_config: Any = None) -> None:
        pass

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), 0.0, False, False, {}


def networks(backend: str, *, large: bool) -> Any:
    """A PPO run whose state is its networks; large: 126 MB."""
    # Each vector (parameters, m, v) is over 32 MB: what malloc keeps of smaller ones makes the measurement uncertain.
    config = PPOConfig().framework(backend, compile=False).environment(Wide).env_runners(num_envs_per_env_runner=1)
    config.training(train_batch_size=8, minibatch_size=8, num_epochs=1)
    algo = config.rl_module(model={"hidden": [2100, 2100] if large else [16, 16]}).build()
    algo.train()
    return algo


def replay(backend: str, *, large: bool) -> Any:
    """A SAC run whose state is its replay buffer; large: 65 MB."""
    capacity = 40_000 if large else 1_000
    config = SACConfig().framework(backend, compile=False).environment(Wide).rl_module(model={"hidden": [16]})
    config.training(train_batch_size=8, learning_starts=8, buffer_capacity=capacity, timesteps_per_iteration=4)
    algo = config.build()
    algo.train()
    storage = algo.replay._storage
    rng = np.random.default_rng(0)
    while storage.fill < capacity:
        columns = {name: np.repeat(column[:1], 500, 0) for name, column in storage.columns.items()}
        columns["obs"] = rng.standard_normal((500, 400)).astype(np.float32)
        columns["next_obs"] = np.roll(columns["obs"], -1, axis=0)
        storage.add(columns, np.ones(500, bool))
    return algo


RUNS = {"networks": networks, "replay": replay}


def measure(backend: str, name: str, folder: Path) -> dict[str, float]:
    """Saving and restoring; leaves the run's checkpoint in the folder, and one of a tiny run."""
    small = RUNS[name](backend, large=False)
    small.save(folder / f"tiny-{name}")
    small.stop()
    algo, path = RUNS[name](backend, large=True), folder / name
    algo.save(path), algo.restore(path)  # whatever is made once
    size = nbytes(algo.get_state())
    before = start_peak()
    algo.save(path)
    saving = resident("VmHWM:") - before
    before = start_peak()
    algo.restore(path)
    restoring = resident("VmHWM:") - before
    algo.stop()
    return {"megabytes": size / 1e6, "saving": saving / size, "restoring": restoring / size}


def measure_opening(name: str, folder: Path) -> dict[str, float]:
    """``from_checkpoint`` of what ``measure`` has left: its peak and what stays, in bytes."""
    with lc.Algorithm.from_checkpoint(folder / f"tiny-{name}", env=Wide) as tiny:
        tiny.train()
    del tiny
    before = start_peak()
    algo = lc.Algorithm.from_checkpoint(folder / name, env=Wide)
    peak = resident("VmHWM:") - before
    stays = start_peak() - before
    algo.stop()
    return {"opening": peak, "opened": stays}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="torch", choices=("torch", "tf"))
    parser.add_argument("--folder", type=Path, help="for checkpoints; a temporary folder by default")
    parser.add_argument("--opening", choices=tuple(RUNS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.opening:
        print(json.dumps(measure_opening(arguments.opening, arguments.folder)))
        return
    report: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for name in RUNS:
            report[name] = measure(arguments.backend, name, Path(folder))
            command = [sys.executable, __file__, "--folder", folder, "--opening", name]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            opening = json.loads(done.stdout.splitlines()[-1])
            report[name].update({key: value / 1e6 / report[name]["megabytes"] for key, value in opening.items()})
    print(json.dumps(report))


if __name__ == "__main__":
    main()
