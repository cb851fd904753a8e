"""Bad input to commands: one paragraph with the path and the reason, exit code 2, nothing left behind or changed."""

from __future__ import annotations

import contextlib
import io
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import learner_core as lc
from learner_core.cli.main import main

from support.both import run_in

GOOD_TREE = {"format": "learner_core/algorithm", "schema": 1, "config": {}, "state": {"w": np.ones(100)}}

#: name -> (bytes in place of the good ones; ``None``: a folder, what the refusal says)
BAD: dict[str, tuple[Callable[[bytes], bytes | None], str]] = {
    "truncated": (lambda good: good[:-1], "truncated"),
    "manifest flipped": (lambda good: good[:90] + bytes([good[90] ^ 1]) + good[91:], "manifest is damaged"),
    "a pickle": (lambda good: pickle.dumps({"state": 1}), "a pickle"),
    "a zip": (lambda good: b"PK\x03\x04" + bytes(100), "a zip archive"),
    "empty": (lambda good: b"", "empty"),
    "a folder": (lambda good: None, "state file"),
}
COMMANDS = {
    "inspect": ["inspect", "PATH"],
    "inspect --diff": ["inspect", "--diff", "GOOD", "PATH"],
    "evaluate": ["evaluate", "PATH"],
    "export": ["export", "PATH", "--to", "safetensors", "--out", "OUT"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("bad", BAD)
def test_a_file(bad: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, path = tmp_path / "good", tmp_path / "bad"
    lc.save_state(good, GOOD_TREE)
    change, reason = BAD[bad]
    data = change(good.read_bytes())
    path.mkdir() if data is None else path.write_bytes(data)
    places = {"PATH": str(path), "GOOD": str(good), "OUT": str(tmp_path / "out")}
    start = time.process_time()
    assert main([places.get(word, word) for word in COMMANDS[command]]) == 2
    assert time.process_time() - start < 1.0
    told = " ".join(capsys.readouterr().err.split())
    assert str(path) in told.replace(" ", "") and "Traceback" not in told
    assert reason in told or bad == "a folder", told
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad", "good"]


def damaged_run(backend_name: str, arrays: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Train, damage the newest checkpoint, resume, damage both, resume."""
    run = Path(settings["run"])
    small = ["--set", "train_batch_size=16", "--set", "minibatch_size=16", "--set", "num_epochs=1"]
    command = ["train", "ppo", "--env", "CartPole-v1", "--backend", backend_name, "--set", "compile=false", *small]
    assert main([*command, "--set", "checkpoint_every=1", "--stop-iterations", "2", "--out", str(run), "--quiet"]) == 0
    one, two = sorted((run / "checkpoints").iterdir())
    two.write_bytes(two.read_bytes()[:-1])
    assert main(["inspect", str(run)]) == 2
    assert main(["train", "--resume", str(run), "--stop-iterations", "2", "--quiet"]) == 0
    assert lc.load_state(two)["state"]["algorithm"]["iteration"] == 2
    for path in (one, two):
        path.write_bytes(b"")
    kept = _files_of(run)
    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        assert main(["train", "--resume", str(run), "--stop-iterations", "3", "--quiet"]) == 2
    told_text = "".join(told.getvalue().split())
    assert one.name in told_text and "thefileisempty" in told_text, told_text
    assert kept == _files_of(run)
    return {"done": np.ones(())}


def _files_of(run: Path) -> dict[str, bytes]:
    """Every file of a run but the lock, which says since when somebody has had it."""
    return {path.name: path.read_bytes() for path in run.iterdir() if path.is_file() and path.name != "run.lock"}


def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before(tmp_path: Path) -> None:
    """And one of which nothing is left intact is refused by name, its files as they were."""
    assert run_in("torch", __file__, "damaged_run", settings={"run": str(tmp_path / "run")})["done"]
