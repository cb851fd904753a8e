"""Groups of one and two learners beside RLlib's LearnerGroup and torch DDP: the same update, in one run, in turns.

    python benchmarks/group/run.py [--works 20k 20M] [--peers ...] [--rounds N] [--blocks N] [--out FOLDER]

Every group has the machine to itself: it is started, makes its share of the updates and is ended before the next is
started, for idle groups poll and send signs of life, which on two processors is felt. All take their turn in every
block, in an order that rotates. Learners have one thread each. RLlib and DDP get the same columns, networks of the same
size and the same number of minibatch steps; their initial weights and permutations are their own. The environment of
RLlib, ``.venv-rllib``, is made when it is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from group_peers import FOLDER, PEERS, Peer
from machine import output, processor
from peer_environments import peer_python
from work import WORKS, Work

REFERENCE = "rllib"


def measure(work: Work, names: list[str], rounds: int, blocks: int) -> list[Peer]:
    """Each group alone on the machine, for a share of the rounds; then all of them again, in another order."""
    peers = [Peer(name) for name in names]
    each = -(-rounds // blocks)
    for block in range(blocks):
        at = block * len(peers) // blocks
        for peer in peers[at:] + peers[:at]:
            for size in peer.sizes:
                peer.measure(work, size, each)
    return peers


def spread(values: list[float]) -> dict[str, float]:
    """Least, quartiles and most."""
    quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"min": min(values), "q1": quartiles[0], "median": quartiles[1], "q3": quartiles[2], "max": max(values)}


def evaluate(peers: list[Peer]) -> dict[str, Any]:
    """ "peer, n" -> milliseconds, ratios of rounds, overhead, starts, memory."""
    reference = {p.name: p for p in peers}.get(REFERENCE)
    found: dict[str, Any] = {}
    for peer in peers:
        for size, rounds in peer.rounds.items():
            seconds = [each["seconds"] for each in rounds]
            entry: dict[str, Any] = {"ms": spread([1e3 * s for s in seconds])}
            if 1 in peer.rounds and size > 1:
                alone = [each["seconds"] for each in peer.rounds[1]]
                entry["speedup"] = spread([a / b for a, b in zip(alone, seconds, strict=True)])
            if reference is not None and peer is not reference:
                theirs = [each["seconds"] for each in reference.rounds[size]]
                entry["ratio"] = spread([a / b for a, b in zip(theirs, seconds, strict=True)])
            if "slowest_s" in rounds[0]:
                entry["overhead_ms"] = spread([1e3 * (each["seconds"] - each["slowest_s"]) for each in rounds])
            for name in ("starts", "memory", "submit_ms"):
                if name in peer.facts[size]:
                    entry[name] = peer.facts[size][name]
            found[f"{peer.name} x{size}"] = entry
    return found


def markdown(about: dict[str, str], found: dict[str, Any]) -> str:
    """The tables."""
    lines = ["# Groups of learners", "", *(f"- {name}: {value}" for name, value in about.items())]
    for work, result in found.items():
        w = WORKS[work]
        lines += ["", f"## {work}: {result['num_parameters']} parameters", ""]
        lines.append(
            f"{w.num_steps} steps on {w.minibatch} rows an update; {result['rounds']} rounds; load {result['load']}. "
            f"Ratio: {REFERENCE}'s time divided by this one's, round by round, same number of learners."
        )
        titles = ["", "ms, median (quartiles)", "least", "n=2 faster by", "ratio to RLlib", "overhead, ms"]
        titles += ["submit, ms", "start, s: first, warm", "RSS (PSS), MB"]
        lines += ["", "| " + " | ".join(titles) + " |", "|---|" + "---|" * (len(titles) - 1)]
        for name, entry in result["peers"].items():
            cells = [_quartiles(entry["ms"], 1), f"{entry['ms']['min']:.1f}"]
            cells += [_quartiles(entry[key], 2) if key in entry else "" for key in ("speedup", "ratio", "overhead_ms")]
            submit = entry.get("submit_ms")
            cells.append(f"{statistics.median(submit):.2f} (most {max(submit):.2f})" if submit else "")
            first, *warm = entry["starts"]
            cells.append(f"{first:.2f}" + (f", {min(warm):.2f}" if warm else ""))
            cells.append(", ".join(f"{m['rss']:.0f} ({m['pss']:.0f})" for m in entry["memory"]))
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _quartiles(values: dict[str, float], digits: int) -> str:
    return f"{values['median']:.{digits}f} ({values['q1']:.{digits}f} to {values['q3']:.{digits}f})"


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", nargs="+", default=list(WORKS), choices=list(WORKS), metavar="NAME")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS), metavar="NAME")
    parser.add_argument("--rounds", type=int, help="updates of each; by default by work")
    parser.add_argument("--blocks", type=int, default=2, help="how often each is started")
    parser.add_argument("--out", type=Path, default=FOLDER.parent / "results" / "group")
    given = parser.parse_args()
    about = {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "machine": f"{processor()}, {os.cpu_count()} logical processors, {platform.system()} {platform.machine()}",
        "versions": _versions(given.peers),
        "command": " ".join(["python benchmarks/group/run.py", *sys.argv[1:]]),
        "threads": "1 a learner; Torch uncompiled, as it is for the first 20,000 steps of a run; TensorFlow compiled",
    }
    found: dict[str, Any] = {}
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.works:
        work = WORKS[name]
        rounds = given.rounds or work.rounds
        print(f"{name}: {rounds} rounds", flush=True)
        before = os.getloadavg()[0]
        peers = measure(work, given.peers, rounds, given.blocks)
        found[name] = {
            "rounds": len(peers[0].rounds[1]),
            "load": f"{before:.1f} to {os.getloadavg()[0]:.1f}",
            "num_parameters": peers[0].num_parameters,
            "peers": evaluate(peers),
        }
        (given.out / "group.json").write_text(json.dumps({"about": about, "works": found}, indent=1) + "\n")
        (given.out / "group.md").write_text(markdown(about, found))
    print(markdown(about, found))
    return 0


def _versions(peers: list[str]) -> str:
    code = "import importlib.metadata as m; print(*(f'{n} {m.version(n)}' for n in %r), sep=', ')"
    asked = [(sys.executable, ("torch", "tensorflow-cpu", "horovod", "numpy"))]
    if "rllib" in peers:
        asked.append((str(peer_python(".venv-rllib")), ("ray", "torch")))
    commit = output(["git", "-C", str(FOLDER), "rev-parse", "--short", "HEAD"])
    said = [output([python, "-c", code % (names,)]) for python, names in asked]
    return f"learner-core {commit}, {said[0]}" + (f"; RLlib's: {said[1]}" if len(said) > 1 else "")


if __name__ == "__main__":
    raise SystemExit(main())
