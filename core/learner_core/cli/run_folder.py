"""The folder of one run.

::

    runs/cartpole/
        config.toml        every setting; `train --config` reads it
        run.json           the stop conditions and each session's start: time, backend, versions, seconds
        metrics.csv        one row per iteration
        metrics.jsonl      the same rows, one JSON object per line
        tensorboard/       the same numbers as event files, where TensorBoard is installed
        curve.png          the learning curve, where matplotlib is installed
        checkpoints/       checkpoint-00000012.lcstate, ...: the newest ones, numbered by iteration

Refuses to start a new run in a folder that holds one.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from learner_core.errors import ConfigError, StateIOError
from learner_core.state.folder import CheckpointFolder

__all__ = ["RunFolder", "find_checkpoints", "write_text_atomically"]


class RunFolder:
    """Paths and small files of one run; see the module's text.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.config_file = path / "config.toml"
        self.csv_file = path / "metrics.csv"
        self.jsonl_file = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        self.curve_file = path / "curve.png"
        self._run_file = path / "run.json"

    @classmethod
    def new(cls, path: Path) -> RunFolder:
        """A new run's folder; :meth:`make` makes it once the run is known to start.

        Raises:
            ConfigError: A run is there already.
        """
        folder = cls(path)
        if folder.holds_run:
            raise ConfigError(
                f"{path} holds a run already: go on with it by --resume {path}, or choose another folder by --out."
            )
        return folder

    def make(self) -> None:
        """Make the folder on disk.

        Raises:
            ConfigError: It cannot be made.
        """
        try:
            CheckpointFolder(self.checkpoints).make()
        except StateIOError as error:
            raise ConfigError(f"The run folder {self.path} cannot be made: {error}") from error

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

    @property
    def holds_run(self) -> bool:
        """Whether a run was started here."""
        return self._run_file.is_file()

    def read_info(self) -> dict[str, Any]:
        """What :meth:`write_info` wrote."""
        try:
            info: dict[str, Any] = json.loads(self._run_file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self._run_file} cannot be read ({error}).") from error
        return info

    def write_info(self, info: dict[str, Any]) -> None:
        """Write ``run.json``."""
        write_text_atomically(self._run_file, json.dumps(info, indent=2) + "\n")

    def checkpoint_path(self, iteration: int) -> Path:
        """Where the checkpoint after this iteration goes."""
        return Path(CheckpointFolder(self.checkpoints).at(iteration).path)

    def prune(self, iteration: int, keep: int) -> None:
        """After the checkpoint of this iteration: remove all but the newest ``keep``, of which two stay at least."""
        folder = CheckpointFolder(self.checkpoints, keep=max(keep, 2))
        folder.tidy(folder.at(iteration))


def find_checkpoints(path: Path) -> list[Path]:
    """The checkpoints to try for a path the user gave, the best first.

    Args:
        path: A run folder, its ``checkpoints`` folder, or one checkpoint.

    Returns:
        Checkpoints, newest first; ``[path]`` where ``path`` is one itself or is none of these.
    """
    for folder in (path / "checkpoints", path):
        if folder.is_dir() and (found := CheckpointFolder(folder).checkpoints()):
            return [Path(one.path) for one in reversed(found)]
    return [path] if not (path / "run.json").is_file() else []


def write_text_atomically(path: Path, text: str) -> None:
    """Replace a file in one step, so that a reader never sees half of it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as stream:
            stream.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
