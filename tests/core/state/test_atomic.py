"""Rows 3 to 6 of the reliability plan: kill -9, failing calls, power loss, a full disk."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from learner_core import FormatError, StateError, StateIOError, load_state, save_state
from learner_core.state import atomic, files
from learner_core.state.atomic import write_atomically

from support.faulty_os import FAULTS, FaultyOS, Recorder, after_power_loss
from support.states import assert_identical


def state(number: int, *, size: int = 3000) -> dict[str, object]:
    """A state of which every array tells its number, so that a mixture would show."""
    return {"number": number, "w": np.full(size, number, np.int64), "v": [np.full(7, number), "x" * 2000]}


def number_of(path: Path) -> int:
    """The number of the state in a file, which must be of one piece."""
    tree = load_state(path)
    number = tree["number"]
    assert_identical(state(number, size=tree["w"].size), tree)
    return int(number)


# Row 3: kill -9 -----------------------------------------------------------------------------------------------


def test_kill_while_a_forked_writer_saves(tmp_path, rng, full):
    path = tmp_path / "a"
    kills = 2_000 if full else 40
    save_state(path, state(0))
    newest = 0
    for _ in range(kills):
        child = os.fork()
        if child == 0:  # only this and _exit: the child must not run the test's cleanup
            try:
                number = newest
                while True:
                    number += 1
                    save_state(path, state(number, size=300_000 if number % 2 else 300))
            finally:
                os._exit(1)
        time.sleep(float(rng.uniform(0, 0.03)))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = number_of(path)
        assert found >= newest
        newest = found
    save_state(path, state(newest + 1))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a"]  # every left temporary has been swept
    print(f"row 3: {kills} kills, {newest} saves completed, the file always loaded")


WRITER = """
import sys
from learner_core import load_state, save_state
sys.path.insert(0, sys.argv[2])
path = sys.argv[1]
number = load_state(path)["number"]
import test_atomic
print("ready", flush=True)
while True:
    number += 1
    save_state(path, test_atomic.state(number, size=200_000))
