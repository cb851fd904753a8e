"""Numbered checkpoints: the newest intact one is found by looking; at least two are kept; only own litter is swept."""

from __future__ import annotations

import fcntl
import os

import numpy as np
import pytest

from learner_core import ConfigError, StateError, StateIOError, save_state
from learner_core.state import atomic
from learner_core.state.folder import CheckpointFolder


def names(path):
    return sorted(entry.name for entry in path.iterdir())


def damage(checkpoint):
    """Flip a bit of the last array."""
    with open(checkpoint.path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))


def state(number):
    return {"number": number, "w": np.full(100, number)}


def test_the_newest_are_kept(tmp_path):
    folder = CheckpointFolder(tmp_path / "run" / "checkpoints", keep=3)
    assert folder.checkpoints() == []
    assert folder.newest_valid() is None
    for number in (1, 5, 10, 100):
        saved = folder.save(number, state(number))
    assert names(tmp_path / "run" / "checkpoints") == [f"checkpoint-{n:08d}.lcstate" for n in (5, 10, 100)]
    assert folder.newest_valid() == saved
    checkpoint, tree = folder.load_newest()
    assert (checkpoint.number, tree["number"]) == (100, 100)


def test_damaged_ones_are_passed_over(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=3)
    for number in (1, 2, 3):
        damage_me = folder.save(number, state(number))
    damage(damage_me)
    assert folder.newest_valid().number == 2
    assert folder.load_newest()[1]["number"] == 2
    with open(folder.checkpoints()[1].path, "r+b") as file:
        file.truncate(70)
    assert folder.load_newest()[0].number == 1
    damage(folder.checkpoints()[0])
    with pytest.raises(StateError, match=r"no intact checkpoint in .*damaged.*truncated.*damaged"):
        folder.load_newest()
    assert folder.newest_valid() is None


def test_what_is_visibly_damaged_does_not_count_as_kept(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    folder.save(1, state(1))
    second = folder.save(2, state(2))
    with open(second.path, "r+b") as file:
        file.truncate(70)
    folder.save(3, state(3))
    assert [one.number for one in folder.checkpoints()] == [1, 2, 3]  # 3 and 1 are the two
    folder.save(4, state(4))
    assert [one.number for one in folder.checkpoints()] == [3, 4]


def test_a_folder_without_checkpoints_says_so(tmp_path):
    with pytest.raises(StateError, match=f"no intact checkpoint in {tmp_path}: it holds none"):
        CheckpointFolder(tmp_path).load_newest()


def test_fewer_than_two_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="keep=1: at least two"):
        CheckpointFolder(tmp_path, keep=1)


@pytest.mark.parametrize("number", [-1, 10**18])
def test_numbers_have_bounds(tmp_path, number):
    with pytest.raises(StateError, match="number="):
        CheckpointFolder(tmp_path).save(number, 1)
    assert names(tmp_path) == []


def test_going_back_to_a_lower_number_keeps_what_was_just_saved(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    for number in (10, 20, 5):
        folder.save(number, state(number))
    assert [one.number for one in folder.checkpoints()] == [5, 10, 20]


def test_only_its_own_stale_temporaries_are_swept(tmp_path):
    folder = CheckpointFolder(tmp_path)
    stale = tmp_path / ".checkpoint-00000007.lcstate.0123456789ab.lctmp"
    living = tmp_path / ".checkpoint-00000008.lcstate.0123456789ab.lctmp"
    foreign = [
        tmp_path / ".other.lcstate.0123456789ab.lctmp",
        tmp_path / ".checkpoint-00000007.lcstate.0123456789.lctmp",
        tmp_path / ".checkpoint-00000007.lcstate.0123456789AB.lctmp",
        tmp_path / "checkpoint-00000007.lcstate.0123456789ab.lctmp",
        tmp_path / ".checkpoint-00000007.lcstate.0123456789ab.tmp",
        tmp_path / ".checkpoint-7.lcstate.0123456789ab.lctmp",
        tmp_path / "notes.txt",
    ]
    for path in [stale, living, *foreign]:
        path.write_text("x")
    with living.open("rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        folder.save(9, state(9))
        assert not stale.exists()
        assert living.exists()
        assert all(path.exists() for path in foreign)
    folder.save(10, state(10))
    assert not living.exists()


def test_saving_one_file_sweeps_only_for_that_name(tmp_path):
    mine, other = tmp_path / ".a.0123456789ab.lctmp", tmp_path / ".b.0123456789ab.lctmp"
    mine.write_text("x")
    other.write_text("x")
    save_state(tmp_path / "a", 1)
    assert names(tmp_path) == [".b.0123456789ab.lctmp", "a"]


def test_a_temporary_swept_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    flock = fcntl.flock
    swept = []

    def flock_after_a_sweeper(descriptor, operation):
        if not swept:
            swept.extend(tmp_path.glob(".a.*"))
            swept[0].unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(atomic.fcntl, "flock", flock_after_a_sweeper)
    save_state(tmp_path / "a", state(1))
    assert swept
    assert names(tmp_path) == ["a"]


def test_a_temporary_that_is_a_link_is_left_alone(tmp_path):
    (tmp_path / "precious").write_text("x")
    (tmp_path / ".a.0123456789ab.lctmp").symlink_to(tmp_path / "precious")
    save_state(tmp_path / "a", 1)
    assert (tmp_path / "precious").read_text() == "x"


def test_a_full_disk_removes_no_checkpoint(tmp_path, monkeypatch):
    folder = CheckpointFolder(tmp_path)
    for number in (1, 2):
        folder.save(number, state(number))

    def full(descriptor, buffers):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "writev", full)
    with pytest.raises(StateIOError, match="No space left on device"):
        folder.save(3, state(3))
    assert names(tmp_path) == ["checkpoint-00000001.lcstate", "checkpoint-00000002.lcstate"]


def test_a_path_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StateIOError, match="cannot"):
        CheckpointFolder(tmp_path / "file").save(1, 1)
    with pytest.raises(StateIOError, match="cannot read"):
        CheckpointFolder(tmp_path / "file").checkpoints()
