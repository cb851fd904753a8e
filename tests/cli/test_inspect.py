"""`learner-core inspect`: contents, differences, damage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import learner_core as lc
from learner_core.cli.main import main

TREE = {
    "rl_module": {"default_policy": {"pi.0.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}},
    "optimizer": {"step": 3, "lr": 3e-4},
    "log_alpha": np.float32(-1.5),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "state.lc"
    lc.save_state(path, TREE)
    return path


def test_every_leaf_is_listed(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(file), "--values"]) == 0
    text = capsys.readouterr().out
    lines = [line.split() for line in text.splitlines()]
    assert ["pi.0.weight", "float32", "(2,", "3)", "24", "B", "ok"] in lines
    assert ["rl_module/default_policy/pi.0.weight", "2.5", "1.708", "0", "5"] in lines
    assert ["step", "int", "3"] in lines
    assert ["log_alpha", "float32", "scalar", "-1.5"] in lines
    assert "intact" in text


def test_json_and_a_prefix(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(file), "--json", "--only", "optimizer"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["intact"] is True
    assert [leaf["path"] for leaf in report["leaves"]] == ["optimizer/step", "optimizer/lr"]
    assert main(["inspect", str(file), "--only", "optimiser"]) == 2
    assert "Did you mean 'optimizer'?" in capsys.readouterr().err


def test_diff(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.lc"
    lc.save_state(other, {**TREE, "optimizer": {"step": 4, "lr": 3e-4}})
    assert main(["inspect", "--diff", str(file), str(file)]) == 0
    assert capsys.readouterr().out == "no difference\n"
    assert main(["inspect", "--diff", str(file), str(other)]) == 1
    assert capsys.readouterr().out == "~ optimizer/step: 3 against 4\n"


def test_damaged_arrays_are_named_and_a_damaged_manifest_is_refused(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    assert main(["inspect", str(file)]) == 1
    assert "DAMAGED" in capsys.readouterr().out
    data[70] ^= 1
    file.write_bytes(bytes(data))
    assert main(["inspect", str(file)]) == 2
    assert str(file) in capsys.readouterr().err.replace("\n", "")


def test_a_folder_shows_its_state_files(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(file.parent)]) == 0
    assert "log_alpha" in capsys.readouterr().out
