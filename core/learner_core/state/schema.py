"""What a state must be: declared once for each part, and checked for the whole tree before anything changes.

Needs nothing but numpy. A component describes its own state by its present structure (``state_schema()``), a larger one
puts the descriptions of its parts together, and whoever takes a state over calls ``check`` once, at the root. What is
refused is a ``StateError`` with the path, what was expected there, what came, and what to do. What one place alone
cannot say (rows that agree, a position within a length) is a rule: a function of the part whose fields fit already.

What is accepted as a number is what a state file gives back: Python's and numpy's; bool is no number.
docs/decisions/restoring.md says why.
"""

from __future__ import annotations

import contextlib
import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

from ..errors import StateError, did_you_mean
from .memory import in_blocks
from .tree import describe, join

__all__ = [
    "COUNT",
    "FLAG",
    "NAME",
    "NUMBER",
    "PLAIN",
    "SEED",
    "TEXT",
    "Also",
    "Anything",
    "Array",
    "Flag",
    "Int",
    "Items",
    "ListOf",
    "MapOf",
    "Nullable",
    "OneOf",
    "Plain",
    "Real",
    "Record",
    "Rule",
    "Schema",
    "Text",
    "as_array",
    "reason_of",
    "refuse",
    "under",
]

Rule = Callable[[Any, str], None]
"""(value that fits its schema, its path) -> None; raises a StateError where parts of it do not fit each other."""

#: What to do about a value that no run could have left.
_DAMAGED = "the state was changed or damaged; take an earlier one"
#: What to do about a part that a run of other settings might have.
_OTHER = "it is of other settings, or was changed; build with the settings it was saved with"


def refuse(path: str, expected: str, got: object, remedy: str = _DAMAGED) -> NoReturn:
    """Refuse a part of a state.

    Args:
        path: where it is.
        expected: what was expected there.
        got: what came, in words.
        remedy: what to do.

    Raises:
        StateError: always.
    """
    raise StateError(f"expected {expected}, got {got}: {remedy}", path=path or None)


@contextlib.contextmanager
def under(path: str) -> Iterator[None]:
    """Refusals in the block are of a part of a larger state, which stands at ``path`` there."""
    try:
        yield
    except StateError as error:
        if not path or type(error) is not StateError:
            raise
        text = str(error.args[0]).removeprefix(f"{error.path}: ")
        raise StateError(text, path=f"{path}/{error.path}" if error.path else path) from None


def reason_of(error: StateError) -> str:
    """What a refusal says, without its path and without the remedy."""
    text = str(error.args[0]).removeprefix(f"{error.path}: ")
    for remedy in (_DAMAGED, _OTHER):
        text = text.removesuffix(f": {remedy}")
    return text


def _shown(value: object) -> str:
    """A value in a few words, whatever it is."""
    if value is None or isinstance(value, (bool, str, bytes, numbers.Number)):
        text = describe(value) if isinstance(value, int) and abs(value) >= 1 << 128 else f"{value!r}"
        return text if len(text) <= 60 else f"{text[:57]}..."
    return describe(value)


class Schema(ABC):
    """What is expected in one place of a state."""

    @property
    @abstractmethod
    def expected(self) -> str:
        """In words."""

    @abstractmethod
    def check(self, value: object, path: str) -> None:
        """Refuse what is something else.

        Args:
            value: what came.
            path: where it is in the whole state.

        Raises:
            StateError: says the path, what was expected, what came, and what to do.
        """


@dataclass(frozen=True)
class Int(Schema):
    """An int from ``least`` to ``most``."""

    least: int = 0
    most: int = (1 << 63) - 1

    @property
    def expected(self) -> str:
        """In words."""
        if self.least == 0 and self.most & (self.most + 1) == 0:
            return f"a non-negative int below 2**{self.most.bit_length()}"
        return f"an int from {self.least} to {self.most}"

    def check(self, value: object, path: str) -> None:
        """As ``Schema.check``."""
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            refuse(path, self.expected, _shown(value))
        if not self.least <= int(value) <= self.most:
            refuse(path, self.expected, _shown(value))


