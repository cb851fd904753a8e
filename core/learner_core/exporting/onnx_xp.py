"""The array namespace that writes down what is computed, as an ONNX graph.

A module over ``xp`` run with this namespace and a symbol for the observations leaves a graph behind: any portable
module can be exported, whatever its structure. Refuses what has no counterpart (``scan``, gradients), by name.
docs/decisions/exports.md says why.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import numpy_xp
from ..errors import ConfigError
from ..xp import Array, Axis, DType, Shape
from .onnx_graph import OPEN, ROWS, Graph, Symbol, sample_of

__all__ = ["OnnxNamespace"]

#: xp name -> ONNX operator, where they mean the same for one operand.
_UNARY: Mapping[str, str] = {
    "abs": "Abs",
    "exp": "Exp",
    "log": "Log",
    "sqrt": "Sqrt",
    "sign": "Sign",
    "floor": "Floor",
    "sin": "Sin",
    "cos": "Cos",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "softplus": "Softplus",
    "erf": "Erf",
    "relu": "Relu",
    "elu": "Elu",
    "isnan": "IsNaN",
    "logical_not": "Not",
}
_BINARY: Mapping[str, str] = {
    "pow": "Pow",
    "maximum": "Max",
    "minimum": "Min",
    "logical_and": "And",
    "logical_or": "Or",
    "matmul": "MatMul",
}
_REDUCTIONS: Mapping[str, str] = {
    "sum": "ReduceSum",
    "mean": "ReduceMean",
    "max": "ReduceMax",
    "min": "ReduceMin",
    "prod": "ReduceProd",
    "logsumexp": "ReduceLogSumExp",
}


class OnnxNamespace:
    """``xp`` over :class:`Symbol`; functions and dtypes as in :class:`learner_core.xp.Namespace`.

    Args:
        graph: where the nodes go.
    """

    name = "onnx"
    float32: np.dtype[np.float32] = numpy_xp.float32
    float64: np.dtype[np.float64] = numpy_xp.float64
    int32: np.dtype[np.int32] = numpy_xp.int32
    int64: np.dtype[np.int64] = numpy_xp.int64
    uint8: np.dtype[np.uint8] = numpy_xp.uint8
    bool: np.dtype[np.bool_] = numpy_xp.bool

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def __getattr__(self, name: str) -> Any:
        function = getattr(numpy_xp, name, None)
        if name.startswith("_") or function is None:
            raise AttributeError(name)
        graph = self._graph
        if name in _UNARY:
            return lambda x: graph.add(_UNARY[name], [x], function(sample_of(x)))
        if name in _BINARY:
            return lambda x, y: graph.binary(_BINARY[name], function, x, y)
        if name in _REDUCTIONS:
            return lambda x, axis=None, keepdims=False: self._reduce(name, x, axis, keepdims)
        raise ConfigError(f"xp.{name} has no counterpart in ONNX: this module cannot be exported to it")

    # ---- creation and conversion

    def asarray(self, x: Array, dtype: DType = None) -> Symbol:
        symbol = self._graph.lift(x)
        return symbol if dtype is None else self.astype(symbol, dtype)

    def full(self, shape: Shape, value: Array, dtype: DType = numpy_xp.float32) -> Symbol:
        return self.broadcast_to(self.astype(self._graph.lift(value), dtype), shape)

    def zeros(self, shape: Shape, dtype: DType = numpy_xp.float32) -> Symbol:
        return self.full(shape, 0, dtype)

    def ones(self, shape: Shape, dtype: DType = numpy_xp.float32) -> Symbol:
        return self.full(shape, 1, dtype)

    def full_like(self, x: Symbol, value: Array, dtype: DType = None) -> Symbol:
        return self.full(x.shape, value, dtype or x.dtype)

    def zeros_like(self, x: Symbol, dtype: DType = None) -> Symbol:
        return self.full_like(x, 0, dtype)

    def ones_like(self, x: Symbol, dtype: DType = None) -> Symbol:
        return self.full_like(x, 1, dtype)

    def arange(self, n: int, dtype: DType = numpy_xp.int64) -> Symbol:
        return self._graph.constant(np.arange(n, dtype=dtype))

    def astype(self, x: Array, dtype: DType) -> Symbol:
        from onnx import helper

        symbol = self._graph.lift(x)
        if symbol.dtype == dtype:
            return symbol
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self._graph.add("Cast", [symbol], symbol.sample.astype(dtype), to=kind)

    def shape(self, x: Array) -> tuple[int, ...]:
        return x.shape if isinstance(x, Symbol) else tuple(np.shape(x))

    def stop_gradient(self, x: Array) -> Array:
        return x

    # ---- elementwise

    def square(self, x: Array) -> Array:
        return x * x

    def log1p(self, x: Array) -> Array:
        return self.log(x + 1.0)

    def expm1(self, x: Array) -> Array:
        return self.exp(x) - 1.0

    def gelu(self, x: Array) -> Array:
        return x * 0.5 * (self.erf(x * math.sqrt(0.5)) + 1.0)

    def silu(self, x: Array) -> Array:
        return x * self.sigmoid(x)

    def leaky_relu(self, x: Symbol, negative_slope: float = 0.01) -> Symbol:
        sample = numpy_xp.leaky_relu(x.sample, negative_slope)
        return self._graph.add("LeakyRelu", [x], sample, alpha=float(negative_slope))

    def clip(self, x: Array, lo: Array = None, hi: Array = None) -> Array:
        x = x if lo is None else self.maximum(x, lo)
        return x if hi is None else self.minimum(x, hi)

    def where(self, condition: Symbol, x: Array, y: Array) -> Symbol:
        like = next((value.dtype for value in (x, y) if isinstance(value, Symbol)), None)
        left, right = self._graph.lift(x, like), self._graph.lift(y, like)
        sample = np.where(condition.sample, left.sample, right.sample)
        return self._graph.add("Where", [condition, left, right], sample)

    def isfinite(self, x: Symbol) -> Array:
        infinite = self._graph.add("IsInf", [x], np.isinf(x.sample))
        return self.logical_not(self.logical_or(infinite, self.isnan(x)))

    # ---- reductions

    def _reduce(self, name: str, x: Symbol, axis: Axis, keepdims: builtins.bool) -> Symbol:
        axes = range(x.ndim) if axis is None else [axis] if isinstance(axis, int) else axis
        positive = [int(a) % x.ndim for a in axes]
        if 0 in positive and not x.constant:
            raise ConfigError(f"xp.{name} over the batch axis: this module cannot be exported to ONNX")
        if name in ("sum", "prod") and x.dtype.kind in "bui":
            x = self.astype(x, self.int64)
        sample = getattr(numpy_xp, name)(x.sample, axis=tuple(positive), keepdims=keepdims)
        where = self._graph.constant(np.asarray(positive, np.int64))
        return self._graph.add(_REDUCTIONS[name], [x, where], sample, keepdims=int(keepdims))

    def any(self, x: Symbol, axis: Axis = None, keepdims: builtins.bool = False) -> Symbol:
        return self._reduce("max", self.astype(x, self.int32), axis, keepdims) > 0

    def all(self, x: Symbol, axis: Axis = None, keepdims: builtins.bool = False) -> Symbol:
        return self._reduce("min", self.astype(x, self.int32), axis, keepdims) > 0

    def argmax(self, x: Symbol, axis: int) -> Symbol:
        return self._graph.add("ArgMax", [x], np.argmax(x.sample, axis), axis=axis % x.ndim, keepdims=0)

    def cumulative_sum(self, x: Symbol, axis: int) -> Symbol:
        if x.dtype.kind in "bui":
            x = self.astype(x, self.int64)
        where = self._graph.constant(np.asarray(axis % x.ndim, np.int64))
        return self._graph.add("CumSum", [x, where], np.cumsum(x.sample, axis))

    # ---- shape

    def reshape(self, x: Array, shape: Shape) -> Symbol:
        x = self._graph.lift(x)
        sizes = [shape] if isinstance(shape, int) else [int(size) for size in shape]
        if x.constant:
            return self._graph.constant(x.sample.reshape(sizes))
        if not sizes or sizes[0] not in (OPEN, ROWS):
            raise ConfigError(f"xp.reshape to {tuple(sizes)} moves the batch axis: this module cannot be exported")
        sample = x.sample.reshape([ROWS, *sizes[1:]])
        target = self._graph.constant(np.asarray([0, *sample.shape[1:]], np.int64))
        return self._graph.add("Reshape", [x, target], sample)

    def permute_dims(self, x: Symbol, axes: Sequence[int]) -> Symbol:
        if axes[0] != 0 and not x.constant:
            raise ConfigError("xp.permute_dims of the batch axis: this module cannot be exported to ONNX")
        return self._graph.add("Transpose", [x], np.transpose(x.sample, axes), perm=[int(a) for a in axes])

    def expand_dims(self, x: Symbol, axis: int) -> Symbol:
        place = axis % (x.ndim + 1)
        axes = self._graph.constant(np.asarray([place], np.int64))
        return self._graph.add("Unsqueeze", [x, axes], np.expand_dims(x.sample, place))

    def squeeze(self, x: Symbol, axis: int | tuple[int, ...]) -> Symbol:
        places = [int(a) % x.ndim for a in ([axis] if isinstance(axis, int) else axis)]
        axes = self._graph.constant(np.asarray(places, np.int64))
        return self._graph.add("Squeeze", [x, axes], np.squeeze(x.sample, tuple(places)))

    def concat(self, arrays: Sequence[Array], axis: int) -> Symbol:
        symbols = [self._graph.lift(value) for value in arrays]
        sample = np.concatenate([symbol.sample for symbol in symbols], axis)
        return self._graph.add("Concat", symbols, sample, axis=axis % sample.ndim)

    def stack(self, arrays: Sequence[Array], axis: int) -> Symbol:
        place = axis % (self._graph.lift(arrays[0]).ndim + 1)
        return self.concat([self.expand_dims(self._graph.lift(value), place) for value in arrays], place)

    def split(self, x: Symbol, sizes: Sequence[int], axis: int) -> list[Symbol]:
        parts = numpy_xp.split(x.sample, list(sizes), axis)
        if x.constant:
            return [self._graph.constant(part) for part in parts]
        lengths = self._graph.constant(np.asarray(sizes, np.int64))
        return self._graph.node("Split", [x, lengths], parts, axis=axis % x.ndim)

    def broadcast_to(self, x: Array, shape: Shape) -> Symbol:
        x = self._graph.lift(x)
        sizes = [shape] if isinstance(shape, int) else list(shape)
        if x.constant and OPEN not in sizes:
            return self._graph.constant(np.broadcast_to(x.sample, sizes))
        if sizes[1:] and OPEN in sizes[1:]:
            raise ConfigError("xp.broadcast_to with the batch anywhere but first: this module cannot be exported")
        rest = self._graph.constant(np.asarray(sizes[1:], np.int64))
        whole = np.asarray([ROWS, *sizes[1:]], np.int64)
        target = self._graph.node("Concat", [self._graph.batch_size(), rest], [whole], axis=0)[0]
        return self._graph.node("Expand", [x, target], [np.broadcast_to(x.sample, whole)])[0]

    def take(self, x: Array, indices: Array, axis: int) -> Symbol:
        x, indices = self._graph.lift(x), self._graph.lift(indices)
        return self._graph.add("Gather", [x, indices], np.take(x.sample, indices.sample, axis), axis=axis % x.ndim)

    def take_along_axis(self, x: Symbol, indices: Symbol, axis: int) -> Symbol:
        sample = np.take_along_axis(x.sample, indices.sample, axis)
        return self._graph.add("GatherElements", [x, indices], sample, axis=axis % x.ndim)

    # ---- linear algebra and layers

    def einsum(self, equation: str, *operands: Array) -> Symbol:
        symbols = [self._graph.lift(value) for value in operands]
        sample = np.einsum(equation, *[symbol.sample for symbol in symbols])
        return self._graph.add("Einsum", symbols, sample, equation=equation)

    def linear(self, x: Symbol, w: Symbol, b: Symbol | None = None) -> Symbol:
        if x.ndim == 2:
            sample = numpy_xp.linear(x.sample, w.sample, None if b is None else b.sample)
            return self._graph.add("Gemm", [x, w] if b is None else [x, w, b], sample, transB=1)
        y: Symbol = self.matmul(x, self._graph.constant(w.sample.T))
        return y if b is None else y + b

    def conv2d(
        self,
        x: Symbol,
        w: Symbol,
        b: Symbol | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
    ) -> Symbol:
        strides = [stride, stride] if isinstance(stride, int) else list(stride)
        above, beside = (padding, padding) if isinstance(padding, int) else padding
        y = numpy_xp.conv2d(x.sample, w.sample, None if b is None else b.sample, stride, padding)
        maps = self.permute_dims(x, (0, 3, 1, 2))
        inputs = [maps, w] if b is None else [maps, w, b]
        pads = [above, beside, above, beside]
        out = self._graph.add("Conv", inputs, y.transpose(0, 3, 1, 2), strides=strides, pads=pads)
        return self.permute_dims(out, (0, 2, 3, 1))

    def layer_norm(self, x: Symbol, w: Array, b: Array, eps: float = 1e-5) -> Array:
        centred = x - self.mean(x, axis=-1, keepdims=True)
        y = centred / self.sqrt(self.mean(centred * centred, axis=-1, keepdims=True) + eps)
        y = y if w is None else y * w
        return y if b is None else y + b

    def embedding(self, indices: Symbol, w: Symbol) -> Symbol:
        return self.take(w, indices, 0)

    def softmax(self, x: Symbol, axis: int) -> Symbol:
        return self._graph.add("Softmax", [x], numpy_xp.softmax(x.sample, axis), axis=axis % x.ndim)

    def log_softmax(self, x: Symbol, axis: int) -> Symbol:
        return self._graph.add("LogSoftmax", [x], numpy_xp.log_softmax(x.sample, axis), axis=axis % x.ndim)

    def one_hot(self, x: Symbol, n: int, dtype: DType = numpy_xp.float32) -> Symbol:
        return self.astype(self.expand_dims(x, -1) == self._graph.constant(np.arange(n, dtype=x.dtype)), dtype)
