"""``learner-core export``: a checkpoint's policy in another format."""

from __future__ import annotations

import argparse
from pathlib import Path

import learner_core as lc
from learner_core.errors import ConfigError
from learner_core.exporting.formats import default_suffix, export_formats

from .console import add_trust, parse_file
from .quiet import without_startup_messages

__all__ = ["run"]


def run(arguments: list[str]) -> int:
    """Run the subcommand; returns the exit code."""
    formats = export_formats()
    parser = argparse.ArgumentParser(
        prog="learner-core export",
        description="Write a checkpoint's policy in another format. Weights are under their canonical names "
        "(docs/interop.md).",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a checkpoint, or a run's folder")
    parser.add_argument("--to", choices=list(formats), help="the format; by default what the suffix of --out says")
    parser.add_argument(
        "--out", type=parse_file, metavar="PATH", help="the file; by default named after the checkpoint"
    )
    parser.add_argument("--module", metavar="ID", help="which of several modules")
    add_trust(parser)
    parser.add_argument("--debug", action="store_true", help="a traceback when something is refused")
    given = parser.parse_args(arguments)
    if given.to is None and given.out is None:
        raise ConfigError(f"say the format by --to: {', '.join(formats)}")
    out = given.out or given.checkpoint.with_suffix(default_suffix(formats[given.to]))
    with without_startup_messages():
        written = lc.export(given.checkpoint, out, given.to, module_id=given.module, import_modules=given.trust)
    print(f"{written}: {written.stat().st_size} bytes")
    return 0
