"""A folder of numbered checkpoints, of which at least two are kept and the newest intact one is found by looking.

There is no "latest" pointer: a pointer can be wrong. Refuses to keep fewer than two, because the newest may be damaged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re

from ..errors import ConfigError, FormatError, StateError, StateIOError
from .atomic import PathLike, sweep_temporaries, sync_folder
from .files import damaged_payloads, load_state, read_layout, save_state
from .regular import check_regular
from .tree import Plain, Tree

__all__ = ["Checkpoint", "CheckpointFolder"]

_NAME = re.compile(r"checkpoint-(\d{8,18})\.lcstate")


@dataclasses.dataclass(frozen=True, slots=True)
class Checkpoint:
    """One file of a checkpoint folder."""

    number: int
    path: str


class CheckpointFolder:
    """Numbered state files ``checkpoint-00000012.lcstate`` in one folder.

    Args:
        path: The folder; made, with its parents, at the first save.
        keep: How many checkpoints to keep, at least two. Older ones are removed after a successful save.

    Raises:
        ConfigError: `keep` is below two.
    """

    def __init__(self, path: PathLike, *, keep: int = 2) -> None:
        if keep < 2:
            raise ConfigError(f"keep={keep}: at least two checkpoints are kept, for the newest may turn out damaged")
        self.path: str = os.fspath(path)
        self.keep = keep

    def checkpoints(self) -> list[Checkpoint]:
        """The checkpoints there are, by ascending number, unverified; none if there is no folder.

        Raises:
            StateIOError: the folder cannot be read.
        """
        try:
            entries = os.listdir(self.path)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StateIOError.of(error, f"cannot read {self.path}") from error
        matches = [match for match in map(_NAME.fullmatch, entries) if match]
        found = [Checkpoint(int(match[1]), os.path.join(self.path, match[0])) for match in matches]
        return sorted(found, key=lambda one: one.number)

    def save(self, number: int, tree: Plain, *, info: Tree | None = None) -> Checkpoint:
        """Write a checkpoint, then remove what is older than the newest `keep`.

        Args:
            number: Its number, not negative: an update or iteration count. An existing file of it is replaced.
            tree: The state; see `save_state`.
            info: Provenance; see `save_state`.

        Returns:
            The checkpoint.

        Raises:
            StateError: the tree or the number is not acceptable, or a symbolic link is there, which leads out of the
                folder.
            StateIOError: the operating system refused a step; the other checkpoints are untouched.
        """
        saved = self.at(number)
        self.make()
        check_regular(saved.path)
        save_state(saved.path, tree, info=info)
        self.tidy(saved)
        return saved

    def at(self, number: int) -> Checkpoint:
        """The checkpoint of a number, whether it exists or not: for those who write the file themselves.

        Args:
            number: Its number, not negative.

        Returns:
            The checkpoint; write it after `make`, and call `tidy` with it then.

        Raises:
            StateError: the number is out of bounds.
        """
        if not 0 <= number < 10**18:
            raise StateError(f"number={number}: a checkpoint's number lies from 0 to 10^18")
        return Checkpoint(number, os.path.join(self.path, f"checkpoint-{number:08d}.lcstate"))

    def newest_valid(self) -> Checkpoint | None:
        """The newest checkpoint of which every byte is as it was written, or None."""
        for checkpoint in reversed(self.checkpoints()):
            with contextlib.suppress(StateError):
                if not damaged_payloads(checkpoint.path)[1]:
                    return checkpoint
        return None

    def load_newest(self) -> tuple[Checkpoint, Plain]:
        """Load the newest intact checkpoint; damaged ones are passed over.

        Returns:
            The checkpoint and its tree.

        Raises:
            StateError: there is none; the message says what is wrong with each.
        """
        problems: list[str] = []
        for checkpoint in reversed(self.checkpoints()):
            try:
                return checkpoint, load_state(checkpoint.path)
            except StateError as error:
                problems.append(str(error))
        found = "; ".join(problems) if problems else "it holds none"
        raise StateError(f"no intact checkpoint in {self.path}: {found}")

    def make(self) -> None:
        """Make the folder if need be, each new level known to the disk before the next.

        Raises:
            StateIOError: it cannot be made.
        """
        missing = []
        path = os.path.abspath(self.path)
        while not os.path.isdir(path):
            missing.append(path)
            path = os.path.dirname(path)
        try:
            for level in reversed(missing):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(level)
                sync_folder(os.path.dirname(level))
        except OSError as error:
            raise StateIOError.of(error, f"cannot make the folder {self.path}") from error
        except ValueError as error:  # a zero byte
            raise StateIOError(f"cannot make the folder {self.path!r}: {error}") from error

    def tidy(self, saved: Checkpoint) -> None:
        """Remove checkpoints older than the newest `keep` that look intact, and what killed writers have left here.

        A failure to remove is no failure.

        Args:
            saved: The checkpoint that has just been written; it is kept whatever its number.
        """
        sweep_temporaries(self.path, is_target=lambda name: _NAME.fullmatch(name) is not None)
        kept = 0
        for checkpoint in reversed(self.checkpoints()):
            if kept >= self.keep:
                if checkpoint != saved:  # a number lower than what is there, written on purpose: keep it
                    with contextlib.suppress(OSError):
                        os.unlink(checkpoint.path)
                continue
            try:
                if checkpoint != saved:
                    read_layout(
                        checkpoint.path
                    )  # size, header and manifest; reading all of it would cost too much here
                kept += 1
            except FormatError:
                pass  # damaged: it does not count
