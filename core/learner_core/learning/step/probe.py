"""Notes what a Learner's hooks ask for while its step is tried out: columns, noise, statistics, metrics.

Declaring these by hand would be one more list to keep right; running the step once knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ...errors import ConfigError
from ...xp import Array, ArrayTree, Columns

__all__ = ["NoColumnError", "Probe"]


class NoColumnError(KeyError):
    """A hook reads a column that the batch does not have."""


class Probe:
    """What one trial has found so far.

    Args:
        feeds: modules that have rows.
        draw: ``draw(module_id, name, rows, shape)``: noise of these rows, float[rows, *shape].

    Attributes:
        columns: module id -> columns that were read, by the first part of their path.
        noise: (module id, name) -> shape of one row.
        statistics: (module id, column) that were asked for.
        metrics: (module id, name) of what was logged, in carry order.
    """

    def __init__(self, feeds: Iterable[str], draw: Callable[[str, str, slice, tuple[int, ...]], Array]) -> None:
        self._draw = draw
        self.columns: dict[str, set[str]] = {module_id: set() for module_id in feeds}
        self.noise: dict[tuple[str, str], tuple[int, ...]] = {}
        self.statistics: set[tuple[str, str]] = set()
        self.metrics: tuple[tuple[str, str], ...] = ()

    def watched(self, module_id: str, columns: Columns) -> Columns:
        """The batch, which notes what is read of it."""
        return _WatchedBatch(columns, self.columns[module_id])

    def noise_of(self, module_id: str, name: str, rows: slice, shape: tuple[int, ...]) -> Array:
        """Noise as a step has it, noted.

        Raises:
            ConfigError: it was asked for with another shape before in this step.
        """
        known = self.noise.setdefault((module_id, name), shape)
        if known != shape:
            raise ConfigError(f"noise {name!r} is asked for with shapes {known} and {shape} in one step")
        return self._draw(module_id, name, rows, shape)


class _WatchedBatch(dict[str, ArrayTree]):
    """A batch that notes which columns are read."""

    def __init__(self, columns: Columns, seen: set[str]) -> None:
        super().__init__(columns)
        self._seen = seen

    def mapped(self, function: Callable[[ArrayTree], ArrayTree]) -> _WatchedBatch:
        """The same columns through a function; what is read of them is noted here."""
        return _WatchedBatch({key: function(value) for key, value in self.items()}, self._seen)

    def __getitem__(self, key: str) -> ArrayTree:
        if key not in self:
            raise NoColumnError(key)
        self._seen.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: ArrayTree = None) -> ArrayTree:
        """As a dict's."""
        if key not in self:
            return default
        return self[key]
