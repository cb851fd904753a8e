"""Which folders are trusted with code."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from learner_core.state.private import make_private_folder, why_not_private


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "a" / "b" / "c"
    umask = os.umask(0)
    try:
        assert make_private_folder(path) == ""
    finally:
        os.umask(umask)
    for level in (path, path.parent, path.parent.parent):
        assert level.stat().st_mode & 0o777 == 0o700  # whatever the umask is
    return path


@pytest.mark.parametrize("mode", [0o770, 0o777, 0o702])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_level_that_others_may_write(folder: Path, level: int, mode: int) -> None:
    place = [folder, *folder.parents][level]
    place.chmod(mode)
    assert why_not_private(folder) == f"others may write to {place}: chmod go-w {place}"
    assert make_private_folder(folder) == f"others may write to {place}: chmod go-w {place}"


def test_a_sticky_level_above_counts_and_the_folder_itself_does_not(folder: Path) -> None:
    folder.parent.chmod(0o1777)
    assert why_not_private(folder) == ""
    folder.chmod(0o1777)
    assert "others may write" in why_not_private(folder)


def test_files(folder: Path) -> None:
    file = folder / "code"
    file.write_bytes(b"")
    file.chmod(0o644)
    assert why_not_private(file) == ""
    file.chmod(0o664)
    assert why_not_private(file) == f"others may write to {file}: chmod go-w {file}"
    (folder / "link").symlink_to(file)
    assert why_not_private(folder / "link") == f"{folder / 'link'} is a symbolic link"
    os.mkfifo(folder / "pipe")
    assert "neither a folder nor a file" in why_not_private(folder / "pipe")
    assert "No such file" in why_not_private(folder / "absent")


def test_links_to_folders_are_followed_level_by_level(folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("a/../a/b")
    assert why_not_private(link / "c") == ""
    folder.parent.chmod(0o777)
    assert f"others may write to {folder.parent}" in why_not_private(link / "c")
    (tmp_path / "around").symlink_to("around")
    assert why_not_private(tmp_path / "around" / "c")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_what_belongs_to_another_user(folder: Path, tmp_path: Path) -> None:
    file = folder / "code"
    file.write_bytes(b"")
    os.chown(file, 12, -1)
    assert why_not_private(file) == f"{file} belongs to user 12"
    os.chown(folder.parent, 12, -1)
    assert why_not_private(folder) == f"{folder.parent} belongs to user 12"
    link = tmp_path / "link"
    link.symlink_to("a")
    os.chown(link, 12, -1, follow_symlinks=False)
    assert why_not_private(link / "b") == f"{link} is a symbolic link of user 12"
    file.unlink()
    (tmp_path / "file").write_bytes(b"")
    assert "cannot be made" in make_private_folder(tmp_path / "file" / "x")
