"""The project's Python files as syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["PACKAGES", "ROOT", "Source", "functions", "parameters", "read_package", "signature_types"]

ROOT = Path(__file__).resolve().parents[2]
#: package -> the folder that it is imported from.
PACKAGES = {
    "learner_core": ROOT / "core",
    "learner_core_torch": ROOT / "backends" / "torch",
    "learner_core_tf": ROOT / "backends" / "tf",
    "learner_core_algorithms": ROOT / "plugins",
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """One file.

    Attributes:
        module: its dotted name; a package's ``__init__`` has the package's.
        path: from the repository's root.
        tree: its syntax tree.
        lines: how many it has.
        is_package: whether it is an ``__init__``.
    """

    module: str
    path: Path
    tree: ast.Module
    lines: int
    is_package: bool


@cache
def read_package(package: str) -> tuple[Source, ...]:
    """Every file of a package, in the order of their paths."""
    folder = PACKAGES[package]
    found = []
    for path in sorted((folder / package).rglob("*.py")):
        text = path.read_text()
        parts = path.relative_to(folder).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        module = ".".join(parts[:-1] if is_package else parts)
        tree = ast.parse(text, str(path))
        found.append(Source(module, path.relative_to(ROOT), tree, text.count("\n"), is_package))
    return tuple(found)


def functions(tree: ast.AST) -> Iterator[Function]:
    """Every function and method."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def parameters(function: Function) -> list[ast.arg]:
    """All of them but ``self`` and ``cls``."""
    given = function.args
    extra = [one for one in (given.vararg, given.kwarg) if one is not None]
    return [
        one for one in (*given.posonlyargs, *given.args, *given.kwonlyargs, *extra) if one.arg not in ("self", "cls")
    ]


def signature_types(function: Function) -> Iterator[ast.expr]:
    """The types of a function's parameters and of what it returns; those written as text are parsed."""
    for written in (*(one.annotation for one in parameters(function)), function.returns):
        if isinstance(written, ast.Constant) and isinstance(written.value, str):
            yield ast.parse(written.value, mode="eval").body
        elif written is not None:
            yield written
