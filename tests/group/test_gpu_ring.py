"""benchmarks/gpu_ring.py: its logic on the CPU, and what it says where there is nothing to check."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from support.ranks import TESTS

SCRIPT = str(TESTS.parent / "benchmarks" / "gpu_ring.py")


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=300, env=environment, check=False
    )


def test_the_checks_hold_on_the_cpu() -> None:
    run = _run("--cpu", "--backends", "torch", "--collectives", "torch", "--updates", "2", "--rows", "0")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "ok       torch: parameters on the device: cpu" in run.stdout
    assert "ok       torch/torch, n=2, float64: one learner's updates: largest difference" in run.stdout
    assert "ok       torch/torch: the sum stays on the device: cpu to cpu" in run.stdout
    assert "not run  torch: a GPU's numbers are the CPU's: --cpu" in run.stdout
    assert "FAILED " not in run.stdout


@pytest.mark.slow  # two starts more of what the first test has started
def test_without_a_gpu_it_says_so_and_a_failed_check_is_its_exit_code() -> None:
    run = _run("--backends", "torch")
    assert run.returncode == 0
    assert "not run  torch: everything: there is no GPU" in run.stdout
    options = ["--cpu", "--backends", "torch", "--collectives", "torch", "--updates", "1", "--rows", "0"]
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); import gpu_ring; "
    code += "gpu_ring.BOUNDS = {'float64': -1.0}; gpu_ring.Bench.one_learner = lambda *given: None; "
    code += "sys.exit(gpu_ring.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, os.path.dirname(SCRIPT), *options]
    failed = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert "FAILED   torch/torch, n=2, float64" in failed.stdout
