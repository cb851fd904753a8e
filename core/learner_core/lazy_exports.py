"""Package namespaces that import nothing until a name is used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["lazy_exports"]


def lazy_exports(package: str, exports: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package whose public names live in its modules.

    Args:
        package: the package's ``__name__``.
        exports: public name -> module under the package that defines it.
    """

    def find(name: str) -> Any:
        try:
            module = exports[name]
        except KeyError:
            if (elsewhere := _elsewhere(name)) is not None:
                return elsewhere
            hint = "; the configuration of an algorithm is lc.get_config(name)" if name.endswith("Config") else ""
            raise AttributeError(f"module {package!r} has no attribute {name!r}{hint}") from None
        value = getattr(importlib.import_module(f"{package}.{module}"), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted(exports)

    return find, names


def _elsewhere(name: str) -> Any:
    """What stands for a class of another library, ``PPO`` for instance, and says what it is here."""
    if not name[:1].isupper():
        return None
    # By name: this file is below all others, and the names are looked at where something is wrong alone.
    return importlib.import_module("learner_core.config.foreign_names").elsewhere(name)
