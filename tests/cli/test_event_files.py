"""TensorBoard's curve of a run that crashed and was resumed: every step once, and never backwards."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import pytest

import learner_core as lc
from learner_core.cli.main import main

from support.fake_algorithm import FakeAlgorithm, register

pytest.importorskip("tensorboard")


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    register()
    FakeAlgorithm.instances.clear()
    monkeypatch.setitem(vars(lc), "Algorithm", FakeAlgorithm)


def record(data: bytes) -> bytes:
    from tensorboard.summary.writer.record_writer import RecordWriter

    stream = io.BytesIO()
    RecordWriter(stream).write(data)
    return stream.getvalue()


def head(length: int) -> bytes:
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    return struct.pack("<QI", length, masked_crc32c(struct.pack("<Q", length)))


def train(*arguments: str) -> None:
    assert main(["train", *arguments, "--quiet"]) == 0


def start(out: Path, iterations: int) -> None:
    every = ("--set", "checkpoint_every=2", "--set", "checkpoint_keep=9")
    train("fake", "--env", "CartPole-v1", "--out", str(out), "--stop-iterations", str(iterations), *every)


def crash(out: Path, kept: int) -> None:
    """What a kill leaves: rows beyond the last checkpoint, and the last record half written."""
    for path in (out / "checkpoints").iterdir():
        if int(path.stem.rpartition("-")[2]) > kept:
            path.unlink()
    newest = sorted((out / "tensorboard").iterdir())[-1]
    newest.write_bytes(newest.read_bytes() + record(b"half of this is missing")[:20])


def steps(out: Path) -> list[int]:
    """Of every event with values, in the order in which TensorBoard reads the files."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    files = sorted((out / "tensorboard").iterdir())
    return [event.step for file in files for event in EventFileLoader(str(file)).Load() if event.summary.value]


def shown(accumulator: Any) -> list[int]:
    accumulator.Reload()
    return [event.step for event in accumulator.Scalars("training_iteration")]


def test_a_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    start(out, 5)
    live = EventAccumulator(str(out / "tensorboard"))  # open all the time
    before = shown(live)
    crash(out, kept=2)
    train("--resume", str(out), "--stop-iterations", "7")
    assert steps(out) == [100, 200, 300, 400, 500, 600, 700]
    assert shown(live)[-3:] == [500, 600, 700] and len(set(shown(live))) == len(shown(live))
    assert before[-1] == 500
    # Once more, from the middle of the second session, and from before it.
    crash(out, kept=6)
    train("--resume", str(out), "--stop-iterations", "8")
    assert steps(out) == [100, 200, 300, 400, 500, 600, 700, 800]
    crash(out, kept=2)
    train("--resume", str(out), "--stop-iterations", "4")
    assert steps(out) == [100, 200, 300, 400]
    fresh = shown(EventAccumulator(str(out / "tensorboard")))
    assert fresh == sorted(set(fresh)) and fresh[-1] == 400


def test_a_run_that_goes_on_from_its_end_keeps_its_files(tmp_path: Path) -> None:
    out = tmp_path / "run"
    start(out, 4)
    (first,) = (out / "tensorboard").iterdir()
    before = first.read_bytes()
    train("--resume", str(out), "--stop-iterations", "6")
    assert first.read_bytes() == before
    assert steps(out) == [100, 200, 300, 400, 500, 600]


def test_files_of_others_are_left_alone_and_damaged_ones_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    start(out, 5)
    (ours,) = (out / "tensorboard").iterdir()
    theirs = ours.with_name("events.out.tfevents.1700000000.host.4711.0")
    theirs.write_bytes(ours.read_bytes())
    # A record that is whole and no event, and one that is said to be huge.
    damaged = [ours.with_name(f"events.out.tfevents.170000000{digit}.123456.host") for digit in (0, 1)]
    damaged[0].write_bytes(record(b"\xff" * 20))
    damaged[1].write_bytes(head(1 << 25))
    crash(out, kept=2)
    assert main(["train", "--resume", str(out), "--stop-iterations", "6"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"{damaged[0]} still has the steps after 200, which are made again: a record in it is no event" in told
    assert f"{damaged[1]} still has the steps after 200, which are made again: a record in it has 33554432" in told
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    assert [e.step for e in EventFileLoader(str(theirs)).Load() if e.summary.value] == [100, 200, 300, 400, 500]
    assert [e.step for e in EventFileLoader(str(ours)).Load() if e.summary.value] == [100, 200]
