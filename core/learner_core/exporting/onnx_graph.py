"""An ONNX graph under construction, and the symbols that stand for its values.

Every symbol carries a sample, computed in numpy for a few rows, from which shapes and dtypes are read; axis 0 is the
batch, whose length stays open. What depends on constants alone is computed at once. Refuses branches on values, and
slices that ONNX could not make of a batch of any length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import EllipsisType
from typing import Any, ClassVar, TypeAlias

import numpy as np

from .. import numpy_xp
from ..errors import ConfigError
from ..xp import Array, DType

__all__ = ["OPEN", "OPSET", "ROWS", "Graph", "Symbol", "sample_of"]

OPSET = 18
#: Rows of the samples: a number that no layer's size is likely to equal by accident.
ROWS = 7
#: Length of the batch axis in what ``shape`` returns.
OPEN = -1


_Part: TypeAlias = int | slice | EllipsisType | None
#: Basic indexing.
_Index: TypeAlias = _Part | tuple[_Part, ...]


class Symbol:
    """A value in the graph: a name, a sample of what it will hold, and the graph it is in."""

    __array_priority__ = 1000  # numpy leaves operators with a symbol to the symbol

    def __init__(self, graph: Graph, name: str, sample: np.ndarray, *, constant: bool = False) -> None:
        self.graph = graph
        self.name = name
        self.sample = sample
        self.constant = constant

    @property
    def dtype(self) -> np.dtype:
        return self.sample.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        shape = tuple(self.sample.shape)
        return shape if self.constant or not shape else (OPEN, *shape[1:])

    @property
    def ndim(self) -> int:
        return self.sample.ndim

    def __getitem__(self, index: _Index) -> Symbol:
        return _index(self, index)

    def __neg__(self) -> Symbol:
        return self.graph.add("Neg", [self], -self.sample)

    def __add__(self, other: Array) -> Symbol:
        return self.graph.binary("Add", np.add, self, other)

    def __radd__(self, other: Array) -> Symbol:
        return self.graph.binary("Add", np.add, other, self)

    def __sub__(self, other: Array) -> Symbol:
        return self.graph.binary("Sub", np.subtract, self, other)

    def __rsub__(self, other: Array) -> Symbol:
        return self.graph.binary("Sub", np.subtract, other, self)

    def __mul__(self, other: Array) -> Symbol:
        return self.graph.binary("Mul", np.multiply, self, other)

    def __rmul__(self, other: Array) -> Symbol:
        return self.graph.binary("Mul", np.multiply, other, self)

    def __truediv__(self, other: Array) -> Symbol:
        return self.graph.binary("Div", np.divide, self, other)

    def __rtruediv__(self, other: Array) -> Symbol:
        return self.graph.binary("Div", np.divide, other, self)

    def __pow__(self, other: Array) -> Symbol:
        return self.graph.binary("Pow", np.power, self, other)

    def __matmul__(self, other: Array) -> Symbol:
        return self.graph.binary("MatMul", np.matmul, self, other)

    def __lt__(self, other: Array) -> Symbol:
        return self.graph.binary("Less", np.less, self, other)

    def __le__(self, other: Array) -> Symbol:
        return self.graph.binary("LessOrEqual", np.less_equal, self, other)

    def __gt__(self, other: Array) -> Symbol:
        return self.graph.binary("Greater", np.greater, self, other)

    def __ge__(self, other: Array) -> Symbol:
        return self.graph.binary("GreaterOrEqual", np.greater_equal, self, other)

    def __eq__(self, other: object) -> Any:
        return self.graph.binary("Equal", np.equal, self, other)

    def __ne__(self, other: object) -> Any:
        return self.graph.add("Not", [self == other], np.not_equal(self.sample, sample_of(other)))

    __hash__: ClassVar[None] = None  # type: ignore[assignment]  # == makes a symbol, as in every namespace

    def __bool__(self) -> bool:
        raise ConfigError("a module that branches on the value of an array cannot be exported to ONNX")


class Graph:
    """Nodes and constants of the graph under construction."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self._count = 0
        self._batch: Symbol | None = None

    def input(self, name: str, sample: np.ndarray) -> Symbol:
        """A symbol that the caller of the graph provides."""
        symbol = Symbol(self, name, sample)
        if self._batch is None:
            self._batch = symbol
        return symbol

    def constant(self, value: Array, name: str | None = None) -> Symbol:
        """A symbol for an array."""
        array = np.asarray(value)
        if name is None:
            self._count += 1
            name = f"constant_{self._count}"
        return Symbol(self, name, array, constant=True)

    def lift(self, value: Array, like: DType = None) -> Symbol:
        """``value`` as a symbol; a Python number takes the dtype of ``like``."""
        if isinstance(value, Symbol):
            return value
        if isinstance(value, bool | int | float) and like is not None:
            return self.constant(np.asarray(value, like))
        return self.constant(numpy_xp.asarray(value))

    def add(self, operation: str, inputs: Sequence[Array], sample: Array, **attributes: object) -> Symbol:
        """A node with one output."""
        sample = np.asarray(sample)
        symbols = [self.lift(value) for value in inputs]
        if all(symbol.constant for symbol in symbols):
            return self.constant(sample)
        return self.node(operation, symbols, [sample], **attributes)[0]

    def node(
        self, operation: str, inputs: Sequence[Symbol], samples: Sequence[Array], **attributes: object
    ) -> list[Symbol]:
        """A node with an output for every sample."""
        from onnx import helper

        for symbol in inputs:
            if symbol.constant:
                self.constants[symbol.name] = np.ascontiguousarray(symbol.sample).reshape(symbol.sample.shape)
        outputs = []
        for sample in samples:
            self._count += 1
            outputs.append(Symbol(self, f"{operation.lower()}_{self._count}", np.asarray(sample)))
        names = [symbol.name for symbol in inputs]
        self.nodes.append(helper.make_node(operation, names, [symbol.name for symbol in outputs], **attributes))
        return outputs

    def binary(self, operation: str, function: Callable[..., Array], x: Array, y: Array) -> Symbol:
        """An operation of two operands, either of which may be a Python number."""
        like = x.dtype if isinstance(x, Symbol) else y.dtype
        left, right = self.lift(x, like), self.lift(y, like)
        return self.add(operation, [left, right], function(left.sample, right.sample))

    def batch_size(self) -> Symbol:
        """int64[1]: the number of rows, known when the graph runs."""
        if self._batch is None:
            raise ConfigError("the graph has no input")
        shape = self.node("Shape", [self._batch], [np.asarray(self._batch.sample.shape, np.int64)])[0]
        first = [self.constant(np.asarray(value, np.int64)) for value in ([0], [1])]
        return self.node("Slice", [shape, *first], [np.asarray([ROWS], np.int64)])[0]