@dataclass(frozen=True)
class Real(Schema):
    """A finite number from ``least`` to ``most``; ``below``: less than ``most``."""

    least: float = -math.inf
    most: float = math.inf
    below: bool = False

    @property
    def expected(self) -> str:
        """In words."""
        if self.most < math.inf:
            return f"a number from {self.least:g} to {'below ' if self.below else ''}{self.most:g}"
        return "a finite number" if self.least == -math.inf else f"a finite number of at least {self.least:g}"

    def check(self, value: object, path: str) -> None:
        """As ``Schema.check``."""
        if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
            refuse(path, self.expected, _shown(value))
        try:
            number = float(value)
        except OverflowError:
            refuse(path, self.expected, _shown(value))
        if not (math.isfinite(number) and self.least <= number <= self.most) or (self.below and number >= self.most):
            refuse(path, self.expected, _shown(value))


@dataclass(frozen=True)
class Flag(Schema):
    """A bool."""

    @property
    def expected(self) -> str:
        """In words."""
        return "a bool"

    def check(self, value: object, path: str) -> None:
        """As ``Schema.check``."""
        if not isinstance(value, (bool, np.bool_)):
            refuse(path, self.expected, _shown(value))


@dataclass(frozen=True)
class Text(Schema):
    """A str; ``fits`` says which ones, ``what`` how they are called."""

    what: str = "a str"
    fits: Callable[[str], bool] | None = None

    @property
    def expected(self) -> str:
        """In words."""
        return self.what

    def check(self, value: object, path: str) -> None:
        """As ``Schema.check``."""
        if not isinstance(value, str) or (self.fits is not None and not self.fits(value)):
            refuse(path, self.what, _shown(value))


@dataclass(frozen=True)
class OneOf(Schema):
    """One of a few plain values, of the same type."""

    values: tuple[Any, ...]
    remedy: str = _OTHER

    @property
    def expected(self) -> str:
        """In words."""
        return " or ".join(repr(value) for value in self.values)

    def check(self, value: object, path: str) -> None:
        """As ``Schema.check``."""
        plain = value.item() if isinstance(value, np.generic) else value
        if not any(type(plain) is type(known) and plain == known for known in self.values):
            refuse(path, self.expected, _shown(value), self.remedy)


@dataclass(frozen=True)
class Anything(Schema):
    """Whatever its owner takes."""

    @property
    def expected(self) -> str:
        """In words."""
        return "anything"

    def check(self, value: object, path: str) -> None:
        """As ``Schema.check``."""


@dataclass(frozen=True)
class Plain(Schema):
    """Whatever a state file may hold, of any structure."""

    @property
    def expected(self) -> str:
        """In words."""
        return "plain data"

    def check(self, value: object, path: str) -> None:
        """As ``Schema.check``."""
        if type(value) is dict:
            for key, item in value.items():
                if not isinstance(key, (str, int)):
                    refuse(path, "keys that are str or int", _shown(key))
                self.check(item, join(path, key))
        elif type(value) is list:
            for index, item in enumerate(value):
                self.check(item, join(path, index, index=True))
        elif isinstance(value, (np.ndarray, np.generic)):
            if value.dtype.hasobject:
                refuse(path, "an array of numbers", f"an array of dtype {value.dtype}")
        elif value is not None and type(value) not in (bool, int, float, str, bytes):
            refuse(path, self.expected, f"{type(value).__module__}.{type(value).__qualname__}")


@dataclass(frozen=True)
class Nullable(Schema):
    """None, or what ``schema`` says."""

    schema: Schema

    @property
    def expected(self) -> str:
        """In words."""
        return f"None or {self.schema.expected}"

    def check(self, value: object, path: str) -> None:
        """As ``Schema.check``."""
        if value is not None:
            self.schema.check(value, path)


@dataclass(frozen=True)
class Also(Schema):
    """What ``schema`` says, and a rule of the one who asks."""

    schema: Schema
    rule: Rule

    @property
    def expected(self) -> str:
        """In words."""
        return self.schema.expected

    def check(self, value: object, path: str) -> None:
        """As ``Schema.check``."""
        self.schema.check(value, path)
        self.rule(value, path)


