"""Saving and restoring a whole learner against torch.save and torch.load: 20 million parameters and Adam's moments.

    python benchmarks/learner_state.py [--backend torch|tf] [--parameters N] [--rounds N] [--folder DIR] [--out FILE]

Ours: ``learner.save_state(path)`` and ``learner.load_state(path)`` of a BC learner. Torch's: a network
of the same layers with ``torch.optim.Adam``; ``torch.save`` of both state_dicts, then ``torch.load(weights_only=True)``
and both ``load_state_dict``, in a process of its own. Both sides hold the same number of numbers, write a file that was
not there, sync it (ours its folder too) and read it back from the page cache, where writing has left it. Rounds are
paired and take turns in going first, after a sync of the disk; ratios are of the same round, above 1 means that ours is
faster. Peak memory is measured in a process of its own by the kernel's high-water mark, over what was resident before
the call, in units of the state's size; for saving, the state that ``get_state`` copies counts.
"""

from __future__ import annotations

import argparse
import functools
import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from peak_memory import nbytes, resident, start_peak

OBS, ACTIONS = 64, 8


def width_of(parameters: int) -> int:
    """Of four hidden layers that hold about so many parameters."""
    return int((parameters / 3) ** 0.5)


def ours(backend: str, parameters: int) -> Any:
    """A learner that has trained a step, so that the moments are not zero."""
    import gymnasium as gym

    from learner_core_algorithms import BCConfig

    config = (
        BCConfig()
        .environment(
            observation_space=gym.spaces.Box(-1, 1, (OBS,), np.float32), action_space=gym.spaces.Discrete(ACTIONS)
        )
        .framework(backend, compile=False)
        .training(train_batch_size=16, minibatch_size=16)
        .rl_module(model={"hidden": [width_of(parameters)] * 4, "init": "uniform"})
    )
    learner = config.build_learner()
    rng = np.random.default_rng(0)
    batch = {"obs": rng.uniform(-1, 1, (16, OBS)).astype(np.float32), "actions": rng.integers(0, ACTIONS, 16)}
    learner.update_from_batch(batch=batch)
    return learner


def in_torch(parameters: int) -> tuple[Callable[[Path], None], Callable[[Path], None]]:
    """(save, load) of the same network and Adam."""
    import torch

    width = width_of(parameters)
    sizes = [OBS, width, width, width, width, ACTIONS]
    layers = [torch.nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    network = torch.nn.Sequential(*layers)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.zeros(16, OBS)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

    def save(path: Path) -> None:
        with path.open("wb") as file:
            torch.save({"network": network.state_dict(), "optimizer": optimizer.state_dict()}, file)
            file.flush()
            os.fsync(file.fileno())

    def load(path: Path) -> None:
        state = torch.load(path, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])

    return save, load


def seconds(call: Callable[[], Any]) -> float:
    gc.collect()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure_memory(backend: str, parameters: int, path: Path) -> dict[str, float]:
    """Peaks over what was resident before, in units of the state."""
    learner = ours(backend, parameters)
    size = nbytes(learner.get_state())
    learner.save_state(path)
    learner.load_state(path)  # warm: allocators and imports
    before = start_peak()
    learner.save_state(path)
    saving = resident("VmHWM:") - before
    before = start_peak()
    learner.load_state(path)
    loading = resident("VmHWM:") - before
    return {"megabytes": size / 1e6, "saving": saving / size, "loading": loading / size}


def serve(parameters: int) -> None:
    """The other side: does what each line of the input says, "save PATH" or "load PATH"; answers with the seconds."""
    save, load = in_torch(parameters)
    print("ready", flush=True)
    for line in sys.stdin:
        step, path = line.rstrip("\n").split(" ", 1)
        work = functools.partial(save if step == "save" else load, Path(path))
        print(seconds(work), flush=True)


def measure_time(backend: str, parameters: int, rounds: int, folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--serve", "--parameters", str(parameters)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdin is not None and other.stdout is not None
    tell, answers = other.stdin, other.stdout
    learner = ours(backend, parameters)
    assert answers.readline() == "ready\n"

    def mine(step: str, path: Path) -> float:
        return seconds(functools.partial(learner.save_state if step == "save" else learner.load_state, path))

    def theirs(step: str, path: Path) -> float:
        tell.write(f"{step} {path}\n")
        tell.flush()
        return float(answers.readline())

    sides = {"learner-core": mine, "torch": theirs}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    sizes: dict[str, float] = {}
    try:
        for round_ in range(rounds + 1):
            for name in sorted(sides, reverse=bool(round_ % 2)):
                path = folder / name
                path.unlink(missing_ok=True)
                os.sync()
                pair = (sides[name]("save", path), sides[name]("load", path))
                sizes[name] = path.stat().st_size / 1e6
                if round_:  # the first only warms up
                    times[name].append(pair)
    finally:
        tell.close()
        other.wait()
    pairs = list(zip(times["torch"], times["learner-core"], strict=True))
    ratios = {
        "save": [theirs[0] / mine[0] for theirs, mine in pairs],
        "restore": [theirs[1] / mine[1] for theirs, mine in pairs],
        "both": [sum(theirs) / sum(mine) for theirs, mine in pairs],
    }
    return {
        "seconds": {
            name: {"save": statistics.median(a for a, _ in t), "restore": statistics.median(b for _, b in t)}
            for name, t in times.items()
        },
        "ratio": {
            name: dict(zip(("low", "median", "high"), statistics.quantiles(values, n=4), strict=True))
            for name, values in ratios.items()
        },
        "file_megabytes": sizes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="torch", choices=("torch", "tf"))
    parser.add_argument("--parameters", type=int, default=20_000_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; a temporary folder by default")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--memory-only", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.parameters)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        if arguments.memory_only:
            print(json.dumps(measure_memory(arguments.backend, arguments.parameters, folder / "state")))
            return
        command = [sys.executable, __file__, "--memory-only", "--backend", arguments.backend]
        command += ["--parameters", str(arguments.parameters), "--folder", str(folder)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        memory = json.loads(done.stdout.splitlines()[-1])
        report: dict[str, Any] = {
            "backend": arguments.backend,
            "parameters": arguments.parameters,
            "rounds": arguments.rounds,
            "load_average": os.getloadavg()[0],
            "num_cpus": os.cpu_count(),
            "memory": memory,
            **measure_time(arguments.backend, arguments.parameters, arguments.rounds, folder),
        }
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
