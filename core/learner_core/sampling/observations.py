"""Observations as environments give them, copied into columns and compared with their space.

Needs an observation space that is supported (``learner_core.spaces``). Refuses what the space does not have, and never
repairs it: another structure, a missing or an extra key, another shape, a value that the space's dtype cannot hold
(0.7, -1 and 300 in uint8), one that is outside of a Discrete, MultiDiscrete or MultiBinary, NaN and infinity.

Taken as it is: lists where arrays are meant, entries of a dict in any order, another dtype that holds the same values
(an int for a float, int64 for uint8), floats of another precision, and floats beyond a Box's bounds.

The usual case, an array of the space's own dtype and shape, costs two comparisons and the copy; values are looked at
once a step, over all environments together.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

import numpy as np

from ..errors import EnvOutputError, SpaceError
from ..spaces import AnySpace, leaves
from .columns import Columns, tree_map

__all__ = ["ObservationReader", "exact", "in_words"]

_MOST = float(np.finfo(np.float32).max)

#: Index -> the environment's name in an error.
Whose = Callable[[int], str]


class ObservationReader:
    """Takes observations of one space in.

    Args:
        space: The space of one observation.
        whose: Index -> the name of an environment in an error: lane, or copy of a game.

    Raises:
        SpaceError: A space that is not supported.
    """

    def __init__(self, space: AnySpace, whose: Whose) -> None:
        self._whose = whose
        self._root = _part(space)
        self._leaves = list(self._root.leaves())

    def write(self, out: Columns, obs: object, index: int) -> None:
        """Copy the observation of one environment into row ``index`` of columns [N, ...].

        Raises:
            EnvOutputError: It is not what the space says; values are compared by ``check``.
        """
        self._write(out, obs, index, index)

    def write_all(self, out: Columns, obs: object) -> None:
        """Copy a batch of observations, of all N environments at once, into columns [N, ...]; as ``write``."""
        try:
            self._root.write(out, obs, None)
        except _NoFitError as error:
            self._refuse(error.row, error)

    def read(self, obs: object, index: int) -> Columns:
        """A copy of one observation as columns of the space's dtypes, with its values compared.

        Raises:
            EnvOutputError: It is not what the space says.
        """
        out = self.empty()
        self._write(out, obs, 0, index)
        self.check(out, lambda _: self._whose(index))
        return tree_map(_first, out)

    def empty(self, *leading: int) -> Columns:
        """Columns [*leading, ...] (one row if not given) of the space's dtypes, with nothing in them."""
        return self._root.empty(leading or (1,))

    def check(self, columns: Columns, whose: Whose | None = None) -> None:
        """Compare the values of columns [N, ...] that ``write`` has filled.

        Raises:
            EnvOutputError: One is not finite, or outside of a discrete space.
        """
        for leaf in self._leaves:
            try:
                leaf.check(columns)
            except _NoFitError as error:
                self._refuse(error.row, error, whose)

    def _write(self, out: Columns, obs: object, row: int, index: int) -> None:
        try:
            self._root.write(out, obs, row)
        except _NoFitError as error:
            self._refuse(index, error)

    def _refuse(self, index: int, error: _NoFitError, whose: Whose | None = None) -> NoReturn:
        raise EnvOutputError(f"{(whose or self._whose)(index)}: {error}") from None


class _NoFitError(Exception):
    """What is wrong with an observation; ``row`` is the environment among a batch."""

    def __init__(self, text: str, row: int = 0) -> None:
        super().__init__(text)
        self.row = row


class _Part(ABC):
    """A space, or a part of one; ``path`` is its place: (), or ("position", "x")."""

    path: tuple[str, ...]

    @abstractmethod
    def write(self, out: Columns, value: object, index: int | None) -> None:
        """Copy into row ``index``, or into all rows."""

    @abstractmethod
    def empty(self, leading: tuple[int, ...]) -> Columns:
        """Columns of this part."""

    @abstractmethod
    def leaves(self) -> Iterator[_Leaf]:
        """The arrays that it consists of."""

    @property
    def _name(self) -> str:
        return f"observation {'/'.join(self.path)!r}" if self.path else "observation"