@dataclass(frozen=True)
class Record(Schema):
    """A dict with named entries.

    Attributes:
        fields: name -> what is expected there.
        optional: names that may be missing: states of earlier versions do not have them.
        is_open: other entries are their owner's affair: a subclass's own, say. They are not looked at.
        rule: what the entries must be to each other.
        what: how it is called.
    """

    fields: Mapping[str, Schema]
    optional: Collection[str] = ()
    is_open: bool = False
    rule: Rule | None = None
    what: str = "a dict"

    @property
    def expected(self) -> str:
        """In words."""
        return f"{self.what} of {', '.join(self.fields)}" if len(self.fields) <= 8 else self.what

    def check(self, value: object, path: str) -> None:
        """As ``Schema.check``."""
        if not isinstance(value, Mapping):
            refuse(path, self.expected, _shown(value))
        for name, schema in self.fields.items():
            if name not in value and name not in self.optional:
                raise StateError(f"missing; expected {schema.expected}: {_OTHER}", path=join(path, name))
        for key in value:
            if key not in self.fields and not self.is_open:
                place = join(path, key) if isinstance(key, (str, int)) else path
                raise StateError(f"unknown entry.{did_you_mean(key, self.fields)}", path=place or None)
        for name, schema in self.fields.items():
            if name in value:
                schema.check(value[name], join(path, name))
        if self.rule is not None:
            self.rule(value, path)


@dataclass(frozen=True)
class MapOf(Schema):
    """A dict of equal things by name.

    Attributes:
        value: what each is.
        known: the names there may be; ``None``: any.
        rule: what the entries must be to each other.
    """

    value: Schema
    known: Collection[str] | None = None
    rule: Rule | None = None

    @property
    def expected(self) -> str:
        """In words."""
        return f"a dict of {self.value.expected} by name"

    def check(self, value: object, path: str) -> None:
        """As ``Schema.check``."""
        if not isinstance(value, Mapping):
            refuse(path, self.expected, _shown(value))
        for key, item in value.items():
            if not isinstance(key, str):
                refuse(path, "names", _shown(key))
            place = join(path, key)
            if self.known is not None and key not in self.known:
                raise StateError(f"unknown entry.{did_you_mean(key, self.known)}", path=place)
            self.value.check(item, place)
        if self.rule is not None:
            self.rule(value, path)


@dataclass(frozen=True)
class ListOf(Schema):
    """A list of equal things; ``length`` of them, if that is known."""

    item: Schema
    length: int | None = None
    rule: Rule | None = None

    @property
    def expected(self) -> str:
        """In words."""
        number = "" if self.length is None else f"{self.length} times "
        return f"a list of {number}{self.item.expected}"

    def check(self, value: object, path: str) -> None:
        """As ``Schema.check``."""
        if not isinstance(value, (list, tuple)):
            refuse(path, self.expected, _shown(value))
        if self.length is not None and len(value) != self.length:
            refuse(path, self.expected, f"{len(value)} entries", _OTHER)
        for index, item in enumerate(value):
            self.item.check(item, join(path, index, index=True))
        if self.rule is not None:
            self.rule(value, path)


@dataclass(frozen=True)
class Items(Schema):
    """A list in which every place has a meaning of its own; the last ``optional`` ones may be missing."""

    items: Sequence[Schema]
    optional: int = 0
    rule: Rule | None = None

    @property
    def expected(self) -> str:
        """In words."""
        return f"[{', '.join(item.expected for item in self.items)}]"

    def check(self, value: object, path: str) -> None:
        """As ``Schema.check``."""
        if not isinstance(value, (list, tuple)):
            refuse(path, self.expected, _shown(value))
        if not len(self.items) - self.optional <= len(value) <= len(self.items):
            refuse(path, self.expected, f"{len(value)} entries")
        for index, (item, schema) in enumerate(zip(value, self.items, strict=False)):
            schema.check(item, join(path, index, index=True))
        if self.rule is not None:
            self.rule(value, path)


