"""The public names of ``learner_core``: one table, in order, each there, and told to type checkers as well."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import learner_core as lc


def _table() -> dict[str, str]:
    (table,) = (
        node.value
        for node in ast.parse(inspect.getsource(lc)).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_EXPORTS"
    )
    found: dict[str, str] = ast.literal_eval(table)
    return found


def test_the_table_is_sorted_and_every_name_is_where_it_says() -> None:
    table = _table()
    assert list(table) == sorted(table)
    for name, module in table.items():
        assert getattr(lc, name) is getattr(importlib.import_module(f"learner_core.{module}"), name), name


def test_all_is_the_table_and_the_version() -> None:
    assert lc.__all__ == sorted([*_table(), "__version__"])
    assert set(_table()) <= set(dir(lc))


def test_type_checkers_are_told_the_same() -> None:
    (block,) = (node for node in ast.parse(inspect.getsource(lc)).body if isinstance(node, ast.If))
    told = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        told.update({alias.name: node.module for alias in node.names if alias.asname == alias.name})
    assert told == _table()


def test_each_is_defined_where_the_table_says() -> None:
    """A class or function that a module merely imports would be named after another module in its errors."""
    for name, module in _table().items():
        value = getattr(lc, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__module__ == f"learner_core.{module}", name
            assert (inspect.getdoc(value) or "").strip(), name


def test_the_public_nouns_are_few() -> None:
    assert len(_table()) <= 50
    assert Path(lc.__file__).read_text().count("import ") < 40
