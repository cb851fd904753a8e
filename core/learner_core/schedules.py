"""Settings that may change with time: a number, or a piecewise-linear curve over timesteps.

A curve is given by its points, by a named form (``{"kind": "exponential", "start": 1e-3, "end": 1e-5, "timesteps":
1_000_000}``), or by a function (:func:`schedule`). Forms and functions are drawn when the setting is set, by 257 points
unless a function is told otherwise, and only the points are kept. Needs nothing but Python. A schedule is evaluated on
the host, once per update, at the number of environment steps sampled so far; the value then enters the compiled step as
an array, so a changing rate never recompiles. It has no state of its own: its position is the timestep it is asked at,
so there is nothing to restore. docs/decisions/settings.md says why.
"""

from __future__ import annotations

import math
import numbers
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from .errors import ConfigError, did_you_mean

__all__ = ["Schedule", "parse", "schedule", "value_at"]

#: Points that a form or a function is drawn by: between them the curve is straight. An exponential that falls to a
#: ten-thousandth is off by 2e-4 of its value at most.
_NUM_POINTS: Final = 257
_MAX_POINTS: Final = 10_001


@dataclass(frozen=True)
class Schedule:
    """A piecewise-linear function of the timestep, constant before its first and after its last point.

    Args:
        points: (timestep, value) pairs, timesteps increasing; two of the same timestep are a jump, to the second's
            value from that timestep on. One pair is a constant. Built by :func:`parse`, which checks them.
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
        value: A finite number; ``[[timestep, value], ...]`` with timesteps >= 0 that increase, of which two may be
            equal: a jump; a dict; or a :class:`Schedule`. A dict is a form: ``kind`` is "linear", "exponential",
            "cosine" or "polynomial"; from ``start`` to ``end`` in ``timesteps``, after ``begin`` (0) timesteps at
            ``start``; instead of ``end`` an exponential takes ``rate``, end / start; a polynomial has ``power`` (1):
            end + (start - end) * (1 - part) ** power.
        setting: The setting's name, for error messages.

    Returns:
        The schedule; a number gives a constant one.

    Raises:
        ConfigError: If it is none of these, or a number in it is not finite, or the timesteps do not increase.
    """
    if isinstance(value, Schedule):
        return value
    if _is_number(value):
        return Schedule(((0.0, _finite(value, setting, "value")),))
    if isinstance(value, Mapping):
        return Schedule(tuple(_of_form(value, setting)))
    if callable(value):
        raise ConfigError(
            f"{setting}={value!r:.80} is a function: say over how many timesteps it is drawn, by "
            'lc.schedule(function, timesteps=N), and of="progress_remaining" if it is one of the progress that '
            "remains, as in Stable-Baselines3"
        )
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
        if points and timestep < points[-1][0]:
            raise ConfigError(
                f"{setting}[{index}]: timestep={pair[0]!r} comes before {points[-1][0]:g}; timesteps must increase"
            )
        if len(points) > 1 and timestep == points[-1][0] == points[-2][0]:
            raise ConfigError(
                f"{setting}[{index}]: three values at timestep={pair[0]!r}; two are a jump, from one to the other"
            )
        points.append((timestep, number))
    return Schedule(tuple(points))


def schedule(
    function: Callable[[float], float],
    *,
    timesteps: float,
    of: Literal["timestep", "progress_remaining"] = "timestep",
    num_points: int = _NUM_POINTS,
) -> list[list[float]]:
    """Draw a function as the points of a schedule, which are all that is kept of it.

    It is asked once for each of ``num_points`` timesteps, evenly from 0 to ``timesteps``; between them the schedule is
    straight, and constant afterwards. A straight function becomes two points. A jump of the function becomes a slope
    between two points: give jumps as points, ``[[t, before], [t, after]]``.

    Args:
        function: what gives the value.
        timesteps: environment steps until which it is drawn, the length of the run for instance.
        of: what it is a function of: ``"timestep"``, the environment steps sampled so far; or ``"progress_remaining"``,
            from 1 at the beginning to 0 at ``timesteps``, as Stable-Baselines3's.
        num_points: how many points, 2 to 10,001.

    Returns:
        ``[[timestep, value], ...]``, for any setting that takes a schedule.

    Raises:
        ConfigError: it is no function, it raises, or what it returns is no finite number.
    """
    if not callable(function):
        raise ConfigError(f"schedule: expected a function, got {type(function).__name__}")
    if of not in ("timestep", "progress_remaining"):
        raise ConfigError(
            f"schedule: of={of!r} is not known.{did_you_mean(str(of), ('timestep', 'progress_remaining'))}"
        )
    if isinstance(num_points, bool) or not isinstance(num_points, int) or not 2 <= num_points <= _MAX_POINTS:
        raise ConfigError(f"schedule: num_points={num_points!r}: expected a whole number from 2 to {_MAX_POINTS}")
    length = _positive(timesteps, "schedule", "timesteps")

    def value(part: float) -> float:
        argument = part * length if of == "timestep" else 1.0 - part
        try:
            answer = function(argument)
        except Exception as error:
            raise ConfigError(f"schedule: function({argument!r}) raised {type(error).__name__}: {error}") from error
        answer = answer.item() if getattr(answer, "ndim", None) == 0 and hasattr(answer, "item") else answer
        return _finite(answer, f"schedule: function({argument!r})", "value")

    return [list(point) for point in _drawn(value, 0.0, length, num_points)]


