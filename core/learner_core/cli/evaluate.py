"""``learner-core evaluate``: play episodes with a checkpoint."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import learner_core as lc
from learner_core.errors import ConfigError, StateError
from learner_core.plugins.discovery import load
from learner_core.state.atomic import check_target, write_atomically

from .console import add_override_spaces, add_trust, number, parse_count, parse_file, table
from .quiet import without_startup_messages
from .report import flatten
from .run_folder import find_checkpoints

if TYPE_CHECKING:
    from learner_core.algorithm.algorithm import Algorithm

__all__ = ["add_limit", "add_opening", "open_checkpoint", "run"]


def run(arguments: list[str]) -> int:
    """Run the subcommand; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="learner-core evaluate", description="Play episodes with a checkpoint and report their returns."
    )
    parser.add_argument(
        "path", type=Path, metavar="PATH", help="a run's folder (its newest checkpoint) or a checkpoint"
    )
    parser.add_argument("--episodes", type=parse_count, default=100, metavar="N", help="default 100")
    add_opening(parser)
    add_limit(parser)
    parser.add_argument("--min-return", type=float, metavar="R", help="exit code 1 unless the mean return reaches R")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--out", type=parse_file, metavar="FILE", help="write that JSON object to a file, too")
    parser.add_argument("--debug", action="store_true", help="a traceback when something is refused")
    given = parser.parse_args(arguments)
    if given.out is not None:
        check_target(given.out)  # before minutes of play
    with without_startup_messages():
        path, algorithm = open_checkpoint(given.path, given)
    try:
        # Named only where it is asked for: an algorithm of a third party may have an evaluate() without it.
        limit = {} if given.max_episode_steps is None else {"max_episode_steps": given.max_episode_steps}
        result = algorithm.evaluate(given.episodes, **limit)
    finally:
        algorithm.stop()
    mean = float(result["episode_return_mean"])
    as_json = json.dumps({"checkpoint": str(path), **flatten(result)})
    if given.out is not None:
        write_atomically(given.out, [(as_json + "\n").encode()])
    if given.json:
        print(as_json)
    else:
        rows = [("checkpoint", path), *((name, _shown(value)) for name, value in flatten(result).items())]
        print(table(rows))
    return 1 if given.min_return is not None and not mean >= given.min_return else 0


def add_limit(parser: argparse.ArgumentParser) -> None:
    """Add the bound of an episode's steps."""
    parser.add_argument(
        "--max-episode-steps",
        type=parse_count,
        metavar="N",
        help="cut longer episodes and count them as unfinished (default: the run's setting, else 100,000 steps)",
    )


def add_opening(parser: argparse.ArgumentParser) -> None:
    """Add what :func:`open_checkpoint` is told."""
    parser.add_argument("--backend", metavar="NAME", help="another backend than the one that saved it")
    parser.add_argument(
        "--env", metavar="NAME", help="another environment than the saved one; a function is in no file"
    )
    add_override_spaces(parser)
    add_trust(parser)


def open_checkpoint(path: Path, given: argparse.Namespace) -> tuple[Path, Algorithm]:
    """Open the newest checkpoint of a path that can be read.

    Args:
        path: A run's folder, or a checkpoint.
        given: ``backend``, ``env`` and ``trust``, as :func:`add_opening` has them.

    Returns:
        The checkpoint's path, and its Algorithm.

    Raises:
        ConfigError, StateError: There is none that can be read.
    """
    if not path.exists():
        raise ConfigError(f"There is no {path}.")
    checkpoints = find_checkpoints(path)
    if not checkpoints:
        raise StateError(f"The run in {path} was stopped before its first checkpoint.")
    if checkpoints == [path] and path.is_dir():
        raise ConfigError(f"{path} holds neither a run (run.json) nor a checkpoint (checkpoint-*.lcstate).")
    # The runner of this process plays; others would only be started, and learners are not asked to learn.
    options: dict[str, Any] = {"num_env_runners": 0, "num_learners": 0, "launcher": "local", "launcher_options": {}}
    options["import_modules"] = given.trust
    options["override_spaces"] = given.override_spaces
    if given.backend is not None:
        options["framework"] = given.backend
    if given.env is not None:
        options["env"] = given.env
    kind: type[lc.Algorithm] = lc.Algorithm
    if given.backend is not None and not getattr(load("learner_core.backends", given.backend), "trains", True):
        from learner_core.algorithm.player import Player  # without learners

        kind = Player
    for checkpoint in checkpoints[:-1]:
        try:
            return checkpoint, kind.from_checkpoint(str(checkpoint), **options)
        except StateError as error:
            print(f"{checkpoint.name} cannot be used, trying the one before: {error}")
    return checkpoints[-1], kind.from_checkpoint(str(checkpoints[-1]), **options)


def _shown(value: object) -> str:
    return number(value) if isinstance(value, float) else str(value)
