"""``learner-core record``: play episodes with a checkpoint and keep them in a file."""

from __future__ import annotations

import argparse
from pathlib import Path

from learner_core.errors import ConfigError
from learner_core.state.atomic import check_target

from .console import number, parse_count, parse_file, table
from .evaluate import add_limit, add_opening, open_checkpoint
from .quiet import without_startup_messages

__all__ = ["run"]


def run(arguments: list[str]) -> int:
    """Run the subcommand; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="learner-core record",
        description="Play whole episodes with a checkpoint and write them to a file that offline algorithms (bc) "
        "learn from: `learner-core train bc --env ENV --set input_path=FILE`.",
    )
    parser.add_argument(
        "path", type=Path, metavar="PATH", help="a run's folder (its newest checkpoint) or a checkpoint"
    )
    parser.add_argument("--out", type=parse_file, required=True, metavar="FILE", help="the recording to write")
    parser.add_argument("--episodes", type=parse_count, default=20, metavar="N", help="default 20")
    parser.add_argument("--explore", action="store_true", help="sample actions instead of taking the most likely ones")
    add_limit(parser)
    add_opening(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace FILE where there is one")
    parser.add_argument("--debug", action="store_true", help="a traceback when something is refused")
    given = parser.parse_args(arguments)
    out: Path = given.out
    if out.exists() and not given.overwrite:
        raise ConfigError(f"{out} exists already: choose another --out, or replace it with --overwrite.")
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}.")
    check_target(out)  # before minutes of play
    from learner_core.algorithm.recording import record

    with without_startup_messages():
        path, algorithm = open_checkpoint(given.path, given)
    try:
        summary = record(
            algorithm,
            str(out),
            num_episodes=given.episodes,
            explore=given.explore,
            max_episode_steps=given.max_episode_steps,
        )
    finally:
        algorithm.stop()
    rows = [("checkpoint", path), ("recording", out)]
    print(table([*rows, *((name, number(v) if isinstance(v, float) else v) for name, v in summary.items())]))
    return 0
