"""IMPALA on CartPole with two environment-runner processes: ours on both backends beside RLlib's, turn by turn.

    python benchmarks/throughput/run.py [--rounds 3] [--seconds 20]

Every turn is a process of its own with the same settings: two runners of 8 environments, fragments of 50 steps, batches
of 500, a 64 x 64 network, Adam, one thread per process. What counts is the ratio of turns of the same round. RLlib runs
in .venv-rllib, which is made if it is missing. Writes benchmarks/results/throughput/impala.json and .md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import processor
from peer_environments import peer_python

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "throughput"
HERE = Path(__file__).parent
_SIDES = ("torch", "tf", "rllib")


def turn(side: str, seconds: float, warmup: float) -> dict[str, Any]:
    """One side's figures, with the machine's load before and after."""
    script = [str(HERE / "rllib.py")] if side == "rllib" else [str(HERE / "ours.py"), "--backend", side]
    python = str(peer_python(".venv-rllib")) if side == "rllib" else sys.executable
    command = [python, *script, "--seconds", str(seconds), "--warmup", str(warmup)]
    load = [os.getloadavg()[0]]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False, timeout=900)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FIGURES ")]
    if done.returncode or not lines:
        raise RuntimeError(f"{side}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    load.append(os.getloadavg()[0])
    figures: dict[str, Any] = json.loads(lines[-1].removeprefix("FIGURES "))
    return {"side": side, **figures, "load_before_after": [round(value, 1) for value in load]}


def _median(turns: list[dict[str, Any]], side: str, name: str) -> float | None:
    values = [t[name] for t in turns if t["side"] == side and t.get(name) is not None]
    return statistics.median(values) if values else None


def _table(result: dict[str, Any]) -> str:
    columns = (
        ("env_steps_sampled_per_second", "sampled, steps/s", "{:,.0f}"),
        ("env_steps_trained_per_second", "trained, steps/s", "{:,.0f}"),
        ("learner_utilization", "learner utilisation", "{:.0%}"),
        ("policy_lag_mean", "policy lag, updates", "{:.1f}"),
        ("policy_lag_max", "most", "{:.0f}"),
        ("num_updates_dropped", "dropped", "{:.0f}"),
    )
    names = {"torch": "learner-core, Torch", "tf": "learner-core, TensorFlow", "rllib": "RLlib 2.60.0, Torch"}
    lines = [
        "# IMPALA on CartPole-v1, two environment-runner processes",
        "",
        f"`{result['command']}`, {result['date']}, {result['machine']}. Medians of {result['rounds']} rounds,",
        "each side in turn; the load of the machine before and after each turn stands in the JSON file.",
        *([result["note"]] if result["note"] else []),
        "",
        "| | " + " | ".join(title for _, title, _ in columns) + " | ratio to RLlib's sampled (of each round) |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for side in _SIDES:
        cells = []
        for name, _, pattern in columns:
            value = _median(result["turns"], side, name)
            cells.append("not told" if value is None else pattern.format(value))
        ratios = ", ".join(f"{value:.1f}" for value in result["ratios"].get(side, [])) or "1"
        lines.append(f"| {names[side]} | " + " | ".join(cells) + f" | {ratios} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run all turns and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="measured, of each turn")
    parser.add_argument("--warmup", type=float, default=10.0, help="seconds before that")
    parser.add_argument("--note", default="", help="how the machine was, for the result")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    turns: list[dict[str, Any]] = []
    for number in range(given.rounds):
        for side in _SIDES:
            figures = {"round": number, **turn(side, given.seconds, given.warmup)}
            turns.append(figures)
            print(json.dumps(figures), flush=True)
    ratios: dict[str, list[float]] = {}
    for side in ("torch", "tf"):
        for number in range(given.rounds):
            one, peer = (
                next(t for t in turns if t["round"] == number and t["side"] == wanted) for wanted in (side, "rllib")
            )
            name = "env_steps_sampled_per_second"
            ratios.setdefault(side, []).append(round(one[name] / max(peer[name], 1e-9), 2))
    versions = {p: metadata.version(p) for p in ("learner-core", "torch", "tensorflow-cpu", "gymnasium", "numpy")}
    result = {
        "command": f"python benchmarks/throughput/run.py --rounds {given.rounds} --seconds {given.seconds:g}",
        "date": datetime.date.today().isoformat(),
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "note": given.note,
        "versions": {**versions, "ray": "2.60.0"},
        "rounds": given.rounds,
        "ratios": ratios,
        "turns": turns,
    }
    given.out.mkdir(parents=True, exist_ok=True)
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in result.items() if name != "turns"]
    rows = ",\n".join(f"  {json.dumps(row)}" for row in turns)
    (given.out / "impala.json").write_text("{\n" + ",\n".join(lines) + ',\n "turns": [\n' + rows + "\n ]\n}\n")
    (given.out / "impala.md").write_text(_table(result))
    print(_table(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
