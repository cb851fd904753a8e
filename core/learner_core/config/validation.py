"""Checks one setting's value against its annotation and converts it to plain Python.

Needs annotations built from: ``Any None bool int float str Literal Annotated[..., Range] FloatOrSchedule``, unions,
``list[...] tuple[..., ...] dict[..., ...] Callable type`` and plain classes (checked by ``isinstance``).
Refuses: a bool where a number is meant, a float where an int is meant, NaN and infinity, names outside a Literal.
"""

from __future__ import annotations

import collections.abc
import math
import os
import types
import typing
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

from learner_core import schedules
from learner_core.errors import ConfigError, did_you_mean

__all__ = [
    "FloatOrSchedule",
    "MismatchError",
    "OutOfRangeError",
    "Range",
    "Schedule",
    "convert",
    "expected",
    "is_schedule_type",
]


class MismatchError(ValueError):
    """A value of the wrong type; the text says what came and what is expected."""


class OutOfRangeError(MismatchError):
    """A value of the right type that is outside its range."""


class ScheduleError(MismatchError):
    """A list where a schedule is meant, that is none."""


@dataclass(frozen=True)
class Range:
    """Bounds of a number, written ``Annotated[float, Range(0, 1)]``; of a schedule, the bounds of every value.

    Args:
        min: Smallest value allowed.
        max: Largest value allowed.
        above: The value must be strictly larger than this.
        below: The value must be strictly smaller than this.
    """

    min: float | None = None
    max: float | None = None
    above: float | None = None
    below: float | None = None

    def holds(self, value: float) -> bool:
        """Say whether ``value`` is inside."""
        return not (
            (self.min is not None and value < self.min)
            or (self.max is not None and value > self.max)
            or (self.above is not None and value <= self.above)
            or (self.below is not None and value >= self.below)
        )

    def __str__(self) -> str:
        bounds = ((">=", self.min), (">", self.above), ("<=", self.max), ("<", self.below))
        return " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)


class Schedule:
    """Marks an annotation whose value may be a schedule; use :data:`FloatOrSchedule`."""


FloatOrSchedule: TypeAlias = Annotated[float | list[list[float]], Schedule]
"""A number, or ``[[timestep, value], ...]``: piecewise linear, clamped at both ends; see ``learner_core.schedules``."""


def is_schedule_type(annotation: object) -> bool:
    """Say whether an annotation is, or in a union contains, :data:`FloatOrSchedule`."""
    if get_origin(annotation) is Annotated:
        base, *metadata = get_args(annotation)
        return Schedule in metadata or is_schedule_type(base)
    return _is_union(annotation) and any(is_schedule_type(option) for option in get_args(annotation))


def convert(annotation: object, value: Any) -> Any:
    """Check ``value`` against ``annotation`` and return it as plain Python.

    Numbers of numpy become Python numbers, an int becomes a float where a float is meant, sequences and dicts are
    rebuilt (so the result never aliases the caller's containers).

    Args:
        annotation: The resolved annotation, ``Annotated`` included.
        value: What came.

    Returns:
        The converted value.

    Raises:
        MismatchError: The value does not fit; the text says what came and what is expected.
        OutOfRangeError: The type fits but a :class:`Range` does not hold.
    """
    if getattr(value, "ndim", None) == 0 and callable(getattr(value, "item", None)):
        value = value.item()  # numpy's and the frameworks' scalars
    origin = get_origin(annotation)
    if origin is Annotated:
        return _convert_annotated(annotation, value)
    if _is_union(annotation):
        return _convert_union(annotation, value)
    if origin is Literal:
        for option in get_args(annotation):
            if type(option) is type(value) and option == value:
                return value
        names = [option for option in get_args(annotation) if isinstance(option, str)]
        hint = did_you_mean(value, names) if isinstance(value, str) else ""
        raise _mismatch(annotation, value, hint if hint.startswith(" Did") else "")
    if annotation in _PLAIN:
        return _PLAIN[annotation](annotation, value)
    if origin in (list, collections.abc.Sequence):
        return [convert(item_type, item) for item_type, item in _items(annotation, value)]
    if origin is tuple:
        return tuple(convert(item_type, item) for item_type, item in _items(annotation, value))
    if origin in (dict, collections.abc.Mapping):
        return _convert_dict(annotation, value)
    if annotation is collections.abc.Callable or origin is collections.abc.Callable:
        if callable(value):
            return value
    elif isinstance(origin or annotation, type):
        kind: Any = origin or annotation
        if isinstance(value, kind):
            return copy_containers(value)
    else:
        return copy_containers(value)  # an annotation this validator cannot express: leave it to its reader
    raise _mismatch(annotation, value)


def copy_containers(value: Any) -> Any:
    """Copy dicts, lists, tuples and sets recursively; share every other leaf.

    Args:
        value: Anything.

    Returns:
        A value that shares no mutable container with ``value``.
    """
    if type(value) is dict:
        return {key: copy_containers(item) for key, item in value.items()}
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(copy_containers(item) for item in value)
    return value


