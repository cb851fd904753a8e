"""Misbehaving plugins at the command line: named on one screen, and the process lives; a few as real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from learner_core.cli import plugins as command
from learner_core.cli.main import main
from learner_core.plugins import claims, registry

from support.hostile_plugins import CASES, DEADLY, GOOD, Hostile, install


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """All of them on the path, and registries that have not seen anything yet."""
    place = tmp_path_factory.mktemp("hostile")
    install(place, deadly=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims, "INDEX", claims.Index())
        patch.setattr(registry, "_MANAGER", None)
        patch.syspath_prepend(str(place))
        yield place


def _text(capsys: pytest.CaptureFixture[str]) -> str:
    out = capsys.readouterr()
    text = out.out + out.err
    assert all(c.isprintable() or c == "\n" for c in text)
    return " ".join(text.split())


def test_list_shows_all_and_names_the_unreadable(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "list"]) == 0
    text = _text(capsys)
    assert "ppo learner-core" in text and "torch learner-core" in text
    for case in CASES:
        assert case.name in text or case.name in (
            "metadata-escape",
            "points-utf16",
            "points-dangling",
            "points-builtin",
        )


@pytest.mark.parametrize("case", DEADLY, ids=lambda case: case.name)
def test_what_ends_its_process_is_tried_in_one_of_its_own(
    folder: Path, case: Hostile, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if case.name == "deadly-hang":
        monkeypatch.setattr(command, "_LOADING_S", 3.0)
    assert main(["plugins", "check", case.name]) == 1
    text = _text(capsys)
    assert f"plugin {case.name!r} of {case.name} 1.0" in text and case.says in text


@pytest.mark.parametrize("name", ["import-exit", "hook-sys-exit", "left-out-misspelt", "points-twice"])
def test_check_names_the_distribution(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "check", name]) == 1
    assert f"of {name}" in (text := _text(capsys)) or f"claimed by {name}" in text


def test_doctor_of_a_group_goes_through_all(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "doctor", "--group", "launchers"]) == 1
    text = _text(capsys)
    assert "launchers local learner-core" in text and "returns-text" in text and "exit code -9" in text
    assert "points-latin1" in text and "no regular file" in text


def test_an_unknown_name_says_what_could_not_be_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "dqm", "--env", "CartPole-v1"]) == 2
    assert "points-latin1" in _text(capsys)


def test_a_plugin_is_checked_beside_others_that_never_end(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Plugins that are told everything are loaded together in a run; here one alone is asked about."""
    assert main(["plugins", "check", "told-raises"]) == 0
    assert "ok its hooks are known and have the documented signatures" in _text(capsys)


def _command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *(path for path in sys.path if path)])}
    line = [sys.executable, "-m", "learner_core.cli.main", *arguments]
    return subprocess.run(line, env=environment, capture_output=True, timeout=600, check=False)


def test_real_commands_live(folder: Path) -> None:
    listed = _command(folder, "plugins", "list")
    assert listed.returncode == 0 and b"points-latin1" in listed.stdout and b"Traceback" not in listed.stderr
    refused = _command(folder, "train", "import-exit", "--env", "CartPole-v1")
    assert refused.returncode == 2 and b"import-exit" in refused.stderr and b"Traceback" not in refused.stderr


@pytest.mark.slow
def test_every_one_through_doctor_and_check_as_real_processes(folder: Path) -> None:
    """About a second each."""
    doctor = _command(folder, "plugins", "doctor")
    text = " ".join(doctor.stdout.decode().split())
    assert doctor.returncode == 1 and b"Traceback" not in doctor.stderr
    for case in (*CASES, *DEADLY):
        if case.stage == "load" and case.name != "metadata-escape":
            assert f"{case.name} (broken)" in text, case.name
    checked = 0
    for case in (*CASES, *DEADLY, *GOOD):
        if case.stage in ("index", "duplicate") or case.name.startswith(("points", "metadata")):
            continue
        done = _command(folder, "plugins", "check", case.name)
        fails = case.stage == "load"
        assert b"Traceback" not in done.stderr, case.name
        assert done.returncode in ((1,) if fails else (0, 1)), (case.name, done.stdout, done.stderr)
        checked += 1
    print(f"{checked} checked")
