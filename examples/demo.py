"""PPO learns CartPole on one framework; the same run is taken up on another. This is `make demo`.

1. Train on Torch until the mean return over 100 evaluation episodes is at least 475; a checkpoint is saved.
2. Take the run up on TensorFlow: evaluate the checkpoint as it is, then train on and evaluate again.
3. Draw the curve and print the closing table.

Usage: python examples/demo.py [--first torch|tf] [--seed N] [--out DIR]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
GOAL = 475.0
EPISODES = 100
NAMES = {"torch": "Torch", "tf": "TensorFlow"}


def learner_core(*arguments: str) -> None:
    """Run the command as a user would, each time in a process of its own."""
    print(f"\n$ learner-core {' '.join(arguments)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "learner_core.cli.main", *arguments], check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)


def last_session(run: Path) -> tuple[dict[str, Any], float]:
    """Where the run is after its last session: the last row of metrics, and the mean return of the evaluation."""
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    sessions = json.loads((run / "run.json").read_text())["sessions"]
    return row, sessions[-1]["evaluation"]["episode_return_mean"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", choices=sorted(NAMES), default="torch", help="where the run begins")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    given = parser.parse_args()
    first, second = given.first, "tf" if given.first == "torch" else "torch"
    run: Path = given.out
    shutil.rmtree(run, ignore_errors=True)
    start = time.monotonic()
    evaluate = ["--evaluate", str(EPISODES)]

    # 1. Train. The return while training is that of a policy that still explores; evaluation decides.
    settings = ["--config", str(HERE / "cartpole.toml"), "--seed", str(given.seed), "--out", str(run)]
    trained, result, limit = {}, float("-inf"), 0
    while result < GOAL and limit < 400_000:
        limit += 100_000
        goal = GOAL if limit == 100_000 else GOAL + 15  # the training goal was too low where evaluation missed it
        stop = ["--stop-return", f"{goal:g}", "--stop-timesteps", str(limit)]
        learner_core("train", *settings, "--backend", first, *stop, *evaluate)
        settings = ["--resume", str(run)]
        trained, result = last_session(run)
    table = [(f"trained on {NAMES[first]}", trained, result)]

    # 2. The same run on the other framework: the checkpoint as it is, then trained on.
    report = run / "taken_up.json"
    learner_core("evaluate", str(run), "--backend", second, "--episodes", str(EPISODES), "--out", str(report))
    table.append((f"taken up on {NAMES[second]}", trained, json.loads(report.read_text())["episode_return_mean"]))
    more = str(int(trained["training_iteration"]) + 5)
    learner_core("train", "--resume", str(run), "--backend", second, "--stop-iterations", more, *evaluate)
    table.append((f"trained on with {NAMES[second]}", *last_session(run)))

    # 3. What came of it.
    print(f"\n{'':28} {'iterations':>10} {'timesteps':>10} {'mean return':>12}")
    for label, row, mean in table:
        steps = row["num_env_steps_sampled_lifetime"]
        print(f"{label:28} {row['training_iteration']:>10} {steps:>10} {mean:>12.1f}")
    print(f"\ncurve       {run / 'curve.png'}")
    print(f"checkpoint  {max((run / 'checkpoints').iterdir())}")
    print(f"time        {time.monotonic() - start:.0f} s")
    good = all(mean >= GOAL for _, _, mean in table)
    print(f"goal        {'reached' if good else 'MISSED'}: {GOAL:g} over {EPISODES} evaluation episodes")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
