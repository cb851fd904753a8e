"""What ``reset`` and ``step`` of an environment returned besides observations: rewards, flags, and how many things.

Refuses, and never repairs: another number of things, rewards that are no single number, not finite or beyond float32
(columns of rewards are float32), and flags that are neither true nor false.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from ..errors import EnvOutputError
from .contract import RETURNS
from .observations import Whose, in_words

__all__ = ["Infos", "flag_of", "flags_of", "mapping_of", "reset_result", "reward_of", "rewards_of", "step_result"]

_MOST = float(np.finfo(np.float32).max)
#: What else an environment says, by name; of a vector of environments mostly arrays of all of them.
Infos: TypeAlias = Mapping[str, Any]
#: (observation, reward, terminated, truncated, info), none of them looked at yet.
StepAnswer: TypeAlias = tuple[object, object, object, object, Infos]
_NUMBERS = (int, np.floating, np.integer, np.bool_)


def reset_result(result: object, index: int, whose: Whose) -> tuple[object, Infos]:
    """What ``reset`` returned: the observation (or observations), and the info, {} for None.

    Raises:
        EnvOutputError: It is something else.
    """
    if type(result) is not tuple or len(result) != 2 or not isinstance(result[1], Mapping | None):
        rule, remedy = RETURNS["reset"]
        raise EnvOutputError(f"{whose(index)}: {rule}, got {_things(result)}. {remedy}")
    return result[0], result[1] or {}


def step_result(result: object, index: int, whose: Whose, *, of: str = "step") -> StepAnswer:
    """What ``step`` returned, or ``last`` of a turn-based environment, if it is five things.

    Raises:
        EnvOutputError: It is something else.
    """
    if not isinstance(result, tuple | list) or len(result) != 5:
        rule, remedy = RETURNS["step"]
        raise EnvOutputError(f"{whose(index)}: {rule.replace('step', of)}, got {_things(result)}. {remedy}")
    obs, reward, terminated, truncated, info = result
    return obs, reward, terminated, truncated, info


def mapping_of(values: object, name: str, index: int, whose: Whose) -> Mapping[str, object]:
    """What an environment of several agents returned by agent.

    Raises:
        EnvOutputError: It is no dict.
    """
    if not isinstance(values, Mapping):
        raise EnvOutputError(f"{whose(index)}: {name} must be a dict by agent, got {in_words(values)}")
    return values


def reward_of(value: object, index: int, whose: Whose) -> float:
    """One reward.

    Raises:
        EnvOutputError: It is no single number, not finite, or beyond float32.
    """
    if type(value) is float:
        number = value
    else:
        scalar = value if isinstance(value, _NUMBERS) else _scalar(value)
        if scalar is None:
            raise EnvOutputError(f"{whose(index)}: the reward must be one number, got {in_words(value)}")
        try:
            number = float(scalar)
        except OverflowError:  # an int of hundreds of digits
            number = float("inf")
    if not -_MOST <= number <= _MOST:
        raise EnvOutputError(f"{whose(index)}: gave a reward that is {_beyond(value)}: {in_words(value)}")
    return number


def rewards_of(values: object, count: int, whose: Whose) -> np.ndarray:
    """Rewards of N environments at once: float64[N], a copy; as ``reward_of``."""
    rewards = _row("rewards", values, count, "biuf", whose).astype(np.float64)
    good = np.abs(rewards) <= _MOST
    if not good.all():
        index = int(np.flatnonzero(~good)[0])
        raise EnvOutputError(f"{whose(index)}: gave a reward that is {_beyond(rewards[index])}: {rewards[index]}")
    return rewards


def flag_of(value: object, name: str, index: int, whose: Whose) -> bool:
    """``terminated`` or ``truncated``: a bool, or 0 or 1.

    Raises:
        EnvOutputError: It is something else.
    """
    if value is True or value is False:
        return bool(value)
    scalar = value if isinstance(value, _NUMBERS) else _scalar(value)
    if scalar is None or not (scalar == 0 or scalar == 1):
        raise EnvOutputError(f"{whose(index)}: {name} must be True or False, got {in_words(value)}")
    return bool(scalar)


def flags_of(values: object, name: str, count: int, whose: Whose) -> np.ndarray:
    """Flags of N environments at once: bool[N], a copy; as ``flag_of``."""
    given = _row(name, values, count, "biuf", whose)
    flags = given.astype(np.bool_)
    if given.dtype != np.bool_ and not (flags == given).all():
        index = int(np.flatnonzero(flags != given)[0])
        raise EnvOutputError(f"{whose(index)}: {name} must be True or False, got {given[index]}")
    return flags


def _row(name: str, values: object, count: int, kinds: str, whose: Whose) -> np.ndarray:
    try:
        row = np.asarray(values)
    except Exception as error:
        raise EnvOutputError(f"{whose(0)}: {name} are no array of numbers ({type(error).__name__}: {error})") from None
    if row.dtype.kind not in kinds:
        raise EnvOutputError(f"{whose(0)}: {name} must be {count} numbers, got {in_words(values)}")
    if row.shape != (count,):
        raise EnvOutputError(f"{whose(0)}: gave {name} of shape {row.shape}, expected ({count},)")
    return row


def _scalar(value: object) -> np.generic | None:
    """A number in an array without axes (numpy's, or another library's); None: it is none."""
    if value is None or isinstance(value, str | bytes | Mapping | tuple | list):
        return None
    try:
        array = np.asarray(value)
    except Exception:
        return None
    return array.flat[0] if array.shape == () and array.dtype.kind in "biuf" else None


def _beyond(value: object) -> str:
    try:
        finite = bool(np.isfinite(np.asarray(value, np.float64)))
    except (OverflowError, TypeError, ValueError):
        finite = True
    return "beyond float32" if finite else "not finite"


def _things(result: object) -> str:
    if isinstance(result, tuple | list):
        return f"{len(result)} things: ({', '.join(type(thing).__name__ for thing in result)})"
    return in_words(result)
