"""Measure everything about state files and write benchmarks/results/state/ anew, tables and figures.

    python benchmarks/state_results.py [--quick]

Runs serialisation.py (memory cold and warm) and learner_state.py on both backends, each in processes of its own, one
after the other: about ten minutes on a quiet machine. --quick takes few rounds and 80 MB only, to see that it works,
and prints instead of writing.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "state"
OTHERS = ("safetensors", "np.savez", "torch.save")


def run(script: str, *options: str) -> None:
    print(f"--- {script} {' '.join(options)}", flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run([sys.executable, str(HERE / script), *options], check=True, env=environment)


def ratio(entry: dict[str, Any]) -> str:
    """Median and quartiles, of either script."""
    if "quartiles" in entry:
        low, high = entry["quartiles"]
        return f"{entry['ratio']:.2f} ({low:.2f} to {high:.2f})"
    return f"{entry['median']:.2f} ({entry['low']:.2f} to {entry['high']:.2f})"


def processor() -> str:
    with open("/proc/cpuinfo") as lines:
        return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *rows]]


def readme(arrays: dict[str, Any], learners: dict[str, Any]) -> str:
    """The tables, in the words of the page."""
    names = ("torch", "safetensors", "numpy")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    tensorflow = [
        n for n in ("tensorflow", "tensorflow-cpu") if n in {d.name for d in importlib.metadata.distributions()}
    ]
    versions += "".join(f", {name} {importlib.metadata.version(name)}" for name in tensorflow)
    loads = [arrays[memory][f"load_average_{when}"] for memory in arrays for when in ("before", "after")]
    loads += [entry["load_average"] for entry in learners.values()]
    lines = [
        "# State files: encoding, saving and restoring",
        "",
        "Written by `python benchmarks/state_results.py`; do not edit.",
        "",
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {processor()}, {len(os.sched_getaffinity(0))} processors, "
        f"load averages between {min(loads):.1f} and {max(loads):.1f} (a quiet machine shows 1 to 2, its own).",
        f"{versions}. Ratios are of the same round: median, first to third quartile; above 1 learner-core is faster.",
        "",
        "A learner of 20 million parameters with Adam's moments (242 MB), to disk with fsync, beside `torch.save` and",
        "`torch.load` of the same numbers. Restoring verifies every byte, which `torch.load` does not.",
        "",
    ]
    rows = []
    for backend, entry in learners.items():
        seconds = [f"{entry['seconds'][side]['save'] * 1000:.0f}, {entry['seconds'][side]['restore'] * 1000:.0f}"
                   for side in ("learner-core", "torch")]  # fmt: skip
        peaks = f"{entry['memory']['saving']:.2f}, {entry['memory']['loading']:.2f}"
        rows.append([backend, *seconds, *(ratio(entry["ratio"][step]) for step in ("save", "restore", "both")), peaks])
    header = ["backend", "ours: save, restore, ms", "Torch's, ms", "save", "restore", "both", "peak memory / state"]
    lines += [*table(header, rows), ""]
    lines += [
        'float32 arrays. "cold": memory comes from the kernel every time; "warm": malloc keeps what is freed (but no',
        "array of 32 MB or more). Decoding verifies and copies; views verify only.",
        "",
    ]
    rows = []
    for memory, figures in arrays.items():
        for title, by_library in figures.items():
            if not isinstance(by_library, dict) or "learner-core" not in by_library:
                continue
            for other in OTHERS:
                steps = list(by_library[other])
                times = [f"{by_library['learner-core'][step]['ms']:.1f}" for step in steps]
                ratios = [ratio(by_library[other][step]) for step in steps]
                rows.append([title, memory, other, ", ".join(times), *ratios])
    header = ["what", "memory", "against", "ours, ms", "encode or save", "decode or load", "both"]
    return "\n".join([*lines, *table(header, rows), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) if arguments.quick else RESULTS
        few = ["--sizes", "80", "--rounds", "5", "--largest-file", "0"] if arguments.quick else []
        run("serialisation.py", *few, "--json", str(folder / "arrays.json"))
        learners: dict[str, Any] = {}
        for backend in ("torch", "tf"):
            path = folder / f"learner_state_{backend}.json"
            run(
                "learner_state.py",
                "--backend",
                backend,
                "--rounds",
                "5" if arguments.quick else "15",
                "--out",
                str(path),
            )
            learners[backend] = json.loads(path.read_text())
        page = readme(json.loads((folder / "arrays.json").read_text()), learners)
        if arguments.quick:
            print(page)
        else:
            (folder / "README.md").write_text(page)


if __name__ == "__main__":
    main()
