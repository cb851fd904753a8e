"""State files against safetensors, np.savez and torch.save: paired, alternating, in one process.

    python benchmarks/serialisation.py [--sizes 4 80 800] [--rounds N] [--folder DIR] [--json FILE]

Needs safetensors and torch beside learner-core. In every round each library does the same work once, in an order drawn
afresh (whoever follows a library inherits its dirty pages and its freed memory) and after a sync; a ratio compares
times of the same round, so that what else the machine does strikes both. Told are the median and the quartiles. Above
1: learner-core is faster. Every library writes float32 arrays of the same values, and what it reads back is compared.
"file" includes fsync of the file for all, and of the folder for learner-core. On a machine that others use too,
--processor-time tells more than the clock on the wall (but leaves out waiting for the disk, and hides what several
processors gain).

What is decoded needs memory, and whether malloc has it at hand decides more than the library does. So all is measured
twice, each in a process of its own: "cold", where malloc returns what is freed and asks the kernel for fresh, cleared
pages every time, as in a process that restores once; and "warm", where it keeps what is freed and gives it out again,
as in a process that decodes over and over (arrays of 32 MB and more it never keeps: at 800 MB both are cold). Files
are measured cold.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import io
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
import safetensors.numpy
import torch

from learner_core import load_state, save_state
from learner_core.state.format import decode, encode

#: How glibc's malloc is told; for every library alike.
MEMORY = {
    "cold": {"MALLOC_MMAP_THRESHOLD_": "131072"},
    "warm": {
        "MALLOC_MMAP_THRESHOLD_": "33554432",
        "MALLOC_TRIM_THRESHOLD_": "4000000000",
        "MALLOC_TOP_PAD_": "400000000",
    },
}

Tree = dict[str, np.ndarray[Any, Any]]
OURS = "learner-core"


def arrays(megabytes: int) -> Tree:
    """About so many megabytes of float32, in arrays like those of a network and its optimizer."""
    rng = np.random.default_rng(0)
    rows = max(1, megabytes * 1_000_000 // 4 // 1024 // 12)
    tree: Tree = {}
    for index in range(12):
        tree[f"layer.{index}.weight"] = rng.standard_normal((rows, 1024), np.float32)
        tree[f"layer.{index}.bias"] = rng.standard_normal(1024, np.float32)
    return tree


def learner_state(parameters: int) -> Tree:
    """Parameters and both moments of Adam."""
    rng = np.random.default_rng(0)
    width = int((parameters // 5) ** 0.5)
    names = [f"{kind}.{i}.weight" for kind in ("param", "m", "v") for i in range(5)]
    return {name: rng.standard_normal((width, width), np.float32) for name in names}


def through_buffer(save: Callable[[io.BytesIO], None]) -> bytes:
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()


def read_npz(source: Any) -> Tree:
    with np.load(source, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def write_synced(path: Path, write: Callable[[Any], None]) -> None:
    with path.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def tensors(tree: Tree) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in tree.items()}


def untensors(tree: dict[str, torch.Tensor]) -> Tree:
    return {name: tensor.numpy() for name, tensor in tree.items()}


def memory_work(tree: Tree) -> dict[str, dict[str, Callable[..., Any]]]:
    """{library: {"encode": () -> bytes, "decode": bytes -> tree}}"""
    torch_tree = tensors(tree)
    return {
        OURS: {"encode": lambda: encode(tree).tobytes(), "decode": decode},
        f"{OURS}, views": {"encode": lambda: encode(tree).tobytes(), "decode": lambda data: decode(data, copy=False)},
        "safetensors": {"encode": lambda: safetensors.numpy.save(tree), "decode": safetensors.numpy.load},
        "np.savez": {
            "encode": lambda: through_buffer(lambda buffer: np.savez(buffer, allow_pickle=False, **tree)),
            "decode": lambda data: read_npz(io.BytesIO(data)),
        },
        "torch.save": {
            "encode": lambda: through_buffer(lambda buffer: torch.save(torch_tree, buffer)),
            "decode": lambda data: untensors(torch.load(io.BytesIO(data), weights_only=True)),
        },
    }


def file_work(tree: Tree, folder: Path) -> dict[str, dict[str, Callable[..., Any]]]:
    """{library: {"save": () -> path, "load": path -> tree}}"""
    torch_tree = tensors(tree)

    def saver(name: str, write: Callable[[Path], None]) -> Callable[[], Path]:
        def save() -> Path:
            write(folder / name)
            return folder / name

        return save

    def synced(writer: Callable[[Any], None]) -> Callable[[Path], None]:
        return lambda path: write_synced(path, writer)

    return {
        OURS: {"save": saver("ours", lambda path: save_state(path, tree)), "load": load_state},
        f"{OURS}, mapped": {
            "save": saver("mapped", lambda path: save_state(path, tree)),
            "load": lambda path: load_state(path, mmap=True),
        },
        "safetensors": {
            "save": saver("safetensors", synced(lambda file: file.write(safetensors.numpy.save(tree)))),
            "load": safetensors.numpy.load_file,
        },
        "np.savez": {
            "save": saver("npz", synced(lambda file: np.savez(file, allow_pickle=False, **tree))),
            "load": read_npz,
        },
        "torch.save": {
            "save": saver("torch", synced(lambda file: torch.save(torch_tree, file))),
            "load": lambda path: untensors(torch.load(path, weights_only=True)),
        },
    }


def same(first: Tree, second: Tree) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def measure(
    work: dict[str, dict[str, Callable[..., Any]]], tree: Tree, *, rounds: int, clock: Callable[[], float]
) -> dict[str, dict[str, list[float]]]:
    """Seconds of every round: {library: {step: [seconds]}}."""
    times: dict[str, dict[str, list[float]]] = {name: {step: [] for step in steps} for name, steps in work.items()}
    libraries = list(work)
    rng = np.random.default_rng()
    for turn in range(rounds + 1):
        for name in rng.permutation(libraries).tolist():
            (first, write), (second, read) = work[name].items()
            gc.collect()
            os.sync()
            start = clock()
            written = write()
            middle = clock()
            result = read(written)
            end = clock()
            if turn == 0:  # the first round warms up, and is where results are compared
                if not same(tree, result):
                    raise SystemExit(f"{name} did not give back what it was given")
                continue
            times[name][first].append(middle - start)
            times[name][second].append(end - middle)
            del written, result
    return times


def report(title: str, times: dict[str, dict[str, list[float]]], megabytes: float) -> dict[str, Any]:
    """Print medians, rates and the paired ratios; return them."""
    print(f"\n{title}")
    figures: dict[str, Any] = {}
    ours = times[OURS]
    steps = list(ours)
    print(f"{'':22}" + "".join(f"{step:>10} ms  GB/s  ours is faster by (quartiles)  " for step in [*steps, "both"]))
    for name, series in times.items():
        line, row = f"{name:22}", {}
        for step in [*steps, "both"]:
            mine = ours[step] if step != "both" else [sum(pair) for pair in zip(*ours.values(), strict=True)]
            theirs = series[step] if step != "both" else [sum(pair) for pair in zip(*series.values(), strict=True)]
            ratios = [other / own for own, other in zip(mine, theirs, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            median = statistics.median(theirs)
            row[step] = {"ms": 1000 * median, "ratio": middle, "quartiles": [low, high]}
            line += f"{1000 * median:10.2f} {megabytes / 1000 / median:7.2f}  "
            line += f"{middle:6.2f}x ({low:5.2f} to {high:5.2f})          "
        figures[name] = row
        print(line.rstrip())
    return figures


def in_process(memory: str, options: list[str] | None = None) -> Any:
    """Measure in a process whose malloc is told so from its beginning; what it wrote with --json."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.json"
        extra = ["--memory", memory, "--json", str(path)] if options is None else []
        command = [sys.executable, __file__, *(sys.argv[1:] if options is None else options), *extra]
        subprocess.run(command, check=True, env={**os.environ, **MEMORY[memory]})
        return json.loads(path.read_text()) if path.exists() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[4, 80, 800], help="megabytes of float32")
    parser.add_argument("--rounds", type=int, default=0, help="rounds per size (default: by size, 5 to 30)")
    parser.add_argument("--folder", type=Path, help="where the files go (default: a temporary folder)")
    parser.add_argument("--largest-file", type=int, default=800, help="megabytes; larger sizes in memory only")
    parser.add_argument("--processor-time", action="store_true", help="instead of the time on the wall")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    parser.add_argument("--memory", choices=sorted(MEMORY), help="measure only so (default: both, one by one)")
    arguments = parser.parse_args()
    if arguments.memory is None:
        both = {memory: in_process(memory) for memory in MEMORY}
        if arguments.json:
            arguments.json.write_text(json.dumps(both, indent=1) + "\n")
        return
    if any(os.environ.get(name) != value for name, value in MEMORY[arguments.memory].items()):
        in_process(arguments.memory, sys.argv[1:])
        return
    torch.set_num_threads(1)
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "safetensors", "torch")}
    print(f"\n{versions}, {len(os.sched_getaffinity(0))} processors, load {os.getloadavg()[0]:.1f}, {arguments.memory}")
    figures: dict[str, Any] = {"versions": versions, "load_average_before": os.getloadavg()[0]}
    figures["num_cpus"] = len(os.sched_getaffinity(0))
    clock = time.process_time if arguments.processor_time else time.perf_counter
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for size in arguments.sizes:
            tree = arrays(size)
            rounds = arguments.rounds or max(5, min(30, 1500 // size))
            megabytes = sum(array.nbytes for array in tree.values()) / 1e6
            title = f"{size} MB in memory"
            times = measure(memory_work(tree), tree, rounds=rounds, clock=clock)
            figures[title] = report(f"{size} MB in memory, {arguments.memory}, {rounds} rounds", times, megabytes)
            if size > arguments.largest_file or arguments.memory == "warm":
                continue
            times = measure(file_work(tree, Path(folder)), tree, rounds=rounds, clock=clock)
            figures[f"{size} MB file"] = report(f"{size} MB file, fsync included, {rounds} rounds", times, megabytes)
        if arguments.largest_file >= 240 and arguments.memory == "cold":
            tree = learner_state(20_000_000)
            megabytes = sum(array.nbytes for array in tree.values()) / 1e6
            rounds = arguments.rounds or 9
            times = measure(file_work(tree, Path(folder)), tree, rounds=rounds, clock=clock)
            title = f"20 M parameters with Adam's moments ({megabytes:.0f} MB), file, fsync included, {rounds} rounds"
            figures["20 M parameters, file"] = report(title, times, megabytes)
    figures["load_average_after"] = os.getloadavg()[0]
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
