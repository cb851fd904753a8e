"""Every script of examples/ runs, on both frameworks where it takes one, to the same numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.examples import EXAMPLES, run_example

# script -> the test that runs it
COVERED = {
    "behaviour_cloning_tf",
    "behaviour_cloning_torch",
    "own_learner",
    "demo",  # test_demo.py
    "read_state",  # tests/core/state
    "self_play",
    "tictactoe",
    # tests/parity/test_ported_programs.py
    "action_mask",
    "autoregressive_actions",
    "central_critic",
    "curiosity",
    "curriculum",
    "features_extractor",
    "frame_stacks",
    "imitation_then_ppo",
    "scripted_opponent",
    "shared_encoder",
    "two_optimizers",
}


def _numbers(text: str) -> list[float]:
    return [float(line.rpartition(" ")[2]) for line in text.splitlines() if re.search(r": .* [-\d.e]+$", line)]


def test_every_script_is_run_by_a_test() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == COVERED


def test_behaviour_cloning_in_raw_torch_and_raw_tensorflow(tmp_path: Path) -> None:
    torch = _numbers(run_example("behaviour_cloning_torch", folder=tmp_path))
    tf = _numbers(run_example("behaviour_cloning_tf", folder=tmp_path))
    assert len(torch) == 4
    assert torch[-1] < 0.5 * torch[0]
    assert tf == pytest.approx(torch, rel=1e-3)


# The fast tier has it in tests/parity/test_ported_programs.py.
@pytest.mark.slow
def test_a_learner_of_ones_own_on_both_backends(tmp_path: Path) -> None:
    torch = _numbers(run_example("own_learner", "torch", folder=tmp_path))
    tf = _numbers(run_example("own_learner", "tf", folder=tmp_path))
    assert len(torch) == 3
    assert tf == pytest.approx(torch, rel=1e-3)


@pytest.mark.slow  # tictactoe is the script of its kind in the fast tier
def test_self_play_on_both_backends(tmp_path: Path) -> None:
    torch = run_example("self_play", "torch", folder=tmp_path).splitlines()
    tf = run_example("self_play", "tf", folder=tmp_path).splitlines()
    assert torch == tf  # the same numbers, to what is printed
    assert torch[-1] == "modules: learner, snapshot_2, snapshot_3; the newest is the learner: True"
    assert all(line.startswith("generation ") for line in torch[:-1]) and len(torch) == 4


@pytest.mark.parametrize(
    ("backend", "turns", "least"),
    [
        ("torch", 12_000, 65.0),  # random moves against random moves: 57 % as either side by turns
        pytest.param("torch", 120_000, 95.0, marks=pytest.mark.slow),
        pytest.param("tf", 120_000, 95.0, marks=pytest.mark.slow),
    ],
)
def test_tic_tac_toe_is_learned_by_playing_both_sides(backend: str, turns: int, least: float, tmp_path: Path) -> None:
    said = run_example("tictactoe", backend, str(turns), folder=tmp_path, timeout=3000).splitlines()[-1]
    found = re.fullmatch(r"against random moves: ([\d.]+) % of 500 games won or drawn", said)
    assert found is not None and float(found[1]) >= least, said
