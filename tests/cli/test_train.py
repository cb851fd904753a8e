"""`learner-core train` and `evaluate`, driven by an algorithm that only counts."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

import learner_core as lc
from learner_core.cli.main import main

from support.fake_algorithm import FakeAlgorithm, register

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    register()
    FakeAlgorithm.instances.clear()
    monkeypatch.setitem(vars(lc), "Algorithm", FakeAlgorithm)


def _train(out: Path, *arguments: str) -> int:
    return main(["train", "fake", "--env", "CartPole-v1", "--out", str(out), *arguments])


def test_a_run_ends_at_its_return_and_leaves_a_whole_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert _train(out, "--stop-return", "45", "--evaluate", "7") == 0
    text = capsys.readouterr().out
    assert "mean return 50.0 >= 45" in text
    assert "50 +- 0 over 7 episodes" in text
    names = {entry.name for entry in out.iterdir()}
    assert names == {
        *("config.toml", "run.json", "run.lock", "metrics.csv", "metrics.jsonl", "tensorboard", "curve.png"),
        "checkpoints",
    }
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert [entry.name for entry in (out / "checkpoints").iterdir()] == ["checkpoint-00000005.lcstate"]
    assert all(algorithm.stopped for algorithm in FakeAlgorithm.instances)


def test_metrics_are_the_same_in_every_file(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert _train(out, "--stop-iterations", "3", "--quiet") == 0
    with (out / "metrics.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["training_iteration"] for row in table] == ["1", "2", "3"]
    # The column appeared in the second iteration; the first row is empty there.
    assert [row["env_runners/episode_return_mean"] for row in table] == ["", "20.0", "30.0"]
    assert [line["num_env_steps_sampled_lifetime"] for line in lines] == [100, 200, 300]
    assert lines[2]["learners/default_policy/loss"] == pytest.approx(1 / 3)
    assert _read_events(out / "tensorboard") == {100: None, 200: 20.0, 300: 30.0}


def _read_events(folder: Path) -> dict[int, float | None]:
    """Step -> return, read as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    (file,) = folder.iterdir()
    found: dict[int, float | None] = {}
    for event in EventFileLoader(str(file)).Load():
        if event.summary.value:
            values = {value.tag: value for value in event.summary.value}
            mean = values.get("env_runners/episode_return_mean")
            found[event.step] = mean.tensor.float_val[0] if mean is not None else None
    return found


def test_resume_goes_on_from_the_checkpoint_on_another_backend(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert _train(out, "--stop-timesteps", "300") == 0
    assert main(["train", "--resume", str(out), "--backend", "tf", "--stop-timesteps", "0.5k"]) == 0
    assert FakeAlgorithm.instances[-1].config.framework_name == "tf"
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["training_iteration"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["backend"] for row in rows] == ["torch"] * 3 + ["tf"] * 2
    assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)
    info = json.loads((out / "run.json").read_text())
    assert [session["backend"] for session in info["sessions"]] == ["torch", "tf"]
    assert info["sessions"][1]["from"] == "checkpoint-00000003.lcstate"


