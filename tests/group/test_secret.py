"""Where a job's secret comes from, who may read it, and when there has to be one."""

from __future__ import annotations

import contextlib
import encodings.idna  # noqa: F401  # connecting needs it, and another user may not be able to read it
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import learner_core as lc
from learner_core.group.spmd.handshake import CHALLENGE_NBYTES, PROOF_NBYTES, Answer
from learner_core.group.spmd.secret import VARIABLE, find_secret
from learner_core.group.spmd.world import SpmdOptions, World, find_world

from support.strangers import OTHER, SECRET, First, connect, take


def world(rank: int = 0, *, one_machine: bool = True, launcher: str = "torchrun", port: int = 29500) -> World:
    job = f"{launcher}|2|127.0.0.1|{port}"
    return World(launcher, rank, 2, rank, 2, "127.0.0.1", port, False, one_machine, job)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment without a secret, with a folder for this user's files."""
    tmp_path.chmod(0o700)
    return {"XDG_RUNTIME_DIR": str(tmp_path)}


def test_on_one_machine_the_first_rank_makes_a_file_that_the_others_find(
    environment: dict[str, str], tmp_path: Path
) -> None:
    waiting = find_secret(environment, world(1))
    assert waiting.now() is None
    made = find_secret(environment, world(0))
    try:
        (path,) = (tmp_path / "learner-core").iterdir()
        assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
        assert made.now() == waiting.now() and len(made.now() or b"") == 64
        assert find_secret(environment, world(1, port=29501)).now() is None
        with pytest.raises(lc.LearnerGroupError, match=r"another job of yours meets at 127.0.0.1:29500 right now"):
            find_secret(environment, world(0))
        assert made.now() == waiting.now()
    finally:
        made.close()
        made.close()
    assert not path.exists() and waiting.now() is None
    again = find_secret(environment, world(0))
    assert again.now() == waiting.now() != made.now()
    again.close()
    waiting.close()


def test_what_a_killed_job_has_left_behind_is_written_anew_and_removed_in_time(
    environment: dict[str, str], tmp_path: Path
) -> None:
    made = find_secret(environment, world(0))
    (path,) = (tmp_path / "learner-core").iterdir()
    made.close()
    for name, age in ((path.name, 0), ("secret-old", 7200), ("secret-young", 0)):
        left = path.with_name(name)
        left.write_text("0" * 64 + "\n")
        left.chmod(0o600)
        os.utime(left, (time.time() - age, time.time() - age))
    made, waiting = find_secret(environment, world(0)), find_secret(environment, world(1))
    assert made.now() == waiting.now() != b"0" * 64
    assert sorted(file.name for file in path.parent.iterdir()) == sorted([path.name, "secret-young"])
    made.close()
    waiting.close()


@pytest.mark.parametrize("what", ["open folder", "open file", "symbolic link", "folder elsewhere", "not a file"])
def test_a_secret_that_others_may_reach_is_refused(environment: dict[str, str], tmp_path: Path, what: str) -> None:
    made = find_secret(environment, world(0))
    folder = tmp_path / "learner-core"
    (path,) = folder.iterdir()
    made.close()
    if what == "open folder":
        folder.chmod(0o711)
    elif what == "folder elsewhere":
        folder.rename(tmp_path / "elsewhere")
        folder.symlink_to(tmp_path / "elsewhere")
    elif what == "symbolic link":
        (tmp_path / "target").write_text("0" * 64 + "\n")
        path.symlink_to(tmp_path / "target")
    elif what == "not a file":
        path.mkdir(mode=0o700)
    else:
        path.write_text("0" * 64 + "\n")
        path.chmod(0o640)
    for rank in (0, 1):
        with pytest.raises(lc.LearnerGroupError, match=r"secret"):
            find_secret(environment, world(rank)).now()
    if what == "symbolic link":
        assert (tmp_path / "target").read_text() == "0" * 64 + "\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_another_user_can_neither_read_the_secret_nor_put_one_in_its_place(
    environment: dict[str, str], tmp_path: Path
) -> None:
    made = find_secret(environment, world(0))
    (path,) = (tmp_path / "learner-core").iterdir()
    for above in list(tmp_path.parents)[:-1]:
        if above.stat().st_uid == os.geteuid() and above != Path("/tmp"):
            above.chmod(above.stat().st_mode | 0o055)
    tmp_path.chmod(0o755)  # even where the folder above is open

    def attempts(first: First) -> int:
        done = 0
        for attempt in (
            lambda: path.read_bytes(),
            lambda: path.unlink(),
            lambda: os.listdir(path.parent),
            lambda: (path.parent / "secret-x").touch(),
            lambda: path.parent.rename(tmp_path / "other"),
        ):
            with contextlib.suppress(PermissionError):
                attempt()
                done += 1
        with contextlib.suppress(OSError):
            stream = connect(first)
            stream.sendall(Answer(OTHER, 1, take(stream, CHALLENGE_NBYTES)).message)
            done += any(take(stream, PROOF_NBYTES))
        return done

    with contextlib.closing(First()) as first:
        assert as_nobody(lambda: attempts(first)) == 0
    assert path.exists()
    made.close()
    # A folder that another user has made first is not used.
    os.chown(path.parent, 65534, 65534)
    for rank in (0, 1):
        with pytest.raises(lc.LearnerGroupError, match="belongs to user 65534"):
            find_secret(environment, world(rank)).now()


