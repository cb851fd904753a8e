"""A module of the library with one piece of its text changed, to see that a test notices."""

from __future__ import annotations

import importlib.util
import inspect
from types import ModuleType

__all__ = ["mutated"]


def mutated(module_name: str, *changes: tuple[str, str]) -> ModuleType:
    """A copy of the module in which each text, found exactly once, is another."""
    original = importlib.import_module(module_name)
    source = inspect.getsource(original)
    for old, new in changes:
        if source.count(old) != 1:
            raise ValueError(f"{module_name}: {old!r} is there {source.count(old)} times, not once")
        source = source.replace(old, new)
    spec = importlib.util.spec_from_loader(f"{module_name}_mutant", loader=None)
    assert spec is not None
    copy = importlib.util.module_from_spec(spec)
    copy.__package__ = original.__package__
    exec(compile(source, original.__file__ or module_name, "exec"), copy.__dict__)
    return copy
