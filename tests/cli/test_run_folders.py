"""A run's folder in the hands of others: damaged, hostile, full, or used by two at once."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import learner_core as lc
from learner_core.cli.main import main
from learner_core.state import regular

from support.fake_algorithm import FakeAlgorithm, register

TESTS = Path(__file__).resolve().parents[1]
DEEP = "[" * 200_000


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    register()
    FakeAlgorithm.instances.clear()
    monkeypatch.setitem(vars(lc), "Algorithm", FakeAlgorithm)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three iterations."""
    register()
    out = tmp_path_factory.mktemp("finished") / "run"
    train = ["train", "fake", "--env", "CartPole-v1", "--out", str(out), "--stop-iterations", "3", "--quiet"]
    assert main([*train, "--set", "checkpoint_every=1"]) == 0
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "theirs").write_bytes(b"theirs")
    return tmp_path / "run"


def seen(folder: Path) -> dict[str, Any]:
    """Everything below a folder: kind, permissions, content."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(folder))] = (status.st_mode, content)
    return found


def put(name: str, content: bytes | str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def link(name: str, target: str = "../theirs") -> Callable[[Path], None]:
    def change(run: Path) -> None:
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.symlink_to(target)

    return change


def pipe(name: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        os.mkfifo(path)

    return change


def moved(run: Path) -> None:
    """The checkpoints on another disk, say."""
    (run / "checkpoints").rename(run.parent / "elsewhere")
    (run / "checkpoints").symlink_to("../elsewhere")


def large(name: str, nbytes: int) -> Callable[[Path], None]:
    return lambda run: os.truncate(run / name, nbytes)


ROW = '{"training_iteration": 1, "num_env_steps_sampled_lifetime": 100'
NEWEST = "checkpoints/checkpoint-00000003.lcstate"

#: name -> (what is done to the folder, what the refusal of --resume says)
HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "info: {}": (put("run.json", "{}"), "run.json: algorithm: expected a name, got NoneType. Its checkpoints may be"),
    "info: []": (put("run.json", "[]"), "run.json: expected an object with algorithm, sessions and stop, got list"),
    "info: no JSON": (put("run.json", "algorithm"), "run.json cannot be read (Expecting value"),
    "info: 0xff": (put("run.json", b"\xff"), "run.json cannot be read ('utf-8' codec"),
    "info: deep": (put("run.json", DEEP), "run.json cannot be read (it is nested too deeply)"),
    "info: huge": (large("run.json", 1 << 40), "1099511627776 bytes, more than the 16777216"),
    "info: digits": (put("run.json", "9" * 5000), "run.json cannot be read (Exceeds the limit"),
    "info: name": (put("run.json", '{"algorithm": "\\u001b[2J"}'), "There is no algorithm"),
    "info: sessions": (
        put("run.json", '{"algorithm": "fake", "sessions": [1]}'),
        "sessions: expected a list of objects",
    ),
    "info: stop": (put("run.json", '{"algorithm": "fake", "stop": 3}'), "stop: expected an object, got int"),
    "info: a condition": (
        put("run.json", '{"algorithm": "fake", "stop": {"x": 3}}'),
        "stop: there is no condition 'x'",
    ),
    "info: stop text": (put("run.json", '{"algorithm": "fake", "stop": {"seconds": "x"}}'), "stop/seconds: expected a"),
    "info: stop NaN": (put("run.json", '{"algorithm": "fake", "stop": {"seconds": NaN}}'), "stop/seconds: expected a"),
    "info: link": (link("run.json", "../info"), "run.json is a symbolic link where a regular file belongs"),
    "settings: deep": (put("config.toml", f"a = {DEEP}"), "config.toml is not TOML: values are nested more than 32"),
    "settings: dotted": (put("config.toml", ".".join("a" * 100_000) + " = 1"), "a dotted key has more than 32 parts"),
    "settings: 0xff": (put("config.toml", b"a = '\xff'"), "config.toml is not TOML: 'utf-8' codec"),
    "settings: digits": (put("config.toml", "[training]\nlr = " + "9" * 5000), "config.toml is not TOML: Exceeds"),
    "settings: hex": (put("config.toml", "[training]\nlr = 0x" + "f" * 999), "a whole number does not fit 64 bits"),
    "settings: huge": (large("config.toml", 1 << 40), "1099511627776 bytes, more than the 262144"),
    "settings: pipe": (pipe("config.toml"), "config.toml is a named pipe"),
    "settings: self": (put("config.toml", "[training]\nself = 1"), "config.toml, [training]"),
    "settings: folder": (lambda run: ((run / "config.toml").unlink(), (run / "config.toml").mkdir()), "is a folder"),
    "row: text": (
        put("metrics.jsonl", '{"training_iteration": "x"}\n'),
        "line 1: training_iteration: expected a whole",
    ),
    "row: negative": (put("metrics.jsonl", '{"training_iteration": -1}\n'), "training_iteration: expected a whole"),
    "row: half": (put("metrics.jsonl", '{"training_iteration": 0.5}\n'), "training_iteration: expected a whole"),
    "row: 0xff": (put("metrics.jsonl", b"\xff\n"), "metrics.jsonl, line 1: it is not UTF-8. Remove the line, or move"),
    "row: deep": (put("metrics.jsonl", DEEP + "\n"), "metrics.jsonl, line 1: it is nested too deeply"),
    "row: list": (put("metrics.jsonl", f"{ROW}}}\n[]\n"), "metrics.jsonl, line 2: expected an object, got list"),
    "row: NaN": (put("metrics.jsonl", ROW + ', "seconds": NaN}\n'), "it is not JSON (NaN is no number)"),
    "row: infinite": (put("metrics.jsonl", ROW + ', "seconds": 1e999}\n'), "'seconds': the number is too large"),
    "row: seconds": (put("metrics.jsonl", ROW + ', "seconds": "x"}\n'), "'seconds': expected a number, got str"),
    "row: a dict": (put("metrics.jsonl", ROW + ', "x": {}}\n'), "'x': expected a number or text, got dict"),
    "row: long": (put("metrics.jsonl", b"x" * (2 << 20)), "metrics.jsonl, line 1: it is not JSON"),
    "row: zeros": (put("metrics.jsonl", bytes(5000) + b"\n"), "metrics.jsonl, line 1: it is not JSON"),
    "rows: huge": (large("metrics.jsonl", 1 << 40), "1099511627776 bytes, more than the 4294967296"),
    "rows: pipe": (pipe("metrics.jsonl"), "metrics.jsonl is a named pipe where a regular file belongs: move it away"),
    "rows: link": (
        link("metrics.jsonl"),
        "metrics.jsonl is a symbolic link where a regular file belongs: move it away",
    ),
    "table: link": (link("metrics.csv"), "metrics.csv is a symbolic link"),
    "curve: link": (link("curve.png"), "curve.png is a symbolic link"),
    "lock: link": (link("run.lock"), "run.lock is a symbolic link"),
    "lock: pipe": (pipe("run.lock"), "run.lock is a named pipe"),
    "events: link": (link("tensorboard", ".."), "tensorboard is a symbolic link where a folder belongs"),
    "events: file": (link("tensorboard"), "tensorboard is a symbolic link where a folder belongs"),
    "checkpoints: link": (link("checkpoints", ".."), "stopped before its first checkpoint"),
    "checkpoints: elsewhere": (moved, "checkpoints is a symbolic link where a folder belongs: move it away"),
    "a checkpoint: link": (link(NEWEST), "checkpoint-00000003.lcstate is a symbolic link"),
    "a future one: link": (
        link("checkpoints/checkpoint-00000004.lcstate", "../../theirs"),
        "checkpoint-00000004.lcstate is a symbolic link",
    ),
    "a checkpoint: pipe": (pipe(NEWEST), "checkpoint-00000003.lcstate is a named pipe"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_folder_is_refused_and_left_as_it_is(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, said = HOSTILE[name]
    shutil.copy(run / "run.json", tmp_path / "info")
    change(run)
    sizes = [path.lstat().st_size for path in run.rglob("*")]
    before = seen(tmp_path) if max(sizes) < 1 << 30 else None
    start = time.process_time()
    assert main(["train", "--resume", str(run), "--stop-iterations", "5", "--quiet"]) == 2
    assert time.process_time() - start < 5
    told = capsys.readouterr().err
    assert said in told, told
    assert "Traceback" not in told
    assert "\x1b" not in told
    assert (tmp_path / "theirs").read_bytes() == b"theirs"
    if before is not None:
        after = seen(tmp_path)
        if name not in ("lock: link", "lock: pipe"):  # the lock's file tells of its last holder
            before.pop("run/run.lock"), after.pop("run/run.lock")
        # What is refused after the lock was taken has made no row and no session.
        events = {name for name in after if "tensorboard/" in name} - set(before)
        assert {name: value for name, value in after.items() if name not in events} == before
    assert [algorithm for algorithm in FakeAlgorithm.instances if not algorithm.stopped] == []


def test_random_damage_is_refused_or_does_not_matter(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    """Bytes of the small files changed, cut and repeated: an exit code, never an exception, and in bounded time."""
    count = 1000 if request.config.getoption("--slow") else 60
    seed = int(os.environ.get("LC_SEED") or secrets.randbits(63))
    print(f"LC_SEED={seed}")
    rng = np.random.default_rng(seed)
    codes = []
    for number in range(count):
        work = tmp_path / "work"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(run, work)
        path = work / ("run.json", "config.toml", "metrics.jsonl")[number % 3]
        path.write_bytes(mutated(path.read_bytes(), rng))
        start = time.process_time()
        codes.append(main(["train", "--resume", str(work), "--stop-iterations", "3", "--quiet"]))
        assert time.process_time() - start < 5
    told = capsys.readouterr()
    assert set(codes) == {0, 2}
    assert "Traceback" not in told.err


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    place, length = int(rng.integers(0, len(content))), int(rng.integers(1, 9))
    before, after = content[:place], content[place:]
    kind = int(rng.integers(0, 5))
    if kind == 0:
        return before + rng.bytes(length) + after[length:]
    if kind == 1:
        return before
    if kind == 2:
        return before + after[length:]
    if kind == 3:
        return before + after[:length] * int(rng.integers(2, 2000)) + after[length:]
    return before + b"[{\"'=.,-e\n0x"[place % 12 : place % 12 + 1] * length + after


@pytest.mark.parametrize("command", ["evaluate", "inspect", "export"])
@pytest.mark.parametrize(
    "name", ["info: []", "info: deep", "row: deep", "settings: deep", "rows: pipe", "a checkpoint: pipe"]
)
def test_commands_that_read_find_the_checkpoints_all_the_same(
    name: str, command: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    HOSTILE[name][0](run)
    before = seen(tmp_path)
    more = ["--to", "safetensors", "--out", str(tmp_path / "out")] if command == "export" else []
    code = main([command, str(run), *more])
    told = capsys.readouterr().err
    assert "Traceback" not in told
    # The fake's checkpoints are no Algorithm's, and the pipe is the newest of them.
    assert code == (0 if command == "evaluate" or (command == "inspect" and name != "a checkpoint: pipe") else 2), told
    assert seen(tmp_path) == before


def test_where_there_is_no_place_for_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("theirs")
    (tmp_path / "curve").mkdir()
    (tmp_path / "curve" / "curve.png").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    before = seen(tmp_path)
    train = ["train", "fake", "--env", "CartPole-v1", "--stop-iterations", "1", "--out"]
    for out, said in (
        ("file", "file is a file, and a run needs a folder"),
        ("pipe", "a run needs a folder"),
        ("file/run", "file is a file, and a run needs a folder"),
        ("a\0b", "is no path: "),
        ("x" * 300, "File name too long"),
        ("curve", "curve.png is a symbolic link where a regular file belongs: move it away"),
    ):
        assert main([*train, str(tmp_path / out)]) == 2
        assert said in capsys.readouterr().err
        assert seen(tmp_path) == before


def test_a_folder_may_be_a_link_and_is_used_through_it(run: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(run)
    assert main(["train", "--resume", str(tmp_path / "link"), "--stop-iterations", "4", "--quiet"]) == 0
    assert (run / "checkpoints" / "checkpoint-00000004.lcstate").is_file()


def test_a_last_row_cut_short_is_left_out(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write(ROW[:30])
    assert main(["train", "--resume", str(run), "--stop-iterations", "4", "--quiet"]) == 0
    assert iterations(run) == [1, 2, 3, 4]


def iterations(run: Path) -> list[int]:
    return [json.loads(line)["training_iteration"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_outputs_beside_a_run_are_files_or_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    null = os.stat("/dev/null")
    os.mkfifo(tmp_path / "pipe")
    for out in ("/dev/null", str(tmp_path / "pipe"), str(tmp_path), str(tmp_path / "absent" / "x")):
        assert main(["evaluate", str(run), "--out", out]) == 2
        assert f"cannot save {out}" in capsys.readouterr().err
        assert not FakeAlgorithm.instances  # nothing was played for nothing
    assert os.stat("/dev/null")[:3] == null[:3]
    for command in (["evaluate"], ["record"], ["export", "--to", "onnx"]):
        with pytest.raises(SystemExit):
            main([command[0], str(run), *command[1:], "--out", f"{tmp_path}/out/"])
        assert "expected the name of a file" in capsys.readouterr().err
    (tmp_path / "out").write_text("old")
    (tmp_path / "out").chmod(0o600)
    assert main(["evaluate", str(run), "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out").read_text())["episode_return_mean"] == 30.0
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o600


# ---- two at once -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def started(*arguments: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "support.fake_algorithm", "train", *arguments]
    with log.open("wb") as output, subprocess.Popen(command, env=environment, stdout=output, stderr=output) as program:
        try:
            yield program
        finally:
            if program.poll() is None:
                program.kill()


def until(condition: Callable[[], bool], *programs: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        assert not programs or any(program.poll() is None for program in programs)
        time.sleep(0.02)


def rows(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(path.read_bytes().splitlines()) if path.is_file() else 0


@pytest.mark.parametrize("resume", [False, True])
def test_of_two_at_once_one_trains(resume: bool, run: Path, tmp_path: Path) -> None:
    """Exactly one goes on and its rows alone are there; the other says who has the folder, and what to do."""
    out = run if resume else tmp_path / "new"
    arguments = ["--resume", str(out)] if resume else ["fake", "--env", "CartPole-v1", "--out", str(out)]
    arguments += ["--stop-iterations", "400", "--set", "pause=0.05", "--quiet"]
    logs = tmp_path / "one.log", tmp_path / "two.log"
    with started(*arguments, log=logs[0]) as one, started(*arguments, log=logs[1]) as two:
        until(lambda: one.poll() is not None or two.poll() is not None)
        loser, winner = (one, two) if one.poll() is not None else (two, one)
        told = logs[0 if loser is one else 1].read_text()
        assert loser.returncode == 2, told
        assert "Traceback" not in told
        assert f"{out} is in use: process {winner.pid} on " in told
        assert "Wait until it ends or stop it (SIGTERM lets it save)" in told
        until(lambda: rows(out) >= (6 if resume else 3), winner)
        winner.send_signal(signal.SIGTERM)
        assert winner.wait(300) == 130, logs[0 if winner is one else 1].read_text()
    assert iterations(out) == list(range(1, len(iterations(out)) + 1))
    info = json.loads((out / "run.json").read_text())
    assert len(info["sessions"]) == (2 if resume else 1)


def test_a_killed_one_leaves_the_folder_free(run: Path, tmp_path: Path) -> None:
    arguments = ["--resume", str(run), "--stop-iterations", "4000", "--set", "pause=0.05", "--quiet"]
    with started(*arguments, log=tmp_path / "log") as holder:
        until(lambda: rows(run) >= 5, holder)
        holder.kill()
        holder.wait()
    assert json.loads((run / "run.lock").read_text())["pid"] == holder.pid
    assert main(["train", "--resume", str(run), "--stop-iterations", "5", "--set", "pause=0", "--quiet"]) == 0
    assert iterations(run) == [1, 2, 3, 4, 5]


def test_a_file_system_without_locks_is_said(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("learner_core.state.lock.fcntl.flock", refuse)
    assert main(["train", "--resume", str(run), "--stop-iterations", "4"]) == 0
    told = capsys.readouterr().out
    assert "run.lock cannot be locked (No locks available)" in told
    assert "Nothing keeps a second process out of this run" in told


# ---- a disk that takes no more ---------------------------------------------------------------------------------------


class Full:
    """The module `os` of learner_core.state.regular: from one write to another there is no room for more than bits."""

    def __init__(self, first: int, last: int, code: int) -> None:
        self._failing, self._code, self.count = range(first, last), code, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        self.count += 1
        if self.count in self._failing:
            if self.count % 2:
                return os.pwrite(descriptor, bytes(data[:7]), offset)  # cut short, and then nothing
            raise OSError(self._code, os.strerror(self._code))
        return os.pwrite(descriptor, data, offset)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_metrics_that_cannot_be_written_do_not_end_the_run(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said once, counted, tried again; once there is room every file is as if there had always been."""
    out, good = tmp_path / "run", tmp_path / "good"
    train = ["train", "fake", "--env", "CartPole-v1", "--stop-iterations", "12", "--set", "checkpoint_every=1", "--out"]
    assert main([*train, str(good)]) == 0
    capsys.readouterr()
    full = Full(6, 22, code)
    monkeypatch.setattr(regular, "os", full)
    assert main([*train, str(out)]) == 0
    assert full.count > 22
    told = capsys.readouterr().out
    assert told.count("cannot be written") == 1
    assert f"cannot be written ({os.strerror(code)}). Training and its checkpoints go on" in told
    assert told.count("The metric files can be written again.") == 1
    assert "iterations; no row is missing in metrics.jsonl" in " ".join(told.split())
    assert iterations(out) == list(range(1, 13))

    def columns(run: Path) -> list[list[str]]:
        return [line.split(",")[:2] for line in (run / "metrics.csv").read_text().splitlines()]

    assert columns(out) == columns(good)
    assert events(out) == events(good) == list(range(100, 1300, 100))
    assert sorted(path.name for path in (out / "checkpoints").iterdir())[-1] == "checkpoint-00000012.lcstate"


def events(run: Path) -> list[int]:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    (file,) = (run / "tensorboard").iterdir()
    return [event.step for event in EventFileLoader(str(file)).Load() if event.summary.value]


def test_a_disk_that_stays_full_leaves_the_checkpoints(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The save comes before the row: the last checkpoint is there though its row is not."""
    monkeypatch.setattr(regular, "os", Full(2, 10_000, errno.ENOSPC))  # the first write begins the event file
    assert main(["train", "--resume", str(run), "--stop-iterations", "6"]) == 0
    assert (run / "checkpoints" / "checkpoint-00000006.lcstate").is_file()
    assert iterations(run) == [1, 2, 3]
    assert "could not be written after 3 iterations; 3 rows are missing" in " ".join(capsys.readouterr().out.split())
