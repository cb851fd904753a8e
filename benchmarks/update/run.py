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
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from peer_process import PeerProcess
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


class Peer(PeerProcess):
    """A running peer and what it has measured.

    Args:
        name: one of ``PEERS``.
        others: the Python of other libraries' peers.
        cache: folder of its caches; ``None``: where they always are.
    """

    def __init__(self, name: str, others: str, cache: str | None) -> None:
        script, options = PEERS[name]
        environment = {"TF_CPP_MIN_LOG_LEVEL": "2"}
        if cache is not None:
            environment |= {"LEARNER_CORE_CACHE": cache, "TORCHINDUCTOR_CACHE_DIR": os.path.join(cache, "inductor")}
        command = [sys.executable if options else others, str(FOLDER / "peers" / script)]
        super().__init__(name, command, folders=[FOLDER], environment=environment)
        self.facts: dict[str, Any] = {}
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []


def check_same_work(processes: list[Peer]) -> None:
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


def measure(workload: Workload, names: list[str], rounds: int, others: str, cache: str | None) -> list[Peer]:
    """Build, check and time the peers on one workload."""
    processes: list[Peer] = []
    try:
        for name in names:
            process = Peer(name, others, cache)
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
            process.hang_up()
        for process in processes:
            process.close()
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
