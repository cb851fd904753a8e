"""``learner-core inspect``: what a state file holds, and where two differ. It reads; it never executes."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from learner_core.errors import FormatError, StateError, did_you_mean
from learner_core.state.files import load_state, read_layout
from learner_core.state.tree import describe, diff, flatten

from .console import count, number, table
from .run_folder import find_checkpoints

__all__ = ["run"]


def run(arguments: list[str]) -> int:
    """Run the subcommand; returns the exit code: with --diff 1 where the two differ."""
    parser = argparse.ArgumentParser(
        prog="learner-core inspect",
        description="Show what a state file, a checkpoint or a run's newest checkpoint holds. Checksums are verified.",
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a file or folder; two with --diff")
    parser.add_argument("--diff", action="store_true", help="show where two states differ, to the bit")
    parser.add_argument(
        "--only", metavar="PREFIX", default="", help="only paths that begin so: rl_module/default_policy"
    )
    parser.add_argument("--values", action="store_true", help="mean, deviation and range of every array")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--debug", action="store_true", help="a traceback when something is refused")
    given = parser.parse_args(arguments)
    if len(given.paths) != (2 if given.diff else 1):
        parser.error("--diff takes two paths" if given.diff else "one path; two with --diff")
    if given.diff:
        return _diff(*given.paths, only=given.only, as_json=given.json)
    for position, (file, name) in enumerate(_files(given.paths[0])):
        if position and not given.json:
            print()
        _show(file, name, only=given.only, values=given.values, as_json=given.json)
    return 0


def _files(path: Path) -> Iterator[tuple[Path, str]]:
    """The state files of a file, a checkpoint folder or a run folder, with names relative to what was asked for."""
    if not path.exists():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise StateError(f"There is no {path}.{did_you_mean(path.name, siblings)}")
    if path.is_file():
        yield path, str(path)
        return
    checkpoints = find_checkpoints(path)
    newest = checkpoints[0] if checkpoints else path
    if newest.is_file():
        yield newest, str(newest)
        return
    found = False
    for file in sorted(newest.rglob("*")):
        if file.is_file() and _is_state(file):
            found = True
            yield file, str(file)
    if not found:
        raise StateError(f"There is no state file in {newest}.")


def _is_state(file: Path) -> bool:
    try:
        read_layout(file)
    except FormatError as error:
        # A damaged state file must be shown as damaged, not passed over.
        return "magic" not in str(error) and file.suffix in (".lc", ".state", ".msgpack")
    return True


def _show(file: Path, name: str, *, only: str, values: bool, as_json: bool) -> None:
    info = read_layout(file).info
    flat = flatten(load_state(file, mmap=True))
    shown = {path: leaf for path, leaf in flat.items() if path.startswith(only)}
    if only and not shown:
        tops = {path.split("/")[0] for path in flat}
        raise StateError(f"{name}: no path begins with {only!r}.{did_you_mean(only, tops)}")
    arrays = [leaf for leaf in shown.values() if isinstance(leaf, np.ndarray)]
    if as_json:
        leaves = {path: _plain(leaf, values=values) for path, leaf in shown.items()}
        print(
            json.dumps({"file": name, "info": {k: _plain(v, values=False) for k, v in info.items()}, "leaves": leaves})
        )
        return
    elements, nbytes = sum(a.size for a in arrays), sum(a.nbytes for a in arrays)
    print(f"{name}: {file.stat().st_size} bytes; {len(shown)} leaves, {len(arrays)} arrays, {elements} elements, "
          f"{count(nbytes)} bytes in arrays")  # fmt: skip
    for key, value in info.items():
        print(f"  {key}: {value}")
    rows = []
    for path, leaf in shown.items():
        row = [path or "(the whole file)", describe(leaf)]
        if isinstance(leaf, np.ndarray):
            row.append(_statistics(leaf) if values else "")
        else:
            row.append(_short(leaf))
        rows.append(row)
    print(table(rows))


def _short(leaf: Any) -> str:
    text = repr(leaf.item() if isinstance(leaf, np.generic) and leaf.dtype.kind != "V" else leaf)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _statistics(array: np.ndarray[Any, Any]) -> str:
    if not array.size:
        return "empty"
    wide = array.astype(np.float64)
    text = f"mean {number(float(wide.mean()))}  std {number(float(wide.std()))}"
    text += f"  min {number(float(wide.min()))}  max {number(float(wide.max()))}"
    strange = int((~np.isfinite(wide)).sum())
    return f"{text}  {strange} not finite" if strange else text


def _plain(leaf: Any, *, values: bool) -> Any:
    if isinstance(leaf, np.ndarray):
        plain: dict[str, Any] = {"dtype": leaf.dtype.name, "shape": list(leaf.shape), "nbytes": leaf.nbytes}
        if values and leaf.size:
            wide = leaf.astype(np.float64)
            numbers = {"mean": wide.mean(), "std": wide.std(), "min": wide.min(), "max": wide.max()}
            plain |= {key: float(value) if math.isfinite(value) else None for key, value in numbers.items()}
        return plain
    if isinstance(leaf, np.generic):
        return _plain(leaf.item(), values=values)
    if isinstance(leaf, bytes):
        return {"bytes": len(leaf)}
    if isinstance(leaf, float) and not math.isfinite(leaf):
        return str(leaf)
    if isinstance(leaf, dict):
        return {str(key): _plain(value, values=values) for key, value in leaf.items()}
    return leaf


def _diff(first: Path, second: Path, *, only: str, as_json: bool) -> int:
    trees = [_tree(path) for path in (first, second)]
    found = [difference for difference in diff(*trees) if difference.path.startswith(only)]
    if as_json:
        print(json.dumps([{"path": d.path, "kind": d.kind, "message": d.message} for d in found]))
    elif found:
        print(table([(d.path, d.kind, d.message) for d in found]))
        print(f"{len(found)} differences")
    else:
        print("no difference")
    return 1 if found else 0


def _tree(path: Path) -> Any:
    files = list(_files(path))
    if len(files) == 1:
        return load_state(files[0][0], mmap=True)
    return {file.name: load_state(file, mmap=True) for file, _ in files}