class _Parts(_Part):
    """A Dict or a Tuple: parts by the name of their column."""

    def __init__(self, path: tuple[str, ...], parts: Mapping[str, _Part]) -> None:
        self.path = path
        self._parts = dict(parts)

    def empty(self, leading: tuple[int, ...]) -> Columns:
        return {name: part.empty(leading) for name, part in self._parts.items()}

    def leaves(self) -> Iterator[_Leaf]:
        for part in self._parts.values():
            yield from part.leaves()


class _DictPart(_Parts):
    def __init__(self, path: tuple[str, ...], parts: Mapping[str | int, _Part]) -> None:
        super().__init__(path, {str(name): part for name, part in parts.items()})
        self._keys = [(name, str(name), part) for name, part in parts.items()]
        self._expected = set(parts)

    def write(self, out: Columns, value: object, index: int | None) -> None:
        if not isinstance(value, Mapping):
            raise _NoFitError(
                f"{self._name} must be a dict with the keys {_keys(self._expected)}, got {in_words(value)}"
            )
        if value.keys() != self._expected:
            missing, extra = self._expected - set(value), set(value) - self._expected
            wrong = [f"{_keys(missing)} missing"] * bool(missing) + [f"{_keys(extra)} not in the space"] * bool(extra)
            raise _NoFitError(
                f"{self._name} must be a dict with the keys {_keys(self._expected)}: {' and '.join(wrong)}"
            )
        for name, column, part in self._keys:
            part.write(out[column], value[name], index)


class _TuplePart(_Parts):
    def write(self, out: Columns, value: object, index: int | None) -> None:
        count = len(self._parts)
        if not isinstance(value, (tuple, list)):
            raise _NoFitError(f"{self._name} must be a tuple of {count}, got {in_words(value)}")
        if len(value) != count:
            raise _NoFitError(f"{self._name} must be a tuple of {count}, got one of {len(value)}")
        for (name, part), item in zip(self._parts.items(), value, strict=True):
            part.write(out[name], item, index)


