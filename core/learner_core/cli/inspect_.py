"""``learner-core inspect``: what a state file holds, and where two differ. It reads; it never executes."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from learner_core.errors import FormatError, StateError, did_you_mean
from learner_core.state.files import load_state, read_layout
from learner_core.state.inspect import FileReport, inspect_file, render, render_differences
from learner_core.state.tree import Plain, diff, flatten

from .console import number, table
from .run_folder import find_checkpoints

__all__ = ["run"]


def run(arguments: list[str]) -> int:
    """Run the subcommand; returns the exit code: 1 where a file is damaged or, with --diff, where two differ."""
    parser = argparse.ArgumentParser(
        prog="learner-core inspect",
        description="Show what a state file, a checkpoint or a run's newest checkpoint holds. Checksums are verified.",
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a file or folder; two with --diff")
    parser.add_argument("--diff", action="store_true", help="show where two states differ, to the bit")
    parser.add_argument(
        "--only", metavar="PREFIX", default="", help="only paths that begin so at some level: rl_module"
    )
    parser.add_argument("--values", action="store_true", help="mean, deviation and range of every array")
    parser.add_argument("--json", action="store_true", help="one JSON object per file")
    parser.add_argument("--debug", action="store_true", help="a traceback when something is refused")
    given = parser.parse_args(arguments)
    if len(given.paths) != (2 if given.diff else 1):
        parser.error("--diff takes two paths" if given.diff else "one path; two with --diff")
    if given.diff:
        return _diff(*given.paths, only=given.only, as_json=given.json)
    intact = True
    for position, file in enumerate(_files(given.paths[0])):
        report = _only(inspect_file(file), given.only)
        intact = intact and report.intact
        if given.json:
            print(json.dumps(dataclasses.asdict(report) | {"intact": report.intact}, default=str))
            continue
        if position:
            print()
        print(render(report))
        if given.values:
            print(_values(file, given.only))
    return 0 if intact else 1


def _files(path: Path) -> Iterator[Path]:
    """The state files of a file, a checkpoint folder or a run folder."""
    if not path.exists():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise StateError(f"There is no {path}.{did_you_mean(path.name, siblings, nearest_only=True)}")
    checkpoints = find_checkpoints(path)
    newest = checkpoints[0] if checkpoints else path
    if newest.is_file():
        yield newest
        return
    files = [file for file in sorted(newest.rglob("*")) if file.is_file() and _may_be_state(file)]
    if not files:
        raise StateError(f"There is no state file in {newest}.")
    yield from files


def _may_be_state(file: Path) -> bool:
    if file.suffix == ".lcstate":
        return True  # a damaged one must be shown as damaged, not passed over
    try:
        read_layout(file)
    except FormatError:
        return False
    return True


def _chooser(prefix: str, paths: Iterable[str]) -> Callable[[str], bool]:
    """Whether a path, or what is left of it below some level, begins so: checkpoints keep states below others.

    Whole names come first, so that ``rl_module`` is not ``rl_module_spec``; where there are none, any beginning counts.
    """
    whole = f"/{prefix.strip('/')}/"
    if any(whole in f"/{path}/" for path in paths):
        return lambda path: whole in f"/{path}/"
    return lambda path: f"/{prefix}" in f"/{path}"


def _only(report: FileReport, prefix: str) -> FileReport:
    chosen = _chooser(prefix, [leaf.path for leaf in report.leaves])
    leaves = [leaf for leaf in report.leaves if chosen(leaf.path)]
    if prefix and not leaves:
        tops = {leaf.path.split("/")[0] for leaf in report.leaves}
        raise StateError(
            f"{report.path}: no path, nor part of one, begins with {prefix!r}.{did_you_mean(prefix, tops)}"
        )
    return dataclasses.replace(report, leaves=leaves)


def _values(file: Path, prefix: str) -> str:
    leaves = flatten(load_state(file, mmap=True))
    chosen = _chooser(prefix, leaves)
    arrays = {path: leaf for path, leaf in leaves.items() if chosen(path) and isinstance(leaf, np.ndarray)}
    rows = [(path, *_statistics(array)) for path, array in arrays.items()]
    return table(rows, header=("array", "mean", "std", "min", "max", "not finite"))


def _statistics(array: np.ndarray) -> tuple[str, ...]:
    if not array.size:
        return ("empty",)
    wide = array.astype(np.float64)
    strange = int((~np.isfinite(wide)).sum())
    numbers = [number(float(value)) for value in (wide.mean(), wide.std(), wide.min(), wide.max())]
    return (*numbers, str(strange) if strange else "")


def _diff(first: Path, second: Path, *, only: str, as_json: bool) -> int:
    trees = [_tree(path) for path in (first, second)]
    chosen = _chooser(only, [path for tree in trees for path in flatten(tree)])
    found = [difference for difference in diff(*trees) if chosen(difference.path)]
    if as_json:
        print(json.dumps([dataclasses.asdict(difference) for difference in found]))
    else:
        print(render_differences(found))
    return 1 if found else 0


def _tree(path: Path) -> Plain:
    files = list(_files(path))
    if len(files) == 1:
        return load_state(files[0], mmap=True)
    return {file.name: load_state(file, mmap=True) for file in files}
