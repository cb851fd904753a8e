"""What of a state that does not fit whole can still be taken over: ``set_state(state, strict=False)``.

The learner's own state is the frame. Every entry of the other state that has the same path and shape replaces its
counterpart; everything else keeps the learner's value and is reported with its path and the reason. An optimizer's
moments and step count belong together, so an optimizer is taken over whole or not at all. The result is a state that
fits, which is then set strictly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..errors import StateError, did_you_mean
from .parameters import as_numbers, of_shape

__all__ = ["Skipped", "fit_state", "non_negative_int", "number"]

_Check = Callable[[Any, Any, str], Any]


class Skipped(NamedTuple):
    """An entry that was left as it is, or one that has no place here.

    Attributes:
        path: of the entry in the state, such as ``rl_module/default_policy/pi.2.weight``.
        reason: why, in words.
    """

    path: str
    reason: str


def fit_state(current: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[dict[str, Any], list[Skipped]]:
    """Lay what fits of one state over another.

    Args:
        current: a complete state of the learner.
        given: any part of a state of the same schema.

    Returns:
        (a complete state, what was left out). Arrays are those of the two states, not copies.
    """
    skipped: list[Skipped] = []
    parts: dict[str, _Check] = {
        "rl_module": _each(_each(_array, skipped), skipped),
        "targets": _each(_each(_array, skipped), skipped),
        "buffers": _each(_each(_array, skipped), skipped),
        "variables": _each(_each(_variable, skipped), skipped),
        "optimizer": _each(_each(_optimizer, skipped), skipped),
        "timesteps": _timesteps,
        "counters": _each(_count, skipped),
        "noise": _each(_count, skipped),
        "plugins": _plugins,
        "schema": lambda own, came, path: own,
    }

    def part(own: Any, came: Any, path: str) -> Any:
        return parts[path](own, came, path)

    return _each(part, skipped)({name: current[name] for name in parts}, given, ""), skipped


def _each(check: _Check, skipped: list[Skipped]) -> _Check:
    """``check`` for every entry of a dict; what it refuses keeps its own value."""

    def checked(own: Mapping[str, Any], came: Any, path: str) -> dict[str, Any]:
        if not isinstance(came, Mapping):
            raise StateError(f"expected a dict, got {type(came).__name__}", path=path)
        result = dict(own)
        for key, value in own.items():
            place = f"{path}/{key}" if path else key
            if key not in came:
                skipped.append(Skipped(place, "missing: it keeps its value"))
                continue
            try:
                result[key] = check(value, came[key], place)
            except StateError as error:
                # The innermost place: of an optimizer, what does not fit about it.
                skipped.append(Skipped(error.path or place, str(error.args[0]).removeprefix(f"{error.path}: ")))
        for key in came:
            if key not in own:
                place = f"{path}/{key}" if path else str(key)
                skipped.append(Skipped(place, f"unknown entry.{did_you_mean(str(key), [str(name) for name in own])}"))
        return result

    return checked


def _array(own: Any, came: Any, path: str) -> np.ndarray:
    return of_shape(as_numbers(came, path), np.shape(own), path)


def _variable(own: Any, came: Any, path: str) -> Any:
    return _array(own, came, path) if isinstance(own, np.ndarray) else number(came, path)


def _optimizer(own: Mapping[str, Any], came: Any, path: str) -> dict[str, Any]:
    """The whole optimizer, or a StateError that says what about it does not fit."""

    def same(mine: Any, theirs: Any, at: str) -> Any:
        if isinstance(mine, Mapping):
            if not isinstance(theirs, Mapping):
                raise StateError(f"expected a dict, got {type(theirs).__name__}", path=at)
            for key in {**mine, **theirs}:
                if key not in theirs or key not in mine:
                    what = "missing" if key not in theirs else "unknown entry"
                    raise StateError(f"{what}: the optimizer keeps its moments and step", path=f"{at}/{key}")
            return {key: same(value, theirs[key], f"{at}/{key}") for key, value in mine.items()}
        if isinstance(mine, np.ndarray):
            try:
                return _array(mine, theirs, at)
            except StateError as error:
                text = str(error.args[0]).removeprefix(f"{at}: ")
                raise StateError(f"{text}: the optimizer keeps its moments and step", path=at) from None
        if isinstance(mine, str):
            if mine != theirs:
                raise StateError(
                    f"expected {mine!r}, got {theirs!r}: the optimizer keeps its moments and step", path=at
                )
            return mine
        return _count(mine, theirs, at)

    return dict(same(own, came, path))


def _count(own: Any, came: Any, path: str) -> int:
    return non_negative_int(came, path)


def _timesteps(own: Mapping[str, int], came: Any, path: str) -> dict[str, int]:
    if not isinstance(came, Mapping):
        raise StateError(f"expected a dict, got {type(came).__name__}", path=path)
    return {**own, **{name: non_negative_int(value, f"{path}/{name}") for name, value in came.items()}}


def _plugins(own: Any, came: Any, path: str) -> Any:
    if not isinstance(came, Mapping):
        raise StateError(f"expected a dict, got {type(came).__name__}", path=path)
    return came


def non_negative_int(value: Any, path: str) -> int:
    """``value`` as an int of at least 0.

    Raises:
        StateError: it is none; says the path.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
        raise StateError(f"expected a non-negative int, got {value!r}", path=path)
    return int(value)


def number(value: Any, path: str) -> float:
    """``value`` as a float.

    Raises:
        StateError: it is no number; says the path.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
        raise StateError(f"expected a number, got {value!r}", path=path)
    return float(value)
