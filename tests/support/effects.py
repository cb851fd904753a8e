"""The tables of what shows that a setting is heard, and what the functions in them share.

``setting_effects`` fills them, and ``process_effects``: for each setting with functions that are called as
``function(backend, folder)``, go through the public door, and assert. What needs processes, or a compiler, is ``slow``;
what no backend has a part in is ``neutral``.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gymnasium.spaces import Discrete

from .learners import ppo_batch
from .told import told

__all__ = ["EFFECTS", "MID", "OF_BC", "Effect", "any_warning", "batch", "ppo", "shows"]

MID = "default_policy"


@dataclass(frozen=True)
class Effect:
    """What shows that a setting is heard.

    Args:
        function: ``function(backend, folder)``; it asserts.
        slow: It takes processes or a compiler.
        neutral: The backend has no part in it.
    """

    function: Callable[[str, Path], None]
    slow: bool
    neutral: bool


EFFECTS: dict[str, list[Effect]] = {}
#: The same of settings that one algorithm needs functions of its own for.
OF_BC: dict[str, list[Effect]] = {}


def shows(
    *names: str, slow: bool = False, neutral: bool = False, table: dict[str, list[Effect]] = EFFECTS
) -> Callable[[Callable[[str, Path], None]], Callable[[str, Path], None]]:
    def put(function: Callable[[str, Path], None]) -> Callable[[str, Path], None]:
        for name in names:
            table.setdefault(name, []).append(Effect(function, slow, neutral))
        return function

    return put


def ppo(backend: str, **learners: Any) -> Any:
    return told("ppo", backend).learners(**learners)


def batch() -> dict[str, Any]:
    """Twelve rows of the told environment."""
    return ppo_batch(12, Discrete(2), obs_size=2)


@contextlib.contextmanager
def any_warning() -> Iterator[None]:
    """What is replaced may be said."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
