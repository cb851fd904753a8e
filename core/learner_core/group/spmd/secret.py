"""The secret of a job of ``launcher="spmd"``: what a rank must know before anything else that it sends is read.

It is in the environment (``LEARNER_CORE_SECRET``: the secret itself, or ``file:PATH``), or, where all ranks are on one
machine, in a file that rank 0 makes and that this user alone may read. Refuses several machines without one, a secret
that is short, and files and folders that others may read or change. The secret appears in no message.
docs/decisions/trust.md says why.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from learner_core.errors import LearnerGroupError

from ..private_files import check_private, open_private, user_folder
from .world import World

__all__ = ["MAKE_SECRET", "VARIABLE", "Secret", "find_secret"]

VARIABLE = "LEARNER_CORE_SECRET"
MAKE_SECRET = f'export {VARIABLE}=$(python -c "import secrets; print(secrets.token_hex(32))")'
"""The command that makes a secret."""
_MAKE_FILE = "(umask 077; python -c 'import secrets; print(secrets.token_hex(32))' > ~/.learner-core-secret)"
#: How each launcher brings it to the ranks on other machines.
_PASS_ON = {
    "horovodrun": (
        f"{_MAKE_FILE} on every machine (the same file), and export {VARIABLE}=file:$HOME/.learner-core-secret: "
        "horovodrun writes the environment into a command line, which all users can read"
    ),
    "torchrun": f"{MAKE_SECRET}, and the same value on every machine before torchrun starts there",
    "Open MPI": f"{MAKE_SECRET}, and `mpirun -x {VARIABLE} ...`",
    "MPICH or Intel MPI": f"{MAKE_SECRET}, and `mpirun -genvlist {VARIABLE},... ...` unless it passes on everything",
    "SLURM": f"{MAKE_SECRET} before srun, which passes the environment on",
}

_MIN_LENGTH, _MIN_DISTINCT = 32, 8
_MAX_NBYTES = 4096
_OF_OURS = re.compile(rb"[0-9a-f]{64}\n")
#: Seconds after which a file that nobody holds is one that a killed job has left behind.
_STALE_S = 3600.0


class Secret(Protocol):
    """Where the secret is.

    Attributes:
        source: in words, for messages.
        fixed: whether it stays what it is; what is in a file may be of an earlier job, and yet be replaced.
        on_this_machine: whether all ranks that can have it see the files of this machine.
    """

    source: str
    fixed: bool
    on_this_machine: bool

    def now(self) -> bytes | None:
        """The secret; ``None``: rank 0 has not made it yet.

        Raises:
            LearnerGroupError: its file or folder is not this user's alone.
        """

    def close(self) -> None:
        """The ranks have met; may be called twice."""


def find_secret(environment: Mapping[str, str], world: World) -> Secret:
    """The secret of this job; on rank 0, made where there is none and the job runs on one machine.

    Args:
        environment: ``os.environ``.
        world: this rank's place.

    Raises:
        LearnerGroupError: there is none and there are several machines (the text has the command); it is weak; its file
            may be read by others; another job of this user meets at the same place.
    """
    given = environment.get(VARIABLE, "").strip()
    if given.startswith("file:"):
        return _Given(_read_file(Path(given[5:]).expanduser()), f"the file of {VARIABLE}")
    if given:
        if world.launcher == "horovodrun" and world.rank == 0:
            warnings.warn(
                f"horovodrun writes {VARIABLE} into a command line, which every user of the machine can read: "
                f"{_PASS_ON['horovodrun'].partition(': ')[0]}",
                RuntimeWarning,
                stacklevel=2,
            )
        return _Given(given.encode(), VARIABLE)
    if not world.one_machine:
        raise LearnerGroupError(
            f'launcher="spmd" under {world.launcher}: these {world.size} ranks may be on several machines, and need a '
            f"secret in common: {_PASS_ON[world.launcher]}. If all are on one machine, set MASTER_ADDR=127.0.0.1 "
            "(docs/deployment.md, Trust)"
        )
    name = f"secret-{hashlib.blake2b(world.job.encode(), digest_size=12).hexdigest()}"
    path = _private_folder(environment)
    folder = open_private(path)
    if world.rank == 0:
        return _Made(folder, path, name, where=f"{world.address}:{world.port}")
    return _Awaited(folder, path, name)


class _Given:
    """A secret that its user has made."""

    fixed = True
    on_this_machine = False

    def __init__(self, secret: bytes, source: str) -> None:
        if len(secret) < _MIN_LENGTH or len(set(secret)) < _MIN_DISTINCT:
            raise LearnerGroupError(
                f"{source}: a secret has at least {_MIN_LENGTH} characters, {_MIN_DISTINCT} of them different, and is "
                f"not thought up: {MAKE_SECRET}"
            )
        self.source = source
        self._secret = secret

    def now(self) -> bytes:
        return self._secret

    def close(self) -> None:
        """Nothing is held."""


class _Made:
    """The file of rank 0, locked while the ranks meet, then gone.

    1. Open or create it, and lock it: one that is locked is that of a job that meets here now.
    2. The name must still be that of what was locked: who held it before may have removed it meanwhile.
    3. Write a new secret: what was there is of a job that was killed.
    """

    fixed = True
    on_this_machine = True

    def __init__(self, folder: int, path: Path, name: str, *, where: str) -> None:
        self.source = str(path / name)
        self._folder, self._name = folder, name
        self._file: int | None = None
        try:
            self._file = self._lock(where)
            _remove_stale(folder, keep=name)
            self._secret = secrets.token_hex(32).encode()
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, self._secret + b"\n", 0)
        except BaseException as error:
            if self._file is None:
                os.close(folder)
            else:
                self.close()
            if isinstance(error, OSError):
                raise LearnerGroupError(f"the file for the job's secret, {self.source}: {error}") from error
            raise

    def _lock(self, where: str) -> int:
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            file = os.open(self._name, flags, 0o600, dir_fd=self._folder)
            try:
                check_private(os.fstat(file), self.source)
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_named(file, self._name, self._folder):
                    return file
            except BlockingIOError as error:
                os.close(file)
                raise LearnerGroupError(
                    f"another job of yours meets at {where} right now: choose another MASTER_PORT, or give "
                    "launcher_options={'rendezvous': 'HOST:PORT'}"
                ) from error
            except BaseException:
                os.close(file)
                raise
            os.close(file)

    def now(self) -> bytes:
        return self._secret

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._name, dir_fd=self._folder)
            os.close(self._file)
            os.close(self._folder)
            self._file = None


class _Awaited:
    """The file as the other ranks see it."""

    fixed = False
    on_this_machine = True

    def __init__(self, folder: int, path: Path, name: str) -> None:
        self.source = str(path / name)
        self._name = name
        self._folder: int | None = folder

    def now(self) -> bytes | None:
        assert self._folder is not None
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            file = os.open(self._name, flags, dir_fd=self._folder)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise LearnerGroupError(f"the file with the job's secret, {self.source}: {error}") from error
        try:
            check_private(os.fstat(file), self.source)
            found = os.pread(file, _MAX_NBYTES, 0)
        finally:
            os.close(file)
        return found.strip() if _OF_OURS.fullmatch(found) else None

    def close(self) -> None:
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None


# ---- files that are this user's alone ------------------------------------------------------------------------------


def _private_folder(environment: Mapping[str, str]) -> Path:
    """Where such files lie: in what the system gives a user for them, else beside all users' temporary files."""
    runtime = environment.get("XDG_RUNTIME_DIR", "")
    if runtime and os.path.isabs(runtime):
        with contextlib.suppress(OSError):
            found = os.stat(runtime)
            if found.st_uid == os.geteuid() and not found.st_mode & 0o022 and os.access(runtime, os.W_OK):
                return Path(runtime) / "learner-core"
    return user_folder()


def _read_file(path: Path) -> bytes:
    """The secret in a user's own file."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise LearnerGroupError(f"{VARIABLE}=file:{path}: {error.strerror}; {_MAKE_FILE} makes one") from error
    try:
        check_private(os.fstat(file), path)
        return os.read(file, _MAX_NBYTES).strip()
    finally:
        os.close(file)


def _is_named(file: int, name: str, folder: int) -> bool:
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(file))


def _remove_stale(folder: int, *, keep: str) -> None:
    """Remove what killed jobs have left behind: nobody holds it, and it is old."""
    for name in os.listdir(folder):
        if name == keep or not name.startswith("secret-"):
            continue
        with contextlib.suppress(OSError):
            file = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - os.fstat(file).st_mtime > _STALE_S:
                    os.unlink(name, dir_fd=folder)
            finally:
                os.close(file)
