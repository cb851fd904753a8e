"""Row 3 of the reliability plan with the real command line: kill -9 while it saves, and the run goes on."""

from __future__ import annotations

import os
import random
import secrets
import subprocess
import sys
import time
from pathlib import Path

import pytest

from learner_core.state.folder import CheckpointFolder

TRAIN = [sys.executable, "-m", "learner_core.cli.main", "train"]
NEW = ["ppo", "--env", "CartPole-v1", "--backend", "torch", "--quiet"]
SMALL = ["train_batch_size=64", "minibatch_size=64", "num_epochs=1", "model.hidden=[256,256]", "checkpoint_every=1"]


@pytest.mark.slow
def test_training_killed_while_it_saves_goes_on(tmp_path):
    kills = int(os.environ.get("LC_KILLS", "200"))
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    run = tmp_path / "run"
    folder = CheckpointFolder(run / "checkpoints")
    command = [*TRAIN, *NEW, "--out", str(run), "--set", "compile=false"]
    for setting in SMALL:
        command += ["--set", setting]
    newest = 0
    for _ in range(kills):
        number = _kill_after_a_save(command, folder, newest, chance)
        assert number > newest
        newest = number
        command = [*TRAIN, "--resume", str(run), "--quiet"]
    print(f"row 3: {kills} trainings killed, {newest} iterations saved, the newest checkpoint always loaded")


def _kill_after_a_save(command: list[str], folder: CheckpointFolder, newest: int, chance: random.Random) -> int:
    """Start, wait until something newer has been saved, kill soon after; the number of the newest that loads."""
    log = Path(folder.path).parent.parent / "log"
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as program:
        while max([one.number for one in folder.checkpoints()], default=0) <= newest:
            assert program.poll() is None, log.read_text()
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        program.kill()
    checkpoint, tree = folder.load_newest()
    assert tree
    assert len(folder.checkpoints()) >= min(2, checkpoint.number)
    return checkpoint.number
