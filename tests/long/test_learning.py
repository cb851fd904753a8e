"""The long tier: each task of benchmarks/learning reaches its target, trained from nothing. Minutes each.

Runs once per backend (LC_BACKEND). Tasks that are compared with another library are left to
`benchmarks/learning/run.py --all`, which needs that library's environment.
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
#: task -> mean return over 100 episodes that its final policy has to reach.
TARGETS = {"acrobot": -100, "lunarlander": 200, "pendulum": -200, "cartpole": 475, "cartpole-bc": 475}

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("task", TARGETS)
def test_target_is_reached(task: str, tmp_path: Path) -> None:
    backend = os.environ.get("LC_BACKEND", "torch")
    command = [sys.executable, str(RUN), "--task", task, "--backend", backend, "--seed", str(SEED)]
    done = subprocess.run([*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / f"{task}-{backend}-{SEED}.json").read_text())
    assert result["target"] == TARGETS[task]
    assert result["final"]["num_episodes"] >= 100
    assert result["final"]["episode_return_mean"] >= TARGETS[task], result["final"]