def sample_of(value: Array) -> Array:
    """The sample of a symbol, or the value itself."""
    return value.sample if isinstance(value, Symbol) else value


def _index(x: Symbol, index: _Index) -> Symbol:
    """Basic indexing: slices with step 1, integers, ``...`` and ``None``."""
    parts: list[Any] = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis not in parts:
        parts.append(Ellipsis)
    missing = x.ndim - sum(1 for part in parts if part is not None and part is not Ellipsis)
    at = parts.index(Ellipsis)
    parts[at : at + 1] = [slice(None)] * missing
    graph, out = x.graph, x
    axis, drop, insert, place = 0, [], [], 0
    for part in parts:
        if part is None:
            insert.append(place)
            place += 1
            continue
        length = x.sample.shape[axis]
        if isinstance(part, slice):
            first, last, step = part.indices(length)
            if step != 1 or (axis == 0 and not x.constant and part != slice(None)):
                raise ConfigError("only slices with step 1, and none of the batch axis, can be exported to ONNX")
            place += 1
        else:
            first, last = int(part) % length, int(part) % length + 1
            drop.append(axis)
        if (first, last) != (0, length):
            ends = [graph.constant(np.asarray([value], np.int64)) for value in (first, last, axis)]
            out = graph.add("Slice", [out, *ends], np.take(out.sample, range(first, last), axis))
        axis += 1
    if drop:
        axes = graph.constant(np.asarray(drop, np.int64))
        out = graph.add("Squeeze", [out, axes], np.squeeze(out.sample, tuple(drop)))
    if insert:
        axes = graph.constant(np.asarray(insert, np.int64))
        out = graph.add("Unsqueeze", [out, axes], np.expand_dims(out.sample, tuple(insert)))
    return out
