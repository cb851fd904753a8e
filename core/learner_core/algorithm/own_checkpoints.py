"""The checkpoints that ``train()`` saves by itself: ``checkpointing(every=..., keep=..., folder=...)``.

Needs an Algorithm. Refuses a folder that holds later checkpoints, which are of another run or of what is being done
again; says when ``every`` or ``keep`` has no folder to act on. Where somebody else saves, the command line for one,
``saves_itself`` is False.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from ..errors import ConfigError
from ..state.atomic import PathLike
from ..state.folder import CheckpointFolder

if TYPE_CHECKING:
    from ..config.algorithm_settings import AlgorithmSettings

__all__ = ["OwnCheckpoints", "folder_of"]

T = TypeVar("T")


class OwnCheckpoints:
    """The part of an Algorithm that saves while it trains.

    Attributes:
        saves_itself: False: ``train()`` leaves saving to whoever calls it.
    """

    config: AlgorithmSettings
    iteration: int
    saves_itself: bool = True
    #: The folder that has been looked into.
    _checked_folder: str | None = None
    _has_warned: bool = False

    def on_first(self, function: Callable[[], T]) -> T:
        """``function()`` of rank 0, on every rank."""
        raise NotImplementedError

    def save(self, path: PathLike) -> None:
        """Write a checkpoint."""
        raise NotImplementedError

    def check_checkpoints(self) -> None:
        """Before an iteration: refuse a folder that this run must not save into, and say that there is none.

        Raises:
            ConfigError: it holds later checkpoints than this run has.
        """
        config = self.config
        if not self.saves_itself:
            return
        if config.checkpoint_folder is None:
            self._say_that_there_is_none()
        elif config.checkpoint_folder != self._checked_folder:
            folder = CheckpointFolder(config.checkpoint_folder, keep=config.checkpoint_keep)
            later = self.on_first(lambda: [one.path for one in folder.checkpoints() if one.number > self.iteration])
            if later:
                raise ConfigError(
                    f"checkpointing(folder={config.checkpoint_folder!r}): {later[-1]} is of a later iteration than "
                    f"this run, which is at {self.iteration}: go on with it by Algorithm.from_checkpoint, or choose "
                    "another folder"
                )
            self._checked_folder = config.checkpoint_folder

    def save_when_due(self) -> None:
        """After an iteration: save, if it is time, and remove what is older than the newest ``keep``."""
        config = self.config
        every = config.checkpoint_every
        if not self.saves_itself or config.checkpoint_folder is None or every is None or self.iteration % every:
            return
        folder = CheckpointFolder(config.checkpoint_folder, keep=config.checkpoint_keep)
        saved = folder.at(self.iteration)
        self.on_first(folder.make)
        self.save(saved.path)
        self.on_first(lambda: folder.tidy(saved))

    def _say_that_there_is_none(self) -> None:
        config = self.config
        names = {"every": "checkpoint_every", "keep": "checkpoint_keep"}
        given = [
            f"{keyword}={getattr(config, name)!r}"
            for keyword, name in names.items()
            if getattr(config, name) != config.settings()[name].default
        ]
        if given and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"checkpointing({', '.join(given)}): train() saves nothing without a folder: add folder=..., or call "
                "algo.save(path)",
                UserWarning,
                stacklevel=4,
            )


def folder_of(config: AlgorithmSettings, path: PathLike) -> str | None:
    """The folder to save into of a run that goes on from a checkpoint: the file's own choice only if it lies there."""
    folder: str | None = config.checkpoint_folder
    if folder is None or os.path.realpath(folder) != os.path.realpath(os.path.dirname(os.path.abspath(path))):
        return None
    return folder