"""


def test_kill_a_program_that_saves(tmp_path, rng, full):
    path = tmp_path / "a"
    kills = 200 if full else 3
    save_state(path, state(0))
    newest = 0
    for _ in range(kills):
        command = [sys.executable, "-c", WRITER, str(path), str(Path(__file__).parent)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as program:
            assert program.stdout is not None
            assert program.stdout.readline() == b"ready\n"
            time.sleep(float(rng.uniform(0, 0.1)))
            program.kill()
        found = number_of(path)
        assert found >= newest
        newest = found
    print(f"row 3: {kills} programs killed, the file always loaded")


# Row 4: every call fails in every way -------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("existing", [True, False])
def test_a_fault_at_every_call_of_save(tmp_path, monkeypatch, fault, existing):
    path = tmp_path / "a"
    monkeypatch.setattr(atomic, "_STRIDE", 8192)  # so that even these small states take several writes
    counting = FaultyOS()
    with monkeypatch.context() as patch:
        patch.setattr(atomic, "os", counting)
        save_state(path, state(1))
    assert {"open", "writev", "posix_fadvise", "fsync", "replace", "close"} <= set(counting.calls)
    assert counting.calls.count("writev") > 2
    struck = []
    for call in range(len(counting.calls)):
        path.unlink(missing_ok=True)
        if existing:
            save_state(path, state(1))
        system = FaultyOS(call, fault)
        raised: StateIOError | None = None
        with monkeypatch.context() as patch:
            patch.setattr(atomic, "os", system)
            try:
                save_state(path, state(2))
            except StateIOError as error:
                raised = error
        if system.struck is None:
            assert raised is None
            assert number_of(path) == 2
            continue
        struck.append(system.struck)
        assert [entry.name for entry in tmp_path.iterdir()] in ([["a"]] if existing else [["a"], []])
        replaced = "replace" in system.calls and system.struck != "replace"
        if raised is None:
            assert system.struck in {
                "close",
                "fchmod",
                "listdir",
                "posix_fadvise",
                "writev",
            }  # harmless, or gone on with
            assert number_of(path) == 2
        else:
            assert isinstance(raised, OSError)
            assert raised.errno == FAULTS[fault]
            assert str(path) in str(raised)
            if replaced:
                assert system.struck in {"open", "fsync"}  # of the folder: the new file is there
                assert number_of(path) == 2
            elif existing:
                assert number_of(path) == 1
            else:
                assert not path.exists()
    assert struck
    print(f"row 4: {fault} at {len(struck)} calls: {struck}")


@pytest.mark.parametrize("fault", ["EIO", "EACCES", "EINTR"])
@pytest.mark.parametrize("mmap", [True, False])
def test_a_fault_at_every_call_of_load(tmp_path, monkeypatch, fault, mmap):
    path = tmp_path / "a"
    save_state(path, state(1))
    call, finished = 0, False
    before = len(os.listdir("/proc/self/fd"))
    while not finished:
        system = FaultyOS(call, fault)
        with monkeypatch.context() as patch:
            patch.setattr(files, "os", system)
            try:
                load_state(path, mmap=mmap)
                finished = system.struck is None
                assert finished or system.struck == "close"
            except StateIOError as error:
                assert error.errno == FAULTS[fault]
                assert str(path) in str(error)
        call += 1
    assert call > 3
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("refusal", "finished"), [(errno.EFAULT, False), (errno.EINVAL, True)], ids=["disk", "old Linux"]
)
def test_a_disk_that_fails_under_a_mapping_is_an_error_not_a_signal(tmp_path, monkeypatch, refusal, finished):
    class Mapped(mmap.mmap):
        def madvise(self, option, *arguments):
            raise OSError(refusal, os.strerror(refusal))

    path = tmp_path / "a"
    save_state(path, state(1))
    monkeypatch.setattr(files.mmaps, "mmap", Mapped)
    if finished:  # Linux before 5.14 does not know the request
        assert_identical(state(1), load_state(path, mmap=True))
        return
    with pytest.raises(StateIOError, match="the disk did not deliver all of the file") as caught:
        load_state(path, mmap=True)
    assert caught.value.errno == errno.EIO and str(path) in str(caught.value)


def test_a_file_cut_off_before_it_is_mapped_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a"
    save_state(path, state(1))
    layout = files._layout

    def cut_off(descriptor, nbytes):
        os.truncate(path, nbytes - 1)
        return layout(descriptor, nbytes)

    monkeypatch.setattr(files, "_layout", cut_off)
    with pytest.raises(FormatError, match="truncated while it was being read"):
        load_state(path, mmap=True)


def test_a_missing_file_and_a_missing_folder(tmp_path):
    with pytest.raises(StateIOError, match=r"cannot read .*nothing: No such file or directory") as caught:
        load_state(tmp_path / "nothing")
    assert isinstance(caught.value, StateError)
    with pytest.raises(StateIOError, match=r"cannot save .*a: No such file or directory"):
        save_state(tmp_path / "folder" / "a", 1)
    with pytest.raises(StateIOError, match="it is a folder, and only regular files are replaced"):
        save_state(tmp_path, 1)
    with pytest.raises(FormatError, match="a folder, not a file"):
        load_state(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_no_temporary(tmp_path, monkeypatch):
    save_state(tmp_path / "a", state(1))

    def interrupted(descriptor, buffers):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        system = FaultyOS()
        system.writev = interrupted
        patch.setattr(atomic, "os", system)
        with pytest.raises(KeyboardInterrupt):
            save_state(tmp_path / "a", state(2))
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
    assert number_of(tmp_path / "a") == 1


def test_a_symbolic_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "a")
    save_state(tmp_path / "link", state(1))
    assert (tmp_path / "link").is_symlink()
    assert number_of(tmp_path / "real" / "a") == 1


# Row 5: power loss --------------------------------------------------------------------------------------------


def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[tuple[object, ...]], dict[str, bytes]]:
    """What saving state 2 over state 1 asked of the operating system, and the folder before."""
    path = tmp_path / "a"
    monkeypatch.setattr(atomic, "_STRIDE", 8192)
    save_state(path, state(1))
    old = {"a": path.read_bytes()}
    recorder = Recorder()
    with monkeypatch.context() as patch:
        patch.setattr(atomic, "os", recorder)
        save_state(path, state(2))
    return recorder.log, old


def outcome(folder: dict[str, bytes], scratch: Path) -> int | None:
    """Number of the state that is found after the power loss, None if it does not load."""
    if "a" not in folder:
        return None
    scratch.write_bytes(folder["a"])
    try:
        return number_of(scratch)
    except FormatError:
        return None


def test_power_loss_at_every_moment(tmp_path, monkeypatch, rng, full):
    log, old = recorded(tmp_path, monkeypatch)
    kinds = [call[0] for call in log]
    assert kinds[0] == "create"
    assert kinds[-4:] == ["data", "sync", "rename", "sync folder"]
    states = 5_000 if full else 300
    seen = {1: 0, 2: 0}
    for at in range(states):
        crash = at % (len(log) + 1)
        found = outcome(after_power_loss(log, crash=crash, old=old, rng=rng), tmp_path / "scratch")
        assert found in (1, 2), f"crash before {kinds[crash:]}"
        assert crash < len(log) or found == 2  # save_state has returned: durable
        seen[found] += 1
    assert all(seen.values())
    print(f"row 5: {states} states, {seen[1]} old, {seen[2]} new, none unreadable")


@pytest.mark.parametrize("forgotten", ["sync", "sync folder"])
def test_the_simulation_finds_a_forgotten_fsync(tmp_path, monkeypatch, rng, forgotten):
    """The test of the test: without either fsync, some power loss destroys or loses the state."""
    log, old = recorded(tmp_path, monkeypatch)
    log = [call for call in log if call[0] != forgotten]
    states = [after_power_loss(log, crash=len(log), old=old, rng=rng) for _ in range(300)]
    found = [outcome(folder, tmp_path / "scratch") for folder in states]
    assert (None if forgotten == "sync" else 1) in found


# Row 6: a full disk -------------------------------------------------------------------------------------------

FILL = """
mount -t tmpfs -o size=1m none "$1" && cd "$1" && exec "$2" - <<'END'
import os, sys
import numpy as np
from learner_core import StateIOError, load_state, save_state
count = int(os.environ["COUNT"])
save_state("a", {"number": 0, "w": np.zeros(30_000)})
for number in range(1, count + 1):
    try:
        save_state("a", {"number": number, "w": np.zeros(110_000 + 100 * number)})
        raise SystemExit("the disk was not full")
    except StateIOError as error:
        assert error.errno == 28, error
    assert os.listdir(".") == ["a"], os.listdir(".")
    assert load_state("a")["number"] == 0