def _of_form(form: Mapping[str, Any], setting: str) -> list[tuple[float, float]]:
    """The points of a named form."""
    kind = str(form.get("kind"))
    if kind not in _FORMS:
        raise ConfigError(
            f"{setting}={dict(form)!r:.80}: kind={form.get('kind')!r} is not known.{did_you_mean(kind, _FORMS)}"
        )
    known = ("kind", "start", "end", "timesteps", "begin", *_FORMS[kind])
    for key in form:
        if key not in known:
            raise ConfigError(f"{setting}: kind={kind!r} has no {key!r}.{did_you_mean(str(key), known)}")
    has_rate = "rate" in form
    missing = [key for key in ("start", "timesteps") if key not in form]
    missing += ["end"] if "end" not in form and not has_rate else []
    if missing:
        raise ConfigError(f"{setting}: kind={kind!r} needs {', '.join(missing)}")
    if has_rate and "end" in form:
        raise ConfigError(f"{setting}: kind={kind!r} takes end or rate (end / start), not both")
    start = _finite(form["start"], setting, "start")
    end = start * _finite(form["rate"], setting, "rate") if has_rate else _finite(form["end"], setting, "end")
    begin = _finite(form.get("begin", 0), setting, "begin")
    if begin < 0:
        raise ConfigError(f"{setting}: begin={form['begin']!r} is negative")
    length = _positive(form["timesteps"], setting, "timesteps")
    if kind == "exponential" and (not start or not end or (start < 0) != (end < 0)):
        raise ConfigError(
            f"{setting}: kind='exponential' goes from start={start!r} to end={end!r}: expected two numbers of the same "
            "sign, none of them 0"
        )
    power = _positive(form.get("power", 1.0), setting, "power")

    def value(part: float) -> float:
        if part in (0.0, 1.0):
            return end if part else start
        if kind == "exponential":
            size = math.exp((1.0 - part) * math.log(abs(start)) + part * math.log(abs(end)))
            return math.copysign(size, start)
        cosine = 0.5 * (1.0 + math.cos(math.pi * part))
        weight: float = {"linear": 1.0 - part, "polynomial": (1.0 - part) ** power}.get(kind, cosine)
        return end + (start - end) * weight

    return _drawn(value, begin, length, _NUM_POINTS)


#: Form -> what it has besides start, end, timesteps and begin.
_FORMS: Final[Mapping[str, tuple[str, ...]]] = {
    "cosine": (),
    "exponential": ("rate",),
    "linear": (),
    "polynomial": ("power",),
}


def _drawn(value: Callable[[float], float], begin: float, length: float, num_points: int) -> list[tuple[float, float]]:
    """Points of a curve over parts 0 to 1, evenly; of a straight one the two ends."""
    parts = [index / (num_points - 1) for index in range(num_points)]
    values = [value(part) for part in parts]
    first, last = values[0], values[-1]
    scale = 1e-12 * max(abs(first), abs(last))
    if all(abs(found - (first + (last - first) * part)) <= scale for part, found in zip(parts, values, strict=True)):
        parts, values = [0.0, 1.0], [first, last]
    return [(begin + part * length, found) for part, found in zip(parts, values, strict=True)]


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


def _positive(value: Any, where: str, what: str) -> float:
    number = _finite(value, where, what)
    if number <= 0:
        raise ConfigError(f"{where}: {what}={value!r}: expected a number above 0")
    return number