def as_nobody(function: Callable[[], int]) -> int:
    """The function's answer (0 to 99) in a process of another user."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            code = function()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("launcher", ["horovodrun", "torchrun", "Open MPI", "MPICH or Intel MPI", "SLURM"])
def test_several_machines_without_a_secret_are_refused_with_the_command(
    environment: dict[str, str], launcher: str
) -> None:
    for rank in (0, 1):
        with pytest.raises(lc.LearnerGroupError, match=r"secrets\.token_hex") as refused:
            find_secret(environment, world(rank, one_machine=False, launcher=launcher))
        assert launcher in str(refused.value) and VARIABLE in str(refused.value)
        given = find_secret({**environment, VARIABLE: SECRET.decode()}, world(rank, one_machine=False))
        assert given.now() == SECRET


@pytest.mark.parametrize("secret", ["short", "a" * 64, "ab" * 32, "0123456789abcdef" + "0" * 15])
def test_a_weak_secret_is_refused_and_not_shown(environment: dict[str, str], secret: str) -> None:
    with pytest.raises(lc.LearnerGroupError, match="at least 32 characters, 8 of them different") as refused:
        find_secret({**environment, VARIABLE: secret}, world())
    assert secret not in str(refused.value)


def test_a_secret_in_a_file_of_the_users_own(environment: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "mine"
    there = {**environment, VARIABLE: f"file:{path}"}
    with pytest.raises(lc.LearnerGroupError, match="umask 077"):
        find_secret(there, world())
    path.write_bytes(SECRET + b"\n")
    path.chmod(0o644)
    with pytest.raises(lc.LearnerGroupError, match=r"is open to others \(mode 644\)"):
        find_secret(there, world())
    path.chmod(0o600)
    assert find_secret(there, world(one_machine=False)).now() == SECRET
    path.write_text("too short")
    with pytest.raises(lc.LearnerGroupError, match="at least 32 characters"):
        find_secret(there, world())


def test_horovodrun_shows_what_is_in_the_environment(environment: dict[str, str], tmp_path: Path) -> None:
    given = {**environment, VARIABLE: SECRET.decode()}
    with pytest.warns(RuntimeWarning, match="writes LEARNER_CORE_SECRET into a command line.*file:"):
        assert find_secret(given, world(0, launcher="horovodrun")).now() == SECRET
    assert find_secret(given, world(1, launcher="horovodrun")).now() == SECRET  # said once, by rank 0
    path = tmp_path / "mine"
    path.write_bytes(SECRET)
    path.chmod(0o600)
    assert find_secret({VARIABLE: f"file:{path}"}, world(0, launcher="horovodrun")).now() == SECRET


BY_HAND = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "one_machine"),
    [
        ({**BY_HAND, "MASTER_ADDR": "127.0.0.1"}, True),
        ({**BY_HAND, "MASTER_ADDR": "localhost"}, True),
        ({**BY_HAND, "MASTER_ADDR": "10.0.0.1"}, False),
        ({**BY_HAND, "MASTER_ADDR": "127.evil.example"}, False),
        ({**BY_HAND, "MASTER_ADDR": "10.0.0.1", "LOCAL_WORLD_SIZE": "2"}, True),
        ({**BY_HAND, "MASTER_ADDR": "10.0.0.1", "LOCAL_WORLD_SIZE": "1"}, False),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_NNODES": "1", **BY_HAND, "MASTER_ADDR": "10.0.0.1"}, False),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_NNODES": "1"}, True),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_NNODES": "2", "SLURM_STEP_NUM_NODES": "1"}, True),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_NNODES": "2"}, False),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, False),
    ],
)
def test_whether_all_ranks_are_on_one_machine(environment: dict[str, str], one_machine: bool) -> None:
    options = SpmdOptions(rendezvous="" if "MASTER_ADDR" in environment else "10.0.0.1:5")
    assert find_world(environment, options).one_machine == one_machine