def test_rows_after_the_checkpoint_are_made_again(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert _train(out, "--stop-iterations", "4", "--set", "checkpoint_every=2", "--set", "checkpoint_keep=2") == 0
    newest = out / "checkpoints" / "checkpoint-00000004.lcstate"
    newest.write_bytes(newest.read_bytes()[:-1])
    assert main(["train", "--resume", str(out), "--stop-iterations", "3"]) == 0
    rows = [json.loads(line)["training_iteration"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows == [1, 2, 3]


def test_a_run_that_has_arrived_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert _train(out, "--stop-return", "30") == 0
    assert main(["train", "--resume", str(out)]) == 0  # the stored condition holds already
    assert "reached before" in capsys.readouterr().out
    assert FakeAlgorithm.instances[-1].iteration == 3


def test_old_checkpoints_go(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert _train(out, "--stop-iterations", "6", "--set", "checkpointing.every=1", "--set", "checkpointing.keep=3") == 0
    kept = sorted(entry.name for entry in (out / "checkpoints").iterdir())
    assert kept == [f"checkpoint-0000000{i}.lcstate" for i in (4, 5, 6)]


def test_settings_from_the_weakest_source_to_the_strongest(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('algorithm = "fake"\n[training]\nlr = 0.1\ngamma = 0.5\ncoefficient = [[0, 1.0], [100, 0.0]]\n')
    arguments = [
        "--config",
        str(file),
        "--env",
        "Acrobot-v1",
        "--seed",
        "7",
        "--set",
        "lr=0.2",
        "--set",
        "model.hidden=[8]",
    ]
    arguments += ["--set", "grad_clip=none", "--set", "framework.compile=False", "--stop-iterations", "1"]
    assert main(["train", "--out", str(tmp_path / "run"), *arguments]) == 0
    config = FakeAlgorithm.instances[-1].config
    assert (config.lr, config.gamma, config.seed, config.env) == (0.2, 0.5, 7, "Acrobot-v1")
    assert config.coefficient == [[0, 1.0], [100, 0.0]]
    assert config.model == {"hidden": [8], "activation": "tanh"}
    assert config.grad_clip is None
    assert config.compile is False
    # What the run folder says is read back to the same settings.
    again = ["train", "--config", str(tmp_path / "run" / "config.toml"), "--out", str(tmp_path / "again")]
    assert main([*again, "--stop-iterations", "1"]) == 0
    assert FakeAlgorithm.instances[-1].config == config
    assert tomllib.loads((tmp_path / "run" / "config.toml").read_text())["training"]["lr"] == 0.2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train"], ["Which algorithm?"]),
        (["train", "fake"], ["Which environment?"]),
        (["train", "fakes", "--env", "E"], ["Did you mean 'fake'?"]),
        (["train", "fake", "--env", "E", "--set", "minibatchsize=1"], ["minibatchsize", "Did you mean"]),
        (["train", "fake", "--env", "E", "--set", "lr"], ["key=value"]),
        (["train", "fake", "--env", "E", "--set", "lr=fast"], ["lr", "float", "fast"]),
        (["train", "fake", "--env", "E", "--config", "absent.toml"], ["absent.toml", "cannot be read"]),
        (["train", "--resume", "absent"], ["absent", "run.json"]),
        (["evaluate", "absent"], ["absent"]),
        (["inspect", "absent"], ["absent"]),
        (["plugins", "check", "fakes"], ["Did you mean 'fake'?"]),
        (["trian"], ["Did you mean 'train'?"]),
    ],
)
def test_refusals_are_one_paragraph_and_exit_code_2(
    arguments: list[str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    for word in words:
        assert word in " ".join(captured.err.split())
    assert "Traceback" not in captured.err
    assert not list(tmp_path.iterdir()), "a refusal leaves nothing behind"


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(lc.ConfigError):
        main(["train", "--debug"])


def test_an_environment_that_does_not_exist_leaves_no_folder(tmp_path: Path) -> None:
    assert main(["train", "fake", "--env", "Nope-v0", "--out", str(tmp_path / "a" / "run")]) == 2
    assert not list(tmp_path.iterdir())


def test_a_new_run_never_overwrites_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _train(tmp_path / "run", "--stop-iterations", "1") == 0
    assert _train(tmp_path / "run", "--stop-iterations", "1") == 2
    assert "--resume" in capsys.readouterr().err


def test_an_error_while_training_keeps_what_was_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert _train(out, "--set", "checkpoint_every=1", "--set", "fail_at=3") == 2
    assert "the loss is NaN" in capsys.readouterr().err
    assert FakeAlgorithm.instances[-1].stopped
    assert main(["train", "--resume", str(out), "--set", "fail_at=none", "--stop-iterations", "4"]) == 0


def test_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert _train(out, "--stop-iterations", "3") == 0
    capsys.readouterr()
    assert main(["evaluate", str(out), "--episodes", "5", "--backend", "tf", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["episode_return_mean"] == 30.0
    assert result["num_episodes"] == 5
    assert FakeAlgorithm.instances[-1].config.framework_name == "tf"
    checkpoint = out / "checkpoints" / "checkpoint-00000003.lcstate"
    assert main(["evaluate", str(checkpoint), "--min-return", "31"]) == 1
    assert main(["evaluate", str(checkpoint), "--min-return", "30"]) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_leaves_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "run"
    command = ["train", "fake", "--env", "CartPole-v1", "--out", str(out), "--set", "pause=0.2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "support.fake_algorithm", *command],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (out / "metrics.csv").is_file() or "\n2," not in (out / "metrics.csv").read_text():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "stopped by the user" in output
    rows = (out / "metrics.jsonl").read_text().splitlines()
    last = json.loads(rows[-1])["training_iteration"]
    assert [entry.name for entry in (out / "checkpoints").iterdir()] == [f"checkpoint-{last:08d}.lcstate"]
