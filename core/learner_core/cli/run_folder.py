"""The folder of one run.

::

    runs/cartpole/
        config.toml        every setting; `train --config` reads it
        run.json           the stop conditions and each session's start: time, backend, versions, seconds
        run.lock           held by the process that trains here, and says which that is
        metrics.csv        one row per iteration
        metrics.jsonl      the same rows, one JSON object per line
        tensorboard/       the same numbers as event files, where TensorBoard is installed
        curve.png          the learning curve, where matplotlib is installed
        checkpoints/       checkpoint-00000012.lcstate, ...: the newest ones, numbered by iteration

Refuses to start a new run in a folder that holds one, to train where another process does, and to write through
symbolic links in the folder (the folder itself may be one).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from learner_core.errors import ConfigError, StateError, StateIOError
from learner_core.state.atomic import write_atomically
from learner_core.state.folder import CheckpointFolder
from learner_core.state.lock import FolderLock, refuse_if_held
from learner_core.state.regular import check_regular, is_there, read_regular
from learner_core.state.tree import Plain, Tree

from .report import StopConditions

__all__ = ["RunFolder", "find_checkpoints"]

#: Bytes of run.json, at most.
_RUN_LIMIT = 1 << 24


class RunFolder:
    """Paths and small files of one run; see the module's text.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints: Path = path / "checkpoints"
        self.config_file: Path = path / "config.toml"
        self.csv_file: Path = path / "metrics.csv"
        self.jsonl_file: Path = path / "metrics.jsonl"
        self.tensorboard: Path = path / "tensorboard"
        self.curve_file: Path = path / "curve.png"
        self._run_file = path / "run.json"
        self._lock_file = path / "run.lock"

    @classmethod
    def new(cls, path: Path) -> RunFolder:
        """A new run's folder; :meth:`claim` makes it once the run is known to start.

        Raises:
            ConfigError: A run is there already, or no folder can be.
            StateError: A run is there, and another process trains it.
        """
        folder = cls(path)
        refuse_if_held(folder._lock_file)
        folder._refuse_run()
        there = next((level for level in (path, *path.parents) if level.exists()), None)
        if there is not None and not there.is_dir():
            raise ConfigError(f"{there} is a file, and a run needs a folder: choose another by --out.")
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open the folder of an earlier run.

        Raises:
            ConfigError: There is no run in it.
        """
        folder = cls(path)
        if not folder.holds_run:
            around = next((str(parent) for parent in path.parents[:2] if cls(parent).holds_run), None)
            remedy = f"Did you mean {around}?" if around else "Give the folder that --out named."
            raise ConfigError(f"{path} is not the folder of a run (it has no run.json). {remedy}")
        return folder

    def claim(self, *, new: bool) -> FolderLock:
        """Make the folder if need be, and take it for this process alone.

        Args:
            new: Whether no run may be there.

        Returns:
            The lock, to be released at the end.

        Raises:
            ConfigError: The folder cannot be made, or holds a run though `new`.
            StateError: Another process trains here, or something in the folder is not what a run writes.
        """
        self.check()
        if new:
            try:
                CheckpointFolder(self.checkpoints).make()
            except StateIOError as error:
                raise ConfigError(f"The run folder {self.path} cannot be made: {error}") from error
        lock = FolderLock(self._lock_file)
        try:
            if new:  # another one may have started, and ended, since it was looked for
                self._refuse_run()
            self.check()
        except BaseException:
            lock.release()
            raise
        return lock

    def _refuse_run(self) -> None:
        if self.holds_run:
            raise ConfigError(
                f"{self.path} holds a run already: go on with it by --resume {self.path}, or choose another folder by "
                "--out."
            )

    def check(self) -> None:
        """Refuse a folder in which writing would change what lies elsewhere.

        Raises:
            StateError: A part of it is a link, a pipe or the like.
        """
        for part in (self.checkpoints, self.tensorboard):
            check_regular(part, folder=True)
        files = (self.config_file, self._run_file, self._lock_file, self.csv_file, self.jsonl_file, self.curve_file)
        for part in files:
            check_regular(part)
        for one in CheckpointFolder(self.checkpoints).checkpoints():
            check_regular(one.path)

    @property
    def holds_run(self) -> bool:
        """Whether a run was started here."""
        return is_there(self._run_file)

    def read_info(self) -> dict[str, Plain]:
        """What :meth:`write_info` wrote: ``algorithm``, ``sessions`` and ``stop``, checked.

        Raises:
            ConfigError: It cannot be read, or says something else.
        """
        try:
            info = json.loads(read_regular(self._run_file, limit=_RUN_LIMIT, follow=False))
        except (StateError, ValueError, RecursionError) as error:
            raise ConfigError(f"{self._run_file} cannot be read ({_brief(error)}). {_REMEDY}") from error
        problem = _problem_of(info)
        if problem:
            raise ConfigError(f"{self._run_file}: {problem}. {_REMEDY}")
        checked: dict[str, Any] = info
        return checked

    def write_info(self, info: Tree) -> None:
        """Write ``run.json``."""
        self.write(self._run_file, json.dumps(info, indent=2) + "\n")

    def write(self, path: Path, content: str | Iterable[bytes]) -> None:
        """Replace one of the folder's files; never through a link.

        Args:
            path: The file.
            content: Text, or bytes in pieces.

        Raises:
            StateIOError: It cannot be written; the old one is intact.
        """
        write_atomically(path, [content.encode()] if isinstance(content, str) else content, follow=False)

    def checkpoint_path(self, iteration: int) -> Path:
        """Where the checkpoint after this iteration goes.

        Raises:
            StateError: The way there leads through a link, or something else than a file is there.
        """
        path = Path(CheckpointFolder(self.checkpoints).at(iteration).path)
        check_regular(self.checkpoints, folder=True)
        check_regular(path)
        return path

    def prune(self, iteration: int, keep: int) -> None:
        """After the checkpoint of this iteration: remove all but the newest ``keep``, of which two stay at least."""
        folder = CheckpointFolder(self.checkpoints, keep=max(keep, 2))
        folder.tidy(folder.at(iteration))


_REMEDY = "Its checkpoints may be intact: `learner-core evaluate CHECKPOINT` and `export` read them without it."


def _brief(error: BaseException) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _problem_of(info: object) -> str:
    """What is wrong with the content of a run.json, in words; empty if nothing is."""
    if not isinstance(info, dict):
        return f"expected an object with algorithm, sessions and stop, got {type(info).__name__}"
    if not isinstance(info.get("algorithm"), str):
        return f"algorithm: expected a name, got {type(info.get('algorithm')).__name__}"
    sessions = info.get("sessions", [])
    if not isinstance(sessions, list) or not all(isinstance(session, dict) for session in sessions):
        return "sessions: expected a list of objects"
    return StopConditions.problem_of(info.get("stop", {}))


def find_checkpoints(path: Path) -> list[Path]:
    """The checkpoints to try for a path the user gave, the best first.

    Args:
        path: A run folder, its ``checkpoints`` folder, or one checkpoint.

    Returns:
        Checkpoints, newest first; ``[path]`` where ``path`` is one itself or is none of these.
    """
    for folder in (path / "checkpoints", path):
        if is_there(folder, folder=True) and (found := CheckpointFolder(folder).checkpoints()):
            return [Path(one.path) for one in reversed(found)]
    return [] if is_there(path / "run.json") else [path]