@dataclass(frozen=True)
class Array(Schema):
    """An array of numbers, or what numpy makes one of.

    Attributes:
        shape: None in it: any length; ``None``: any shape.
        dtype: what it is converted to where it is taken over: what would lose its meaning there (fractions in an int
            array, 300 in a byte) is refused.
        least: no value is smaller.
        most: no value is further from 0: what is computed with it must not overflow.
        finite: NaN and infinities are refused; ``False`` for what may hold them in an honest run.
        allow_inf: infinities are honest, NaN is not.
        rule: what the values must be to each other.
        exactly: dtypes of which it must have one, for it is taken over in its own.
    """

    shape: tuple[int | None, ...] | None
    dtype: Any = field(default=np.float64)
    least: float | None = None
    most: float | None = None
    finite: bool = True
    allow_inf: bool = False
    rule: Rule | None = None
    exactly: tuple[Any, ...] = ()

    @property
    def expected(self) -> str:
        """In words."""
        kind = "numbers" if self.dtype is None else np.dtype(self.dtype).name
        shape = "any shape" if self.shape is None else f"shape {tuple('?' if n is None else n for n in self.shape)}"
        return f"an array of {kind} of {shape}".replace("'", "")

    def check(self, value: object, path: str) -> None:
        """As ``Schema.check``."""
        array = as_array(value, path, self.expected)
        shape = self.shape
        if shape is not None and (
            len(shape) != array.ndim or any(n is not None and n != m for n, m in zip(shape, array.shape, strict=True))
        ):
            wanted = str(tuple("?" if n is None else n for n in shape)).replace("'", "")
            refuse(path, f"shape {wanted}", str(array.shape), _OTHER)
        if self.exactly and not isinstance(value, np.ndarray):
            refuse(path, self.expected, _shown(value))
        if self.exactly and array.dtype.newbyteorder("=") not in {np.dtype(dtype) for dtype in self.exactly}:
            refuse(path, f"dtype {' or '.join(np.dtype(d).name for d in self.exactly)}", str(array.dtype), _OTHER)
        if self.dtype is not None:
            self._check_cast(array, np.dtype(self.dtype), path)
        self._check_values(array, path)
        if self.rule is not None:
            self.rule(array, path)

    def _check_cast(self, array: np.ndarray, target: np.dtype, path: str) -> None:
        """Refuse a dtype that cannot stand for the target, and integers that do not fit."""
        own = array.dtype
        if own == target or not array.size:
            return
        wide = {"b": "b", "u": "bui", "i": "bui"}.get(target.kind)
        if wide is not None and own.kind not in wide:
            refuse(path, self.expected, f"dtype {own}", _OTHER)
        if target.kind in "ui" and own.kind in "ui":
            limits = np.iinfo(target)
            low, high = int(array.min()), int(array.max())
            if low < limits.min or high > limits.max:
                refuse(path, self.expected, f"values from {low} to {high}")

    def _check_values(self, array: np.ndarray, path: str) -> None:
        floating = array.dtype.kind not in "uib"
        narrow = floating and self.dtype is not None and np.dtype(self.dtype).itemsize < array.dtype.itemsize
        if array.size and floating and self.finite:
            largest = float(np.finfo(np.dtype(self.dtype)).max) if narrow and np.dtype(self.dtype).kind == "f" else None
            for block in in_blocks(array):
                self._check_block(block, largest, path)
        if array.size and self.most is not None:
            for block in in_blocks(array):
                high = np.abs(block).max()
                if high > self.most:
                    refuse(path, f"values of at most {self.most:g}", f"{high!s}")
        if array.size and self.least is not None:
            for block in in_blocks(array):
                low = block.min()
                if low < self.least:
                    refuse(path, f"values of at least {self.least:g}", f"{low!s}")

    def _check_block(self, block: np.ndarray, largest: float | None, path: str) -> None:
        # The sum is one pass without a temporary; only where it is not finite the exact check runs.
        with np.errstate(all="ignore"):
            if largest is None and np.isfinite(block.sum()):
                return
            bad = np.isnan(block) if self.allow_inf else ~np.isfinite(block)
            if largest is not None and not self.allow_inf:
                bad |= np.abs(block) > largest
        if bad.any():
            what = "no NaN" if self.allow_inf else "finite values"
            refuse(path, what, f"{block[bad].flat[0]!s} in {int(bad.sum())} place(s)")


def as_array(value: object, path: str, expected: str = "an array of numbers") -> np.ndarray:
    """``value`` as a numpy array of real numbers, nothing copied where it is one.

    Raises:
        StateError: it is none; says the path.
    """
    if isinstance(value, (str, bytes, Mapping)) or value is None:
        refuse(path, expected, _shown(value))
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:
        refuse(path, expected, f"{describe(value)} ({error})")
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        refuse(path, expected, f"dtype {array.dtype}")
    return array


#: A counter: of updates, say, each of which has 4,096 steps of noise of its own, counted in 64 bits.
COUNT = Int(most=(1 << 52) - 1)
#: What random numbers are drawn from.
SEED = Int(most=(1 << 128) - 1)
NUMBER = Real()
FLAG = Flag()
TEXT = Text()
PLAIN = Plain()
#: A name that is not empty.
NAME = Text("a name", bool)
