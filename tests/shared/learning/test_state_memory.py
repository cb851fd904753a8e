"""Saving and restoring a learner takes at most 1.2 times the state in memory, on top of the learner itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[3] / "benchmarks" / "learner_state.py"


@pytest.mark.fast_on_torch
def test_peak_memory(backend: str, tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARK), "--memory-only", "--backend", backend, "--folder", str(tmp_path)]
    command += ["--parameters", "5000000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    print(figures)
    assert figures["megabytes"] > 55
    assert figures["saving"] <= 1.2 and figures["loading"] <= 1.2


def test_large_states_are_copied_in_and_out(backend: str) -> None:
    """Backends keep the memory of large vectors they are given; it must be nobody else's."""
    import numpy as np
    from gymnasium.spaces import Box, Discrete

    from learner_core_algorithms import BCConfig

    from support.learners import bc_batch, build_on_spaces, flat_state, states_differ, tiny

    config = tiny(BCConfig(), backend, precision="float32").rl_module(model={"hidden": [600, 600]})
    learner = build_on_spaces(config, Box(-1, 1, (3,), np.float32), Discrete(2))
    learner.update_from_batch(batch=bc_batch(8))
    state, expected = learner.get_state(), learner.get_state()
    learner.set_state(state)
    for leaf in flat_state(state).values():
        if isinstance(leaf, np.ndarray):
            leaf.fill(7.0)
    assert not states_differ(expected, learner.get_state())
    before = learner.get_state()
    learner.update_from_batch(batch=bc_batch(8, seed=1))
    assert not states_differ(expected, before)
    after = learner.get_state()
    learner.set_state(expected)
    learner.update_from_batch(batch=bc_batch(8, seed=1))
    assert not states_differ(after, learner.get_state())