def expected(annotation: object) -> str:
    """Describe an annotation in words, for errors and for tables of settings."""
    origin = get_origin(annotation)
    if origin is Annotated:
        base, *metadata = get_args(annotation)
        text = "float or schedule [[timestep, value], ...]" if Schedule in metadata else expected(base)
        bounds = " and ".join(str(item) for item in metadata if isinstance(item, Range))
        return f"{text} {bounds}" if bounds else text
    if _is_union(annotation):
        return " or ".join(expected(option) for option in get_args(annotation))
    if origin is Literal:
        options = ", ".join(repr(option) for option in get_args(annotation))
        return f"one of {options}" if len(get_args(annotation)) > 1 else options
    if annotation in (None, type(None)):
        return "None"
    if annotation is collections.abc.Callable or origin is collections.abc.Callable:
        return "callable"
    if annotation is type or origin is type:
        return "class"
    if origin in (list, tuple, collections.abc.Sequence):
        item = expected(next((arg for arg in get_args(annotation) if arg is not Ellipsis), Any))
        return f"{'tuple' if origin is tuple else 'list'} of {item}"
    if origin in (dict, collections.abc.Mapping):
        return "dict"
    return getattr(annotation, "__name__", None) or str(annotation).removeprefix("typing.")


def _is_union(annotation: object) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _mismatch(annotation: object, value: object, hint: str = "") -> MismatchError:
    text = repr(value)
    text = text if len(text) <= 80 else text[:77] + "..."
    came = f"{type(value).__name__} {text}" if value is not None else "None"
    return MismatchError(f"expected {expected(annotation)}, got {came}.{hint}")


def _convert_annotated(annotation: object, value: Any) -> Any:
    base, *metadata = get_args(annotation)
    if Schedule in metadata and type(value).__name__ == "ndarray":
        value = value.tolist()
    try:
        if Schedule in metadata and (
            isinstance(value, (list, tuple, collections.abc.Mapping, schedules.Schedule)) or callable(value)
        ):
            value = _schedule(value)
        else:
            value = convert(float if Schedule in metadata else base, value)
    except (OutOfRangeError, ScheduleError):
        raise
    except MismatchError:
        raise _mismatch(annotation, value) from None
    numbers = [point[1] for point in value] if Schedule in metadata and isinstance(value, list) else [value]
    for bounds in metadata:
        for number in numbers:
            if isinstance(bounds, Range) and isinstance(number, (int, float)) and not bounds.holds(number):
                raise OutOfRangeError(f"expected {expected(annotation)}, got {value!r}.")
    return value


def _schedule(points: object) -> float | list[list[float]]:
    try:
        return schedules.parse(points).to_plain()
    except ConfigError as error:
        raise ScheduleError(f"{error}.") from None


def _convert_union(annotation: object, value: object) -> Any:
    problems: list[MismatchError] = []
    options = get_args(annotation)
    exact = [option for option in options if option is type(value)]  # int | float keeps an int an int
    for option in [*exact, *options]:
        try:
            return convert(option, value)
        except MismatchError as error:
            problems.append(error)
    for problem in problems:
        if isinstance(problem, (OutOfRangeError, ScheduleError)):
            raise problem  # the right type in a wrong state says more than a list of types
    hints = [str(problem).partition(" Did you mean")[2] for problem in problems]
    raise _mismatch(annotation, value, next((f" Did you mean{hint}" for hint in hints if hint), ""))


def _convert_dict(annotation: object, value: object) -> dict[Any, Any]:
    if not isinstance(value, collections.abc.Mapping):
        raise _mismatch(annotation, value)
    key_type, item_type = get_args(annotation) or (Any, Any)
    result = {}
    for key, item in value.items():
        try:
            result[convert(key_type, key)] = convert(item_type, item)
        except MismatchError as error:
            raise type(error)(f"at key {key!r}: {error}") from None
    return result


def _items(annotation: object, value: Any) -> list[tuple[Any, Any]]:
    if not isinstance(value, (list, tuple, set, frozenset, range)) and type(value).__name__ != "ndarray":
        raise _mismatch(annotation, value)
    items = list(value)
    arguments = get_args(annotation) or (Any,)
    if get_origin(annotation) is tuple and arguments[-1] is not Ellipsis:
        if len(items) != len(arguments):
            raise _mismatch(annotation, value, f" It must have {len(arguments)} items.")
        return list(zip(arguments, items, strict=True))
    return [(arguments[0], item) for item in items]


def _plain_float(annotation: object, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _mismatch(annotation, value)
    if not math.isfinite(value):
        raise OutOfRangeError(f"expected a finite float, got {value!r}.")
    return float(value)


def _plain_int(annotation: object, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        hint = f" Write {int(value)}." if isinstance(value, float) and value.is_integer() else ""
        raise _mismatch(annotation, value, hint)
    return int(value)


def _plain_exact(annotation: Any, value: object) -> Any:
    if annotation is str and isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, annotation):
        raise _mismatch(annotation, value)
    return str(value) if annotation is str else value


def _plain_none(annotation: object, value: object) -> None:
    if value is not None:
        raise _mismatch(annotation, value)


def _plain_container(annotation: Any, value: object) -> Any:
    return convert({list: list[Any], dict: dict[Any, Any], tuple: tuple[Any, ...]}[annotation], value)


_PLAIN: dict[Any, typing.Callable[[Any, Any], Any]] = {
    Any: lambda annotation, value: copy_containers(value),
    None: _plain_none,
    type(None): _plain_none,
    bool: _plain_exact,
    str: _plain_exact,
    int: _plain_int,
    float: _plain_float,
    list: _plain_container,
    dict: _plain_container,
    tuple: _plain_container,
}
