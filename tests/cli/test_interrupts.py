"""Ctrl-C, and again, in a terminal: with learners and runners, the command ends soon, quietly, and with 130."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from learner_core.state.files import load_state

from support.interrupts import BOUND_S, Ended, interrupted
from support.leftovers import belongings

TINY = ["ppo", "--env", "CartPole-v1"]
for setting in (
    "train_batch_size=256",
    "minibatch_size=64",
    "num_epochs=2",
    "model.hidden=[8]",
    "checkpointing.every=3",
):
    TINY += ["--set", setting]
TWO = ["--set", "num_learners=2"]
RUNNERS = ["--set", "num_env_runners=2"]
BACKENDS = {"torch": ["--set", "collective=torch"], "tf": ["--set", "collective=horovod"]}

#: What is pressed upon: (the moment, seconds later, seconds between the presses). Of the iterations, the first alone is
#: sure to be told: a log gets a line every few seconds.
MOMENTS = {
    "start": ("No stop condition", 0.0, 0.2),
    "build": ("No stop condition", 2.5, 0.2),
    "update": ("iteration     1", 0.0, 0.0),
    "saving": ("iteration     1", 0.0, 0.1),
    "leaving": ("iteration     1", 0.1, 0.6),
}


def _ended(folder: Path, settings: list[str], **when: object) -> Ended:
    before = belongings()
    ended = interrupted([*TINY, *settings], out=folder / "run", **when)  # type: ignore[arg-type]
    assert ended.code == 130, ended.text
    assert not ended.noise, ended.text
    assert not ended.left and ended.seconds < BOUND_S
    now = belongings()
    assert now["files in /dev/shm"] <= before["files in /dev/shm"] | _others(now["files in /dev/shm"])
    for path in ended.checkpoints:
        assert load_state(path)["format"] == "learner_core/algorithm"
    return ended


def _others(names: set[str]) -> set[str]:
    """Shared memory that other programs of this machine have made meanwhile."""
    return {name for name in names if "learner" not in name}


@pytest.mark.parametrize(
    ("backend", "moment"),
    [
        pytest.param("torch", "build", marks=pytest.mark.slow),
        ("torch", "update"),
        pytest.param("tf", "update", marks=pytest.mark.slow),
    ],
)
def test_two_presses_end_two_learners(tmp_path: Path, backend: str, moment: str) -> None:
    text, later, gap = MOMENTS[moment]
    settings = ["--backend", backend, *TWO, *BACKENDS[backend]]
    _ended(tmp_path, settings, moment=text, later_s=later, gap_s=gap)


def test_five_presses_end_learners_and_runners(tmp_path: Path) -> None:
    settings = ["--backend", "torch", *TWO, *BACKENDS["torch"], *RUNNERS]
    _ended(tmp_path, settings, moment="iteration     1", gap_s=0.05, presses=5)


def test_one_press_saves_although_environments_are_processes_of_the_terminal(tmp_path: Path) -> None:
    """gymnasium's AsyncVectorEnv: its processes would end at the press, in the middle of the iteration."""
    settings = ["--backend", "torch", "--set", "vectorization=async"]
    ended = _ended(tmp_path, settings, moment="iteration     1", presses=1)
    assert "stopped by the user" in ended.text and ended.checkpoints


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_presses_at_any_moment(tmp_path: Path, backend: str) -> None:
    """Twenty-four runs a backend, half of them with runner processes; at named moments, and at random ones."""
    seed = int(os.environ.get("LC_SEED") or int.from_bytes(os.urandom(3), "little"))
    draw, seconds = random.Random(seed), []
    print(f"seed {seed}")
    for number in range(int(os.environ.get("LC_FAULTS", "24"))):
        settings = ["--backend", backend, *TWO, *BACKENDS[backend], *(RUNNERS if number % 2 else [])]
        folder = tmp_path / str(number)
        folder.mkdir()
        presses, gap = draw.choice([2, 2, 3, 6]), draw.choice([0.0, 0.05, 0.3, 1.0])
        if number % 3:
            moment, later, _ = draw.choice(list(MOMENTS.values()))
            when = {"moment": moment, "later_s": later + draw.random()}
        else:
            when = {"moment": draw.uniform(2.0, 20.0)}
        print(f"{number}: {when} gap {gap} presses {presses}", flush=True)
        seconds.append(_ended(folder, settings, **when, gap_s=gap, presses=presses).seconds)
        print(f"  {seconds[-1]:.1f} s", flush=True)
    print(f"{len(seconds)} runs, median {sorted(seconds)[len(seconds) // 2]:.1f} s, most {max(seconds):.1f} s")
