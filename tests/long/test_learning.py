"""The long tier: each task of benchmarks/learning reaches its target, trained from nothing. Minutes each.

Runs once per backend (LC_BACKEND), with the first of the seeds. Tasks that are compared with another library are left
to `benchmarks/learning/run.py --all`, which needs that library's environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "benchmarks" / "learning" / "run.py"
SEED = 1
#: task -> mean return over 100 episodes that its final policy has to reach: what was promised, so that no benchmark's
#: target is lowered unseen.
TARGETS = {
    "acrobot": -100,
    "cartpole": 475,
    "cartpole-appo": 475,
    "cartpole-bc": 475,
    "cartpole-impala": 475,
    "cartpole-memory-lstm": 400,
    "lunarlander": 200,
    "masked-grid": 0.7,
    "pendulum": -200,
    "pursuit": 1,
    "signals": 17,
}
#: task -> what it has to stay under.
CEILINGS = {"cartpole-memory-mlp": 200}
#: Reached where it reaches the other library's mean return.
COMPARED = {"halfcheetah-ppo", "halfcheetah-sac"}

pytestmark = pytest.mark.slow


def trained(task: str, folder: Path) -> dict[str, float]:
    """The final evaluation of one run."""
    backend = os.environ.get("LC_BACKEND", "torch")
    command = [sys.executable, str(RUN), "--task", task, "--backend", backend, "--seed", str(SEED)]
    done = subprocess.run([*command, "--out", str(folder)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((folder / f"{task}-{backend}-{SEED}.json").read_text())
    assert result["target"] == TARGETS.get(task)
    final: dict[str, float] = result["final"]
    assert final["num_episodes"] >= 100
    return final


def test_no_task_is_left_out() -> None:
    names = "import tasks; print(*tasks.TASKS)"
    done = subprocess.run([sys.executable, "-c", names], cwd=RUN.parent, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == TARGETS.keys() | CEILINGS.keys() | COMPARED


@pytest.mark.parametrize("task", TARGETS)
def test_target_is_reached(task: str, tmp_path: Path) -> None:
    final = trained(task, tmp_path)
    assert final["episode_return_mean"] >= TARGETS[task], final


@pytest.mark.parametrize("task", CEILINGS)
def test_ceiling_is_not_reached(task: str, tmp_path: Path) -> None:
    final = trained(task, tmp_path)
    assert final["episode_return_mean"] < CEILINGS[task], final
