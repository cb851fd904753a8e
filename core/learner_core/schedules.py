"""Settings that may change with time: a number, or a piecewise-linear curve over timesteps.

Needs nothing but Python. A schedule is evaluated on the host, once per update, at the number of environment
steps sampled so far; the value then enters the compiled step as an array, so a changing rate never recompiles.
A schedule has no state of its own: its position is the timestep it is asked at, so there is nothing to restore.
"""

from __future__ import annotations

import math
import numbers
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError

__all__ = ["Schedule", "parse", "value_at"]


@dataclass(frozen=True)
class Schedule:
    """A piecewise-linear function of the timestep, constant before its first and after its last point.

    Args:
        points: (timestep, value) pairs, timesteps strictly increasing. One pair is a constant.
            Built by :func:`parse`, which checks them.
    """

    points: tuple[tuple[float, float], ...]

    def value_at(self, timestep: float) -> float:
        """Evaluate the schedule.

        Args:
            timestep: Environment steps sampled over the whole run.

        Returns:
            The value: exact at every point, linear between two, that of the nearest end outside.
        """
        after = bisect_right(self.points, timestep, key=lambda point: point[0])
        if after == 0:
            return self.points[0][1]
        if after == len(self.points):
            return self.points[-1][1]
        (t_0, v_0), (t_1, v_1) = self.points[after - 1 : after + 1]
        part = (timestep - t_0) / (t_1 - t_0)
        return v_0 * (1.0 - part) + v_1 * part

    def to_plain(self) -> float | list[list[float]]:
        """The schedule as the plain data a config file holds; ``parse(s.to_plain()) == s``."""
        if len(self.points) == 1:
            return self.points[0][1]
        return [[timestep, value] for timestep, value in self.points]


def parse(value: Any, setting: str = "schedule") -> Schedule:
    """Read a setting that is a number or a schedule.

    Args:
        value: A finite number, ``[[timestep, value], ...]`` with strictly increasing timesteps >= 0, or a
            :class:`Schedule`.
        setting: The setting's name, for error messages.

    Returns:
        The schedule; a number gives a constant one.

    Raises:
        ConfigError: If it is neither, or a number in it is not finite, or the timesteps do not increase.
    """
    if isinstance(value, Schedule):
        return value
    if _is_number(value):
        return Schedule(((0.0, _finite(value, setting, "value")),))
    if isinstance(value, str | bytes) or not (isinstance(value, Sequence) or getattr(value, "ndim", 0) > 0):
        raise ConfigError(
            f"{setting}={value!r}: expected a number or a schedule [[timestep, value], ...], got {type(value).__name__}"
        )
    pairs = value.tolist() if hasattr(value, "tolist") else list(value)
    if not isinstance(pairs, list) or not pairs:
        raise ConfigError(f"{setting}={value!r}: a schedule needs at least one [timestep, value] pair")
    points: list[tuple[float, float]] = []
    for index, pair in enumerate(pairs):
        if not isinstance(pair, Sequence) or isinstance(pair, str | bytes) or len(pair) != 2:
            raise ConfigError(f"{setting}[{index}]={pair!r}: expected a [timestep, value] pair")
        timestep = _finite(pair[0], f"{setting}[{index}]", "timestep")
        number = _finite(pair[1], f"{setting}[{index}]", "value")
        if timestep < 0:
            raise ConfigError(f"{setting}[{index}]: timestep={pair[0]!r} is negative")
        if points and timestep <= points[-1][0]:
            raise ConfigError(
                f"{setting}[{index}]: timestep={pair[0]!r} does not come after {points[-1][0]:g}; "
                "timesteps must increase strictly"
            )
        points.append((timestep, number))
    return Schedule(tuple(points))


def value_at(value: Any, timestep: float) -> float:
    """A checked setting's value: of a number, of plain schedule data, or of a :class:`Schedule`.

    Args:
        value: As :func:`parse` takes it.
        timestep: Environment steps sampled over the whole run.

    Returns:
        The value; a Python float is its own, without being parsed (this runs for every setting in every update).

    Raises:
        ConfigError: As :func:`parse`.
    """
    return value if type(value) is float else parse(value).value_at(timestep)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"):
        return False
    return isinstance(value, numbers.Real)


def _finite(value: Any, where: str, what: str) -> float:
    if not _is_number(value):
        raise ConfigError(f"{where}: {what}={value!r} is not a number")
    number = float(value)
    if not math.isfinite(number):
        raise ConfigError(f"{where}: {what}={value!r} is not finite")
    return number
