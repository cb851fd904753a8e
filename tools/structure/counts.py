"""What is counted in syntax trees."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator

from .sources import Source, functions, parameters, signature_types

__all__ = ["any_per_1000_lines", "defaulted_settings", "joined_keys", "long_signatures", "private_reads", "statements"]

#: A key of a flat dict: ``params/<module>/<optimizer>`` and what else is put together with a slash.
_KEY = re.compile(r"^(params|slots|frozen|targets|buffers|idx|noise|columns|grads|sums|stats|rows|data)/")


def private_reads(sources: Iterable[Source]) -> list[str]:
    """Where an attribute with one leading underscore is used of anything but ``self``, ``cls`` and ``super()``."""
    return [
        f"{source.path}:{node.lineno} {ast.unparse(node)}"
        for source in sources
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Attribute)
        and re.match(r"_(?!_)", node.attr)
        and ast.unparse(node.value) not in ("self", "cls", "super()")
    ]


def any_per_1000_lines(sources: Iterable[Source]) -> float:
    """How often ``Any`` stands in signatures, inside other types too, for each thousand lines."""
    lines = found = 0
    for source in sources:
        lines += source.lines
        for function in functions(source.tree):
            for written in signature_types(function):
                found += sum(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(written))
    return 1000 * found / lines


def long_signatures(sources: Iterable[Source], most: int = 6) -> list[str]:
    """Functions with more parameters than that."""
    return [
        f"{source.path}:{function.lineno} {function.name}: {len(parameters(function))}"
        for source in sources
        for function in functions(source.tree)
        if len(parameters(function)) > most
    ]


def defaulted_settings(sources: Iterable[Source]) -> list[str]:
    """Where a setting is read as ``getattr(config, name, default)``."""
    return [
        f"{source.path}:{node.lineno}" for source in sources for node in _calls(source, "getattr") if _of_config(node)
    ]


def _calls(source: Source, name: str) -> Iterator[ast.Call]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
            yield node


def _of_config(node: ast.Call) -> bool:
    return len(node.args) == 3 and "config" in ast.unparse(node.args[0]).lower()


def joined_keys(sources: Iterable[Source]) -> list[str]:
    """Where keys of flat dicts are put together as text, or taken apart again."""
    found = []
    for source in sources:
        for node in ast.walk(source.tree):
            if _joins(node) or _splits(node):
                found.append(f"{source.path}:{node.lineno} {ast.unparse(node)}")  # type: ignore[attr-defined]
    return found


def _joins(node: ast.AST) -> bool:
    if not isinstance(node, ast.JoinedStr) or not node.values:
        return False
    first = node.values[0]
    return isinstance(first, ast.Constant) and bool(_KEY.match(str(first.value)))


def _splits(node: ast.AST) -> bool:
    """``key.split("/")``, ``key.startswith("noise/")`` and their like."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
        return False
    given = node.args[0]
    if not (isinstance(given, ast.Constant) and isinstance(given.value, str)):
        return False
    if node.func.attr in ("split", "rsplit", "partition", "rpartition"):
        return given.value == "/"
    return node.func.attr in ("startswith", "removeprefix") and bool(_KEY.match(given.value))


def statements(sources: Iterable[Source]) -> int:
    """Statements, without docstrings; comments are none."""
    return sum(
        isinstance(node, ast.stmt) and not _is_text(node) for source in sources for node in ast.walk(source.tree)
    )


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