class _Leaf(_Part):
    """An array; ``low`` and ``size`` of a discrete space: its values are low, ..., low + size - 1."""

    def __init__(self, path: tuple[str, ...], space: AnySpace) -> None:
        ((self.shape, self.dtype),) = leaves(space).values()
        self.path = path
        self._space = space
        self._floating = self.dtype.kind == "f"
        self._plain = (int, np.int64) if self.dtype == np.int64 and not self.shape else ()
        self._size: Any = None
        self._low: Any = 0
        kind = type(space).__name__
        if hasattr(space, "nvec"):
            self._size, self._low = np.asarray(space.nvec), np.asarray(getattr(space, "start", 0))
        elif hasattr(space, "start"):
            self._size, self._low = int(space.n), int(space.start)
        elif kind == "MultiBinary":
            self._size = 2

    def empty(self, leading: tuple[int, ...]) -> np.ndarray:
        return np.empty((*leading, *self.shape), self.dtype)

    def leaves(self) -> Iterator[_Leaf]:
        yield self

    def write(self, out: np.ndarray, value: object, index: int | None) -> None:
        place: Any = ... if index is None else index
        shape = self.shape if index is not None else out.shape
        if type(value) is np.ndarray and value.dtype == out.dtype and value.shape == shape:
            out[place] = value
        elif self._floating and type(value) is np.ndarray and value.dtype.kind == "f" and value.shape == shape:
            try:
                out[place] = value
            except (
                RuntimeWarning
            ):  # beyond a narrower dtype, and warnings are errors here; else ``check`` finds infinity
                self._converted(value, shape, out.dtype, is_batch=index is None)
        elif type(value) in self._plain and index is not None:
            try:
                out[index] = value
            except OverflowError:
                raise _NoFitError(f"{self._name} is {value}, and {self._space} has no such value") from None
        else:
            out[place] = self._converted(value, shape, out.dtype, is_batch=index is None)

    def _converted(self, value: object, shape: tuple[int, ...], dtype: np.dtype, *, is_batch: bool) -> np.ndarray:
        try:
            array = np.asarray(value)
        except Exception as error:
            raise _NoFitError(f"{self._name} is no array of numbers ({type(error).__name__}: {error})") from None
        if array.dtype.kind not in "biuf":
            raise _NoFitError(f"{self._name} must be numbers of {self._space}, got {in_words(value)}")
        if array.shape != shape:
            raise _NoFitError(f"{self._name} must have the shape {shape}, got shape {array.shape}: {in_words(value)}")
        converted, good = exact(array, dtype)
        if not good.all():
            place = tuple(int(i) for i in np.argwhere(~good)[0])
            row, at = (place[0], place[1:]) if is_batch else (0, place)
            raise _NoFitError(f"{self._at(at)} is {array[place]}, and {self._space} has no such value", row)
        return converted

    def check(self, columns: Columns) -> None:
        """Refuse values that are not finite, or not in a discrete space."""
        column = columns
        for name in self.path:
            column = column[name]
        if self._floating:
            if _all_float32(column):
                return
            with np.errstate(invalid="ignore"):
                good = np.abs(column) <= _MOST
            wrong = "not finite, or beyond float32"
        elif self._size is not None:
            if column.dtype.kind == "i":
                column = column.astype(np.int64, copy=False)
            good = (column >= self._low) & (column < self._low + self._size)
            wrong = f"not in {self._space}"
        else:
            return
        if not good.all():
            row, *at = (int(i) for i in np.argwhere(~good)[0])
            raise _NoFitError(f"{self._at(tuple(at))} is {column[(row, *at)]}: {wrong}", row)

    def _at(self, place: tuple[int, ...]) -> str:
        return f"{self._name}{list(place)}" if place else self._name


def _all_float32(column: np.ndarray) -> bool:
    """Whether all values are finite as float32, in which batches have them."""
    if column.dtype != np.float64:
        with np.errstate(over="ignore", invalid="ignore"):
            # A sum is finite if its terms are (it may overflow: then look closer).
            return math.isfinite(column.sum())
    return not column.size or bool(column.max() <= _MOST and column.min() >= -_MOST)


def exact(array: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """An array of numbers in another dtype, and where that is the same value: bool of its shape.

    Floats may lose precision; a finite one that becomes infinite is not the same.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        converted = array.astype(dtype)
        if dtype.kind == "f":
            return converted, np.isfinite(converted) | ~np.isfinite(array)
        return converted, np.asarray(converted == array)


def in_words(value: object) -> str:
    """A value in few words, whatever it is."""
    if isinstance(value, np.ndarray):
        text = f"an array of {value.dtype} of shape {value.shape}"
        return f"{text}: {value.tolist()!r:.80}" if value.size <= 8 else text
    try:
        return f"{type(value).__name__} {value!r:.80}"
    except Exception:
        return f"an object of {type(value).__name__}"


def _keys(keys: Iterable[object]) -> str:
    return repr(sorted(keys, key=str))


def _first(leaf: np.ndarray) -> np.ndarray:
    return leaf.reshape(leaf.shape[1:])


def _part(space: AnySpace, path: tuple[str, ...] = ()) -> _Part:
    from gymnasium import spaces

    def inside(name: object, inner: AnySpace) -> _Part:
        return _part(inner, (*path, str(name)))

    if isinstance(space, spaces.Dict):
        names = [str(name) for name in space.spaces]
        if len(set(names)) != len(names):
            raise SpaceError(f"observation space {space}: two keys are the same as text: {names}")
        return _DictPart(path, {name: inside(name, inner) for name, inner in space.spaces.items()})
    if isinstance(space, spaces.Tuple):
        return _TuplePart(path, {str(i): inside(i, inner) for i, inner in enumerate(space.spaces)})
    return _Leaf(path, space)
