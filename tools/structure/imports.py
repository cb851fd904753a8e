"""Who imports whom: imports inside functions and those for type checkers alone are counted like any other."""

from __future__ import annotations

import ast
from collections.abc import Mapping

from .sources import Source, read_package

__all__ = ["circles", "import_graph"]


def import_graph(package: str) -> dict[str, set[str]]:
    """module -> the modules of the same package that it imports."""
    sources = read_package(package)
    known = {source.module for source in sources}
    return {source.module: _imported(source, known) - {source.module} for source in sources}


def _imported(source: Source, known: set[str]) -> set[str]:
    found = set()
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in known}
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(source, node)
            for alias in node.names:
                inside = f"{base}.{alias.name}"
                if inside in known:
                    found.add(inside)
                elif base in known:
                    found.add(base)
    return found


def _absolute(source: Source, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = source.module.split(".")
    up = node.level - (1 if source.is_package else 0)
    parts = parts[: len(parts) - up]
    return ".".join([*parts, *([node.module] if node.module else [])])


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The sets of modules that reach each other, largest first (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in sorted(graph[module]):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            at = stack.index(module)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for module in sorted(graph):
        if module not in index:
            visit(module)
    return sorted(found, key=len, reverse=True)
