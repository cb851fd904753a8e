"""One process at a time in a folder, whoever is killed, and the words of the refusal."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from learner_core import StateError, StateIOError
from learner_core.state.lock import FolderLock, holder_of

HOLDER = """
import os, subprocess, sys, time
from learner_core.state.lock import FolderLock
lock = FolderLock(sys.argv[1])
started = [subprocess.Popen(["sleep", "600"], close_fds=False).pid]
if not (forked := os.fork()):
    time.sleep(600)
    os._exit(0)
print(*started, forked, flush=True)
time.sleep(600)
"""


ESCAPES = b'{"pid": 7, "host": "\\u001b[2J"}'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.lock"


def _soon(path: Path) -> FolderLock:
    """The lock, once the forked process has run at all: on a busy machine that may be later than its parent's end."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return FolderLock(path)
        except StateError:
            assert time.monotonic() < deadline


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_goes_with_its_holder_and_not_with_the_processes_it_started(path: Path, number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        children = [int(word) for word in holder.stdout.readline().split()]
        try:
            with pytest.raises(StateError) as refused:
                FolderLock(path)
            text = str(refused.value)
            assert f"{path.parent} is in use: process {holder.pid} on {socket.gethostname()} has it since 20" in text
            assert "Wait until it ends or stop it" in text
        finally:
            holder.send_signal(number)
            holder.wait()
        try:
            for child in children:
                os.kill(child, 0)  # they live on
            with _soon(path) as lock:
                assert lock.trouble == ""
                assert json.loads(path.read_text())["pid"] == os.getpid()
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)


def test_one_in_a_process_too_and_again_after_it(path: Path) -> None:
    with FolderLock(path), pytest.raises(StateError, match=f"process {os.getpid()} on"):
        FolderLock(path)
    FolderLock(path).release()
    assert len(os.listdir(path.parent)) == 1


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[" * 200_000, b"[]", b'{"pid": "x"}', b'{"pid": 7, "host": "\\u001b[2J"}']
)
def test_what_the_file_says_decides_nothing(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    words = holder_of(path)
    assert words.isprintable()
    assert (
        words.startswith("process 7 on [2J has it since") if b"host" in content else words == "another process has it"
    )
    FolderLock(path).release()


def test_a_file_system_without_locks_is_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with FolderLock(path) as lock:
        assert lock.trouble == f"{path} cannot be locked (No locks available): its file system has no locks"


def test_what_is_no_file_to_lock(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(StateError, match="named pipe, not a regular file"):
        FolderLock(path)
    path.unlink()
    path.symlink_to("/dev/null")
    with pytest.raises(StateError, match="no regular file"):
        FolderLock(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(StateError, match="no regular file"):
        FolderLock(path)
    with pytest.raises(StateIOError, match="No such file"):
        FolderLock(path.parent / "absent" / "run.lock")
