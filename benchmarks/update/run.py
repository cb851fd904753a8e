"""PPO's update, paired with other libraries: same rollout, same settings, same weights, one thread, one run.

    python benchmarks/update/run.py [--workloads W1-64 W2] [--peers sb3 tf torch] [--rounds N] [--out FOLDER]

Every peer is a process of its own (Torch and TensorFlow must not share one). They build and compile one after the
other, show that they do the same work (parameters, loss and gradient norm of the first minibatch), warm up, and then
take turns, one update each, in an order that rotates from round to round. A ratio compares two updates of the same
round, so that what else the machine does strikes both.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from report import write
from workloads import WORKLOADS, Workload

FOLDER = Path(__file__).parent
#: The peer that ratios are taken against.
REFERENCE = "sb3"
#: name -> (script, options); "sb3" runs in the environment of LC_BENCH_PYTHON.
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sb3": ("sb3.py", {}),
    "plain-torch": ("plain_torch.py", {}),
    "torch-eager": ("ours.py", {"backend": "torch", "compile": False}),
    "torch": ("ours.py", {"backend": "torch", "compile": True}),
    "torch-group": ("ours.py", {"backend": "torch", "compile": True, "level": "group"}),
    "torch-algorithm": ("ours.py", {"backend": "torch", "compile": True, "level": "algorithm"}),
    "tf": ("ours.py", {"backend": "tf", "compile": True}),
    "tf-group": ("ours.py", {"backend": "tf", "compile": True, "level": "group"}),
    "tf-algorithm": ("ours.py", {"backend": "tf", "compile": True, "level": "algorithm"}),
}
ROUNDS = {"W1-64": 15, "W1-1024": 20, "W2": 10, "W3": 7}
#: Loss of the first minibatch, absolute; and its gradient norm, relative: SB3 and plain torch divide advantages by the
#: sample standard deviation, we by the population's, sqrt(64/63) apart at a minibatch of 64.
LOSS_TOLERANCE, NORM_TOLERANCE = 1e-4, 1e-2


class DifferentWorkError(RuntimeError):
    """Two peers do not compute the same update."""


@dataclass
class Process:
    """A running peer and what it has measured."""

    name: str
    process: subprocess.Popen[str]
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a line, wait for the answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"peer {self.name!r} ended with status {self.process.wait()}; its messages are above")
        answer: dict[str, Any] = json.loads(line)
        return answer


def start(name: str, others: str, cache: str | None) -> Process:
    """Start a peer with one thread everywhere and its caches in ``cache``; ``None``: where they always are."""
    script, options = PEERS[name]
    python = sys.executable if options else others
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    path = os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    caches = {}
    if cache is not None:
        caches = {"LEARNER_CORE_CACHE": cache, "TORCHINDUCTOR_CACHE_DIR": os.path.join(cache, "inductor")}
    environment = {**os.environ, **threads, **caches, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "2"}
    command = [python, str(FOLDER / "peers" / script)]
    pipe = subprocess.PIPE
    return Process(name, subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment))


def check_same_work(processes: list[Process]) -> None:
    """All peers agree with the first on parameters, loss and gradient norm.

    Raises:
        DifferentWorkError: names who differs in what.
    """
    first = processes[0].facts
    for process in processes:
        facts = process.facts
        if facts["num_parameters"] != first["num_parameters"]:
            raise DifferentWorkError(
                f"{process.name}: {facts['num_parameters']} parameters, not {first['num_parameters']}"
            )
        if not abs(facts["loss"] - first["loss"]) <= LOSS_TOLERANCE:
            raise DifferentWorkError(f"{process.name}: first loss {facts['loss']}, not {first['loss']}")
        if not math.isclose(facts["gradient_norm"], first["gradient_norm"], rel_tol=NORM_TOLERANCE):
            raise DifferentWorkError(
                f"{process.name}: gradient norm {facts['gradient_norm']}, not {first['gradient_norm']}"
            )


def measure(workload: Workload, names: list[str], rounds: int, others: str, cache: str | None) -> list[Process]:
    """Build, check and time the peers on one workload."""
    processes: list[Process] = []
    try:
        for name in names:
            process = start(name, others, cache)
            processes.append(process)
            process.facts = process.ask(do="build", workload=workload.name, options=PEERS[name][1])
            process.facts |= process.ask(do="check")
            print(f"  {name}: {json.dumps(process.facts)}", flush=True)
        check_same_work(processes)
        for turn in range(rounds):
            at = turn % len(processes)
            for process in processes[at:] + processes[:at]:
                answer = process.ask(do="round")
                process.seconds.append(answer["seconds"])
                process.cpu_seconds.append(answer["cpu_s"])
    finally:
        for process in processes:
            if process.process.stdin is not None:
                process.process.stdin.close()
        for process in processes:
            process.process.wait()
    return processes


def main() -> int:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=list(WORKLOADS), metavar="NAME")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS), metavar="NAME")
    parser.add_argument("--rounds", type=int, help="updates of each peer; by default by workload")
    parser.add_argument("--keep-caches", action="store_true", help="load what earlier runs have compiled")
    parser.add_argument("--out", type=Path, default=FOLDER.parent / "results" / "update")
    given = parser.parse_args()
    others = os.environ.get("LC_BENCH_PYTHON", "")
    names = list(given.peers)
    if REFERENCE not in names:
        names.insert(0, REFERENCE)
    if not others:
        parser.error("LC_BENCH_PYTHON names no interpreter with stable-baselines3; `make bench` sets it")
    found: dict[str, Any] = {}
    began = time.strftime("%Y-%m-%d %H:%M")
    for name in given.workloads:
        workload = WORKLOADS[name]
        rounds = given.rounds or ROUNDS[name]
        print(f"{name}: {rounds} rounds of {workload.num_steps} steps", flush=True)
        load = os.getloadavg()[0]
        with tempfile.TemporaryDirectory() as cache:
            processes = measure(workload, names, rounds, others, None if given.keep_caches else cache)
        found[name] = {
            "steps": workload.num_steps,
            "load_before": load,
            "load_after": os.getloadavg()[0],
            "peers": {
                p.name: {"facts": p.facts, "seconds": p.seconds, "cpu_seconds": p.cpu_seconds} for p in processes
            },
        }
        write(found, given.out, began=began, reference=REFERENCE, others=others)
    print((given.out / "update.md").read_text())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
