"""The namespace ``xp`` over numpy: for inference without a framework, and the reference the others are tested by.

Documented in :class:`learner_core.xp.Namespace`. It does not differentiate: ``value_and_grad`` raises. Results keep the
dtype of their input (float32 stays float32), and the functions that are stable by definition never warn of overflow.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .errors import LearnerCoreError
from .xp import Array, Axis, DType, Shape, map_tree

__all__ = [
    "abs",
    "all",
    "any",
    "arange",
    "argmax",
    "asarray",
    "astype",
    "bool",
    "broadcast_to",
    "clip",
    "concat",
    "conv2d",
    "cos",
    "cumulative_sum",
    "dropout",
    "einsum",
    "elu",
    "embedding",
    "erf",
    "exp",
    "expand_dims",
    "expm1",
    "flip",
    "float32",
    "float64",
    "floor",
    "full",
    "full_like",
    "gelu",
    "int32",
    "int64",
    "isfinite",
    "isnan",
    "layer_norm",
    "leaky_relu",
    "linear",
    "log",
    "log1p",
    "log_softmax",
    "logical_and",
    "logical_not",
    "logical_or",
    "logsumexp",
    "matmul",
    "max",
    "maximum",
    "mean",
    "min",
    "minimum",
    "name",
    "one_hot",
    "ones",
    "ones_like",
    "permute_dims",
    "pow",
    "prod",
    "relu",
    "reshape",
    "scan",
    "shape",
    "sigmoid",
    "sign",
    "silu",
    "sin",
    "softmax",
    "softplus",
    "split",
    "sqrt",
    "square",
    "squeeze",
    "stack",
    "stop_gradient",
    "sum",
    "take",
    "take_along_axis",
    "tanh",
    "uint8",
    "value_and_grad",
    "where",
    "zeros",
    "zeros_like",
]

name = "numpy"
float32: np.dtype[np.float32] = np.dtype("float32")
float64: np.dtype[np.float64] = np.dtype("float64")
int32: np.dtype[np.int32] = np.dtype("int32")
int64: np.dtype[np.int64] = np.dtype("int64")
uint8: np.dtype[np.uint8] = np.dtype("uint8")
bool: np.dtype[np.bool_] = np.dtype("bool")

# ---- creation and conversion ----------------------------------------------------------------------------------------


def asarray(x: Any, /, dtype: DType = None) -> Array:
    if dtype is None and not isinstance(x, (np.ndarray, np.generic)):
        array = np.asarray(x)
        return array.astype(float32) if array.dtype == float64 else array
    return np.asarray(x, dtype=dtype)


def zeros(shape: Shape, /, dtype: DType = float32) -> Array:
    return np.zeros(shape, dtype)


def ones(shape: Shape, /, dtype: DType = float32) -> Array:
    return np.ones(shape, dtype)


def full(shape: Shape, value: Any, /, dtype: DType = float32) -> Array:
    return np.full(shape, value, dtype)


def zeros_like(x: Array, /, dtype: DType = None) -> Array:
    return np.zeros_like(x, dtype)


def ones_like(x: Array, /, dtype: DType = None) -> Array:
    return np.ones_like(x, dtype)


def full_like(x: Array, value: Any, /, dtype: DType = None) -> Array:
    return np.full_like(x, value, dtype)


def arange(n: int, /, dtype: DType = int64) -> Array:
    return np.arange(n, dtype=dtype)


def astype(x: Array, dtype: DType, /) -> Array:
    return np.asarray(x).astype(dtype, copy=False)


def shape(x: Array, /) -> tuple[int, ...]:
    return np.shape(x)


# ---- elementwise ----------------------------------------------------------------------------------------------------

abs: np.ufunc = np.abs
exp: np.ufunc = np.exp
log: np.ufunc = np.log
log1p: np.ufunc = np.log1p
expm1: np.ufunc = np.expm1
sqrt: np.ufunc = np.sqrt
square: np.ufunc = np.square
sign: np.ufunc = np.sign
floor: np.ufunc = np.floor
sin: np.ufunc = np.sin
cos: np.ufunc = np.cos
tanh: np.ufunc = np.tanh
pow: np.ufunc = np.power
maximum: np.ufunc = np.maximum
minimum: np.ufunc = np.minimum
isfinite: np.ufunc = np.isfinite
isnan: np.ufunc = np.isnan
logical_and: np.ufunc = np.logical_and
logical_or: np.ufunc = np.logical_or
logical_not: np.ufunc = np.logical_not

# math.erf is correctly rounded to within one unit and, called per element, as fast as a polynomial that equals it.
_erf64 = np.vectorize(math.erf, otypes=[np.float64])


def sigmoid(x: Array, /) -> Array:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


def softplus(x: Array, /) -> Array:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def erf(x: Array, /) -> Array:
    return _erf64(x).astype(np.asarray(x).dtype, copy=False)


def relu(x: Array, /) -> Array:
    return np.maximum(x, 0)


def elu(x: Array, /) -> Array:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def gelu(x: Array, /) -> Array:
    return 0.5 * x * (1 + erf(x * math.sqrt(0.5)))


def silu(x: Array, /) -> Array:
    return x * sigmoid(x)


def leaky_relu(x: Array, /, negative_slope: float = 0.01) -> Array:
    return np.where(x > 0, x, negative_slope * x)


def clip(x: Array, /, lo: Any = None, hi: Any = None) -> Array:
    return astype(np.clip(x, lo, hi), x.dtype)


def where(condition: Array, x: Any, y: Any, /) -> Array:
    if isinstance(x, (int, float)) and isinstance(y, (int, float)):
        return asarray(np.where(condition, x, y).tolist())
    return np.where(condition, x, y)


# ---- reductions -----------------------------------------------------------------------------------------------------


def _accumulator(x: Array) -> DType:
    return int64 if np.asarray(x).dtype.kind in "bui" else None


def sum(x: Array, /, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
    return np.sum(x, axis=axis, keepdims=keepdims, dtype=_accumulator(x))


def mean(x: Array, /, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
    if x.dtype.kind in "bui":
        raise LearnerCoreError(f"mean needs a floating array, got dtype={x.dtype}: convert it by xp.astype first")
    return np.mean(x, axis=axis, keepdims=keepdims)


def max(x: Array, /, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
    return np.max(x, axis=axis, keepdims=keepdims)


def min(x: Array, /, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
    return np.min(x, axis=axis, keepdims=keepdims)


def prod(x: Array, /, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
    return np.prod(x, axis=axis, keepdims=keepdims, dtype=_accumulator(x))


def any(x: Array, /, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
    return np.any(x, axis=axis, keepdims=keepdims)


def all(x: Array, /, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
    return np.all(x, axis=axis, keepdims=keepdims)


def logsumexp(x: Array, /, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
    top = np.max(x, axis=axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0)
    with np.errstate(divide="ignore"):  # every element -inf: the answer is -inf
        result = np.log(np.sum(np.exp(x - top), axis=axis, keepdims=True)) + top
    return result if keepdims else np.squeeze(result, axis=axis)


def argmax(x: Array, /, axis: int) -> Array:
    return np.argmax(x, axis=axis)


def cumulative_sum(x: Array, /, axis: int) -> Array:
    return np.cumsum(x, axis=axis, dtype=_accumulator(x))


# ---- shape ----------------------------------------------------------------------------------------------------------

reshape: Callable[[Array, Shape], Array] = np.reshape
permute_dims: Callable[[Array, Sequence[int]], Array] = np.transpose
broadcast_to: Callable[[Array, Shape], Array] = np.broadcast_to


def expand_dims(x: Array, /, axis: int) -> Array:
    return np.expand_dims(x, axis)


def squeeze(x: Array, /, axis: int | tuple[int, ...]) -> Array:
    return np.squeeze(x, axis)


def concat(arrays: Sequence[Array], /, axis: int) -> Array:
    return np.concatenate(arrays, axis)


def stack(arrays: Sequence[Array], /, axis: int) -> Array:
    return np.stack(arrays, axis)


def split(x: Array, sizes: Sequence[int], /, axis: int) -> list[Array]:
    if builtins.sum(sizes) != x.shape[axis]:
        raise LearnerCoreError(f"split sizes={list(sizes)} must add up to {x.shape[axis]}, the length of axis {axis}")
    return np.split(x, np.cumsum(sizes)[:-1], axis)


def flip(x: Array, /, axis: int) -> Array:
    return np.flip(x, axis)


def take(x: Array, indices: Array, /, axis: int) -> Array:
    return np.take(x, indices, axis)


def take_along_axis(x: Array, indices: Array, /, axis: int) -> Array:
    return np.take_along_axis(x, indices, axis)


# ---- linear algebra and layers --------------------------------------------------------------------------------------

matmul: np.ufunc = np.matmul
einsum: Callable[..., Array] = np.einsum


def linear(x: Array, w: Array, b: Array | None = None, /) -> Array:
    y = np.matmul(x, w.T)
    return y if b is None else y + b


def conv2d(
    x: Array,
    w: Array,
    b: Array | None = None,
    /,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
) -> Array:
    vertical, horizontal = (stride, stride) if isinstance(stride, int) else stride
    above, beside = (padding, padding) if isinstance(padding, int) else padding
    if above or beside:
        x = np.pad(x, ((0, 0), (above, above), (beside, beside), (0, 0)))
    outputs, _, kernel_height, kernel_width = w.shape
    windows = sliding_window_view(x, (kernel_height, kernel_width), axis=(1, 2))[:, ::vertical, ::horizontal]
    patches = windows.transpose(0, 1, 2, 4, 5, 3)  # kernel rows, kernel columns, inputs: runs as long as x has them
    size = math.prod(patches.shape[3:])
    y = patches.reshape(-1, size) @ w.transpose(2, 3, 1, 0).reshape(size, outputs)
    y = y.reshape(*patches.shape[:3], outputs)
    return y if b is None else y + b


def layer_norm(x: Array, w: Array | None, b: Array | None, /, eps: float = 1e-5) -> Array:
    centred = x - np.mean(x, axis=-1, keepdims=True)
    y = centred / np.sqrt(np.mean(np.square(centred), axis=-1, keepdims=True) + eps)
    if w is not None:
        y = y * w
    return y if b is None else y + b


def embedding(indices: Array, w: Array, /) -> Array:
    return np.take(w, indices, axis=0)


def softmax(x: Array, /, axis: int) -> Array:
    e = np.exp(x - np.max(x, axis=axis, keepdims=True))
    return e / np.sum(e, axis=axis, keepdims=True)


def log_softmax(x: Array, /, axis: int) -> Array:
    shifted = x - np.max(x, axis=axis, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=axis, keepdims=True))


def one_hot(x: Array, n: int, /, dtype: DType = float32) -> Array:
    return (np.expand_dims(x, -1) == np.arange(n)).astype(dtype)


def dropout(x: Array, rate: Any, noise_uniform: Array, /) -> Array:
    return astype(np.where(noise_uniform >= rate, x / (1 - rate), 0), x.dtype)


# ---- control --------------------------------------------------------------------------------------------------------


def stop_gradient(x: Array, /) -> Array:
    return x


def scan(
    f: Callable[[Any, Any], tuple[Any, Any]], init: Any, xs: Any, /, reverse: builtins.bool = False
) -> tuple[Any, Any]:
    lengths: list[int] = []
    map_tree(lambda leaf: lengths.append(len(leaf)), xs)
    carry, slices = init, []
    for t in reversed(range(lengths[0])) if reverse else range(lengths[0]):
        carry, y = f(carry, map_tree(lambda leaf, t=t: leaf[t], xs))
        slices.append(y)
    if reverse:
        slices.reverse()
    return carry, map_tree(lambda *leaves: np.stack(leaves), *slices)


def value_and_grad(
    f: Callable[[dict[str, Array]], Array], /
) -> Callable[[Mapping[str, Array]], tuple[Array, dict[str, Array]]]:
    raise LearnerCoreError("the numpy namespace is for inference: it has no gradients; use a training backend's xp")
