"""Checkpoints with a mutated tree, given to commands in processes of their own: one line, exit code 2, no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import learner_core as lc

from support.both import run_in
from support.tree_mutants import mutant

BACKENDS = ("torch", "tf")


def trained(backend_name: str, arrays: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Train PPO for a moment and save it."""
    from learner_core_algorithms import PPOConfig

    config = PPOConfig().environment("CartPole-v1").framework(backend_name, compile=False)
    config.training(train_batch_size=16, minibatch_size=8, num_epochs=1).rl_module(model={"hidden": [4]})
    with config.build() as algo:
        algo.train()
        algo.save(settings["path"])
    return {}


def command(door: int, path: Path, out: Path) -> list[str]:
    return [
        ["evaluate", str(path), "--episodes", "1"],
        ["export", str(path), "--to", "safetensors", "--out", str(out)],
        ["record", str(path), "--episodes", "1", "--out", str(out)],
    ][door % 3]


def check(backend: str, numbers: range, folder: Path) -> dict[str, int]:
    """Give one mutant after the other to a command; what became of them."""
    run_in(backend, __file__, "trained", settings={"path": str(folder / "good")})
    tree = lc.load_state(folder / "good")
    counts = {"accepted": 0, "refused": 0}
    for number in numbers:
        state, what = mutant(tree["state"], np.random.default_rng([9, number]))
        path, out = folder / "mutant", folder / "out"
        lc.save_state(path, {**tree, "state": state})
        done = subprocess.run(
            [sys.executable, "-m", "learner_core.cli.main", *command(number, path, out)],
            capture_output=True,
            text=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
            timeout=300,
        )
        said = [line for line in done.stderr.splitlines() if line.startswith("learner-core")]
        assert "Traceback" not in done.stderr, (number, what, done.stderr)
        assert done.returncode in (0, 2) and len(said) == (done.returncode == 2), (number, what, done.stderr)
        assert done.returncode == 0 or not out.exists(), (number, what)
        out.unlink(missing_ok=True)
        counts["accepted" if done.returncode == 0 else "refused"] += 1
    return counts


def test_a_handful(tmp_path: Path) -> None:
    counts = check("torch", range(4), tmp_path)
    assert counts["refused"] >= 1, counts


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_fifty(backend: str, tmp_path: Path) -> None:
    print(backend, check(backend, range(100, 125), tmp_path))