save_state("a", {"number": -1, "w": np.zeros(30_000)})
assert load_state("a")["number"] == -1
print("survived", count)
END
"""


def test_a_really_full_disk(tmp_path, full):
    unshare = shutil.which("unshare")
    allowed = unshare and subprocess.run(
        [unshare, "-rm", "mount", "-t", "tmpfs", "none", tmp_path], capture_output=True
    )
    if not allowed or allowed.returncode:
        pytest.skip("mounting a tmpfs in a namespace of its own is not allowed here")
    count = 50 if full else 5
    done = subprocess.run(
        [unshare, "-rm", "sh", "-c", FILL, "sh", str(tmp_path), sys.executable],
        env={**os.environ, "COUNT": str(count)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"survived {count}\n", done.stderr


# What is replaced, and how ------------------------------------------------------------------------------------


@pytest.fixture
def special(tmp_path):
    """One of every kind of thing that is no regular file, by its name in words."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "around").symlink_to(tmp_path / "around")
    (tmp_path / "to-pipe").symlink_to(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as door, contextlib.chdir(tmp_path):
        door.bind("socket")
        yield {
            "/dev/null": "a device",
            "pipe": "a named pipe",
            "folder": "a folder",
            "around": "a symbolic link",
            "to-pipe": "a named pipe",
            "null": "a device",
            "socket": "a socket",
        }


def test_what_is_no_regular_file_is_refused_and_stays(special):
    before = {name: os.lstat(name) for name in special}
    for name, kind in special.items():
        with pytest.raises(
            StateIOError, match=f"cannot save {name}: it is {kind}, and only regular files are replaced"
        ):
            save_state(name, state(1))
        assert os.lstat(name)[:3] == before[name][:3]
    assert not [name for name in os.listdir(".") if name.endswith(".lctmp")]


@pytest.mark.parametrize("name", ["a/", "folder/", "new/", ".", "..", "folder/.", "", "a\0b", "a/b"])
def test_names_of_no_file(tmp_path, name):
    (tmp_path / "folder").mkdir()
    save_state(tmp_path / "a", state(1))
    with pytest.raises(StateIOError, match="cannot save"):
        save_state(f"{tmp_path}/{name}" if name else "", state(2))
    assert sorted(os.listdir(tmp_path)) == ["a", "folder"]
    assert number_of(tmp_path / "a") == 1


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o666, 0o4755])
def test_permissions_are_those_of_the_file_that_is_replaced(tmp_path, mode):
    path = tmp_path / "a"
    save_state(path, state(1))
    umask = os.umask(0o022)
    os.umask(umask)
    assert path.stat().st_mode & 0o7777 == 0o666 & ~umask
    path.chmod(mode)
    (tmp_path / "link").symlink_to(path)
    save_state(tmp_path / "link", state(2))
    assert number_of(path) == 2
    assert path.stat().st_mode & 0o7777 == mode & 0o777


