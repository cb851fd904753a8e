"""The cost model of docs/scaling.md: its parts measured one by one, what they predict, and what groups really take.

    python benchmarks/group/model.py [--works 20k 20M] [--blocks N] [--out FOLDER]

No part is measured on a group. A learner's own work: one process, or two at a time that do not know of each other, make
the updates of one of n learners with a reduction that returns what it is given. The ring: two processes do something
else for as long as such a learner does between two reductions, and reduce; what that adds. The driver: an empty request
and its answers, and a copy of the batch. Then groups of one and two learners make the same updates, and the prediction
is compared with their medians. Parts and groups take turns, several times. docs/decisions/measurements.md says why.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from group_peers import FOLDER, Peer, start_peer
from machine import processor
from peer_process import PeerProcess
from work import WORKS, Work, batch

from learner_core.group.collectives import load_collective

#: backend, collective; one learner needs no collective, so it is measured with the first of each backend.
RINGS = [("torch", "torch"), ("torch", "horovod"), ("tf", "horovod")]
#: A ring between hosts of 100 Gbit/s, as in docs/scaling.md: seconds a hop, bytes a second.
NETWORK = (3e-5, 1.1e10)


class Parts:
    """Two processes of peers/parts.py."""

    def __init__(self, backend: str, collective: str) -> None:
        self.ranks = [start_peer(f"{backend} {rank}", "parts.py", [backend, collective]) for rank in range(2)]
        self._plugin = load_collective(collective)

    def both(self, each: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Ask both at the same time."""
        for rank, request in zip(self.ranks, each, strict=True):
            rank.send(**request)
        return [rank.receive() for rank in self.ranks]

    def join(self) -> None:
        """Let them meet."""
        self.both([{"do": "prepare"}] * 2)
        with self._plugin.open_rendezvous(2, timeout_s=60.0) as meeting:
            self.both([{"do": "join", "rank": rank, "size": 2, "meeting": meeting.for_rank(rank)} for rank in range(2)])

    def measure(self, work: Work, length: int, rounds: int) -> dict[str, list[float]]:
        """Milliseconds: an update of one learner; of one of two, alone and beside the other; a sum; each ``rounds``."""
        found: dict[str, list[float]] = {}
        update = {"do": "update"}
        self.ranks[0].ask(do="build", work=work.name, size=1, rank=0)
        found["one"] = [1e3 * self.ranks[0].ask(**update)["seconds"] for _ in range(rounds)]
        self.both([{"do": "build", "work": work.name, "size": 2, "rank": rank} for rank in range(2)])
        found["half alone"] = [1e3 * self.ranks[0].ask(**update)["seconds"] for _ in range(rounds)]
        found["half"] = [1e3 * max(each["seconds"] for each in self.both([update] * 2)) for _ in range(rounds)]
        between = statistics.median(found["half"]) / work.num_steps
        count = max(4, min(40, int(1000 / between)))
        request = {"do": "reduce", "length": length, "work_ms": between, "count": count}
        found["sum"] = [statistics.mean(each["ms"] for each in self.both([request] * 2)) for _ in range(rounds)]
        return found

    def close(self) -> None:
        """End both: they leave the ring together."""
        for rank in self.ranks:
            rank.hang_up()
        for rank in self.ranks:
            rank.close()


def driver_ms(peer: PeerProcess, work: Work) -> float:
    """What the driver adds: a request and its answers, and a copy of the batch."""
    columns = batch(work)
    copies = []
    for _ in range(20):
        began = time.perf_counter()
        for column in columns.values():
            column.copy()
        copies.append(1e3 * (time.perf_counter() - began))
    return statistics.median(peer.ask(do="empty")["ms"]) + statistics.median(copies)


