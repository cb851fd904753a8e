"""PPO learns CartPole on one framework; the same run is taken up on another. This is `make demo`.

1. Train on Torch until the mean return over 100 evaluation episodes is at least 475; a checkpoint is saved.
2. Take the run up on TensorFlow: evaluate the checkpoint there, then train on and evaluate again.
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


def learner_core(*arguments: str, show: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would, each time in a process of its own; its output goes to the screen."""
    print(f"\n$ learner-core {' '.join(arguments)}", flush=True)
    command = [sys.executable, "-m", "learner_core.cli.main", *arguments]
    return subprocess.run(command, check=False, text=True, stdout=None if show else subprocess.PIPE)


def evaluate(run: Path, backend: str) -> dict[str, Any]:
    """Mean return over 100 episodes with the newest checkpoint."""
    done = learner_core(
        *("evaluate", str(run), "--backend", backend, "--episodes", str(EPISODES), "--json"), show=False
    )
    if done.returncode != 0:
        sys.exit(f"the evaluation on {backend} failed")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"mean return {result['episode_return_mean']:.1f} over {result['num_episodes']} episodes", flush=True)
    return result


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


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
    table: list[tuple[str, str, str, str]] = []

    # 1. Train. The return while training is that of a policy that still explores; evaluation decides.
    settings = ["--config", str(HERE / "cartpole.toml"), "--seed", str(given.seed)]
    where = ["--out", str(run), "--backend", first]
    steps, result = 0, {"episode_return_mean": float("-inf")}
    while result["episode_return_mean"] < GOAL and steps < 400_000:
        steps += 100_000
        stop = ["--stop-return", str(GOAL if steps == 100_000 else GOAL + 15), "--stop-timesteps", str(steps)]
        if learner_core("train", *settings, *where, *stop).returncode != 0:
            return 1
        settings, where = [], ["--resume", str(run), "--backend", first]
        result = evaluate(run, first)
    trained = rows_of(run)[-1]
    table.append(_row(f"trained on {NAMES[first]}", trained, result))

    # 2. The same run on the other framework: first the checkpoint as it is, then trained on.
    taken_up = evaluate(run, second)
    table.append(_row(f"taken up on {NAMES[second]}", trained, taken_up))
    more = str(int(trained["training_iteration"]) + 5)
    if learner_core("train", "--resume", str(run), "--backend", second, "--stop-iterations", more).returncode != 0:
        return 1
    trained_on = evaluate(run, second)
    table.append(_row(f"trained on with {NAMES[second]}", rows_of(run)[-1], trained_on))

    # 3. What came of it.
    print(f"\n{'':30} {'iterations':>10} {'timesteps':>10} {'mean return':>12}")
    for label, iterations, timesteps, mean in table:
        print(f"{label:30} {iterations:>10} {timesteps:>10} {mean:>12}")
    print(f"\ncurve       {run / 'curve.png'}")
    print(f"checkpoint  {sorted((run / 'checkpoints').iterdir())[-1]}")
    print(f"time        {time.monotonic() - start:.0f} s")
    good = all(r["episode_return_mean"] >= GOAL for r in (result, taken_up, trained_on))
    print(f"goal        {'reached' if good else 'MISSED'}: {GOAL:g} over {EPISODES} evaluation episodes")
    return 0 if good else 1


def _row(label: str, row: dict[str, Any], result: dict[str, Any]) -> tuple[str, str, str, str]:
    steps = str(row["num_env_steps_sampled_lifetime"])
    return label, str(row["training_iteration"]), steps, f"{result['episode_return_mean']:.1f}"


if __name__ == "__main__":
    sys.exit(main())