def test_owner_and_group_are_kept_where_that_may_be(tmp_path, monkeypatch):
    if os.geteuid():
        pytest.skip("only root may give files away")
    path = tmp_path / "a"
    save_state(path, state(1))
    os.chown(path, 12, 34)
    path.chmod(0o664)
    save_state(path, state(2))
    status = path.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (12, 34, 0o664)

    def refuse(*arguments):
        raise PermissionError(errno.EPERM, "not yours")

    with monkeypatch.context() as patch:  # as anybody else: the group's permissions would be given to another group
        patch.setattr(os, "fchown", refuse)
        save_state(path, state(3))
    status = path.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (os.getuid(), os.getgid(), 0o644)


@pytest.mark.parametrize("letter", ["x", "é", "\udcff"])
def test_the_longest_names(tmp_path, letter, monkeypatch):
    width = len(os.fsencode(letter))
    name = letter * (255 // width) + "y" * (255 % width)
    save_state(tmp_path / name, state(1))

    def interrupted(descriptor, buffers):
        os.write(descriptor, b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            monkeypatch.setattr(atomic, "_write_all", interrupted)
            save_state(tmp_path / name, state(2))
        finally:
            os._exit(1)
    os.waitpid(child, 0)
    assert len(os.listdir(tmp_path)) == 2  # what the killed writer left
    save_state(tmp_path / name, state(3))
    assert os.listdir(tmp_path) == [name]
    assert number_of(tmp_path / name) == 3
    with pytest.raises(StateIOError, match="File name too long"):
        save_state(tmp_path / (name + "z"), state(4))


def test_links_are_refused_where_they_are_not_to_be_followed(tmp_path):
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent")
    for name in ("link", "nowhere"):
        with pytest.raises(StateIOError, match=f"{name}: it is a symbolic link"):
            write_atomically(tmp_path / name, [b"ours"], follow=False)
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert not (tmp_path / "absent").exists()