def main() -> int:
    """Measure, predict, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", nargs="+", default=list(WORKS), choices=list(WORKS), metavar="NAME")
    parser.add_argument("--blocks", type=int, default=3, help="how often parts and groups take turns")
    parser.add_argument("--out", type=Path, default=FOLDER.parent / "results" / "group")
    given = parser.parse_args()
    load = os.getloadavg()[0]
    rows = [
        compare(WORKS[name], backend, collective, given.blocks) for name in given.works for backend, collective in RINGS
    ]
    given.out.mkdir(parents=True, exist_ok=True)
    about = {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "machine": f"{processor()}, {os.cpu_count()} logical processors, load {load:.1f} to {os.getloadavg()[0]:.1f}",
        "command": " ".join(["python benchmarks/group/model.py", *sys.argv[1:]]),
    }
    (given.out / "model.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    (given.out / "model.md").write_text(markdown(about, rows))
    print(markdown(about, rows))
    return 0


def compare(work: Work, backend: str, collective: str, blocks: int) -> dict[str, Any]:
    """Constants, predictions and measurements of one ring on one work, in ms."""
    groups = Peer(f"{backend}, {collective}", sizes=[1, 2])
    parts: dict[str, list[float]] = {}
    drivers: dict[int, list[float]] = {size: [] for size in groups.sizes}
    rounds = max(3, work.rounds // 2)
    for _ in range(blocks):
        for size in groups.sizes:

            def ask(peer: PeerProcess, found: list[float] = drivers[size]) -> None:
                found.append(driver_ms(peer, work))

            groups.measure(work, size, rounds, before_end=ask)
        pair = Parts(backend, collective)
        pair.join()
        for part, values in pair.measure(work, groups.num_parameters, rounds).items():
            parts.setdefault(part, []).extend(values)
        pair.close()
    middle = {name: statistics.median(values) for name, values in parts.items()}
    driver = {size: statistics.median(values) for size, values in drivers.items()}
    predicted = {1: driver[1] + middle["one"], 2: driver[2] + middle["half"] + work.num_steps * middle["sum"]}
    measured = {size: [1e3 * each["seconds"] for each in rounds] for size, rounds in groups.rounds.items()}
    found = {
        "work": work.name,
        "ring": groups.name,
        "num_parameters": groups.num_parameters,
        "parts": {name: np.percentile(values, [25, 50, 75]).tolist() for name, values in parts.items()},
        "driver": driver,
        "predicted": predicted,
        "measured": {size: np.percentile(values, [25, 50, 75]).tolist() for size, values in measured.items()},
        "ratio": {size: predicted[size] / statistics.median(values) for size, values in measured.items()},
    }
    print(json.dumps(found), flush=True)
    return found


def constants(of: dict[str, Any]) -> dict[str, float]:
    """T_step + P t_opt (ms), M t_row (ms) of one learner, and their growth beside another learner."""
    steps = WORKS[of["work"]].num_steps
    one, half, alone = (of["parts"][name][1] / steps for name in ("one", "half", "half alone"))
    rows = 2.0 * max(one - alone, 0.0)
    return {"fixed": max(one - rows, 0.0), "rows": rows, "crowding": half / alone}


def markdown(about: dict[str, str], rows: list[dict[str, Any]]) -> str:
    """The tables."""
    lines = ["# The cost model: parts, predictions, measurements", "", *(f"- {k}: {v}" for k, v in about.items()), ""]
    lines += ["Milliseconds, median (quartiles). Parts were not measured on groups; see the script.", ""]
    lines += [
        "| network | ring | one learner | one of two, alone | beside the other | a sum adds | driver, 1 / 2 |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in rows:
        cells = [_quartiles(each["parts"][name]) for name in ("one", "half alone", "half", "sum")]
        driver = " / ".join(f"{each['driver'][size]:.2f}" for size in (1, 2))
        lines.append(f"| {each['work']} | {each['ring']} | {' | '.join(cells)} | {driver} |")
    lines += [
        "",
        "| network | ring | learners | predicted | measured | predicted / measured |",
        "|---|---|---|---|---|---|",
    ]
    for each in rows:
        for size in (1, 2):
            lines.append(
                f"| {each['work']} | {each['ring']} | {size} | {each['predicted'][size]:.1f} | "
                f"{_quartiles(each['measured'][size])} | {each['ratio'][size]:.2f} |"
            )
    lines += ["", *extrapolated(rows)]
    return "\n".join([*lines, ""])


def extrapolated(rows: list[dict[str, Any]]) -> list[str]:
    """Eight and 64 learners, each on a processor and a memory bus of its own."""
    small = {each["ring"]: each for each in rows if each["work"] == "20k"}
    large = {each["ring"]: each for each in rows if each["work"] == "20M"}
    lines = [
        "Learners on processors and memory of their own: the same minibatch (strong), the same rows for each (weak).",
        "a, b: of the sums above, two sizes solved for a hop's latency and the bandwidth; or a = 0.03 ms, b = 11 GB/s.",
        "",
        "| network | ring | a, ms | b, GB/s | n | ring, ms a step | strong: faster by | weak: efficiency |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for ring in (ring for ring in small if ring in large):
        sums = [(4.0 * each[ring]["num_parameters"], each[ring]["parts"]["sum"][1] / 1e3) for each in (small, large)]
        bandwidth = (sums[1][0] - sums[0][0]) / max(sums[1][1] - sums[0][1], 1e-9)
        hop = max(0.0, (sums[0][1] - sums[0][0] / bandwidth) / 2)
        for each in (small[ring], large[ring]):
            known = constants(each)
            for a, b in ((hop, bandwidth), NETWORK):
                for n in (8, 64):
                    nbytes = 4.0 * each["num_parameters"]
                    ring_ms = 1e3 * 2 * (n - 1) * (a + nbytes / (n * b))
                    alone = known["fixed"] + known["rows"]
                    strong = alone / (known["fixed"] + known["rows"] / n + ring_ms)
                    weak = alone / (alone + ring_ms)
                    cells = [each["work"], ring, f"{1e3 * a:.2f}", f"{b / 1e9:.1f}", f"{n}", f"{ring_ms:.1f}"]
                    lines.append(f"| {' | '.join([*cells, f'{strong:.2f}', f'{weak:.2f}'])} |")
    return lines


def _quartiles(values: list[float]) -> str:
    low, middle, high = values
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    raise SystemExit(main())
