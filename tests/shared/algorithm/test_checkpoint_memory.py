"""Saving and restoring a run takes at most 1.2 times its state in memory, opening a checkpoint hardly more than it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[3] / "benchmarks" / "checkpoint_memory.py"


@pytest.mark.fast_on_torch
def test_peak_memory_of_checkpoints(training_backend_name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARK), "--backend", training_backend_name, "--folder", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    print(figures)
    assert set(figures) == {"networks", "replay"}
    for name, peaks in figures.items():
        assert peaks["megabytes"] > 60, name  # large beside what Python itself takes
        # A measurement that sees nothing would pass too.
        assert 0.5 < peaks["saving"] <= 1.2 and 0.1 < peaks["restoring"] <= 1.2, (name, peaks)
        assert peaks["opened"] >= 1.0 and peaks["opening"] <= 1.2 * peaks["opened"], (name, peaks)
        # What a framework's allocator keeps of trying the step out counts as opened: so a bound on the state, too.
        # The runner's copy of the weights is a third of the networks' state.
        assert peaks["opening"] <= {"networks": 2.5, "replay": 1.6}[name], (name, peaks)
