"""The namespace ``xp`` over TensorFlow: documented in :class:`learner_core.xp.Namespace`.

Every function works eagerly, in ``tf.function`` and in ``tf.function(jit_compile=True)``. TensorFlow's own answers are
departed from where they would not be the other frameworks': ties of ``maximum`` and ``minimum``, the dtype of integer
sums and Python integers, means of integers, sparse gradients of ``take`` and ``embedding``.
docs/decisions/update-step.md says why.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from learner_core.errors import LearnerCoreError
from learner_core.xp import Array, ArrayTree, Axis, DType, Operand, Shape, map_tree

__all__ = [
    "abs",
    "all",
    "any",
    "arange",
    "argmax",
    "asarray",
    "astype",
    "bfloat16",
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

name = "tf"
float32, float64, bfloat16 = tf.float32, tf.float64, tf.bfloat16
int32, int64, uint8 = tf.int32, tf.int64, tf.uint8
bool = tf.bool

_UNROLL = 4  # scans up to this length are unrolled in a graph; an LSTM of 16 steps compiles in 10 s of CPU, not 25

# ---- creation and conversion ----------------------------------------------------------------------------------------


def _number_dtype(*values: object) -> DType:
    if builtins.any(isinstance(value, float) for value in values):
        return float32
    return bool if builtins.all(isinstance(value, builtins.bool) for value in values) else int64


def asarray(x: object, /, dtype: DType = None) -> Array:
    if isinstance(x, (tf.Tensor, tf.Variable)):
        return tf.convert_to_tensor(x) if dtype is None else tf.cast(x, dtype)
    if isinstance(x, (int, float)) and not isinstance(x, np.generic):  # np.float64 is a float too
        return tf.constant(x, dtype or _number_dtype(x))
    array = np.asarray(x)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if not isinstance(x, (np.ndarray, np.generic)) and array.dtype == np.float64 and dtype is None:
        array = array.astype(np.float32)
    tensor = tf.convert_to_tensor(array)
    return tensor if dtype is None else tf.cast(tensor, dtype)


def _cast(value: Operand, dtype: DType) -> Array:
    # tf.cast takes Python numbers too, by way of float32: 0.1 would be off by 1e-9.
    return tf.constant(value, dtype) if isinstance(value, (int, float)) else tf.cast(value, dtype)


def zeros(shape: Shape, /, dtype: DType = float32) -> Array:
    return tf.zeros(shape, dtype)


def ones(shape: Shape, /, dtype: DType = float32) -> Array:
    return tf.ones(shape, dtype)


def full(shape: Shape, value: Operand, /, dtype: DType = float32) -> Array:
    return tf.broadcast_to(_cast(value, dtype), [shape] if isinstance(shape, int) else shape)


def zeros_like(x: Array, /, dtype: DType = None) -> Array:
    return tf.zeros_like(x, dtype=dtype)


def ones_like(x: Array, /, dtype: DType = None) -> Array:
    return tf.ones_like(x, dtype=dtype)


def full_like(x: Array, value: Operand, /, dtype: DType = None) -> Array:
    return full(shape(x), value, dtype or x.dtype)


def arange(n: int, /, dtype: DType = int64) -> Array:
    return tf.range(n, dtype=dtype)


def astype(x: Array, dtype: DType, /) -> Array:
    return tf.cast(x, dtype)


def shape(x: Array, /) -> tuple[int, ...]:
    known = x.shape.as_list()
    if None in known:
        now = tf.shape(x)
        return tuple(now[axis] if length is None else length for axis, length in enumerate(known))
    return tuple(known)


# ---- elementwise ----------------------------------------------------------------------------------------------------

abs = tf.abs
exp = tf.exp
log = tf.math.log
log1p = tf.math.log1p
expm1 = tf.math.expm1
sqrt = tf.sqrt
square = tf.square
sign = tf.sign
floor = tf.floor
sin = tf.sin
cos = tf.cos
tanh = tf.tanh
sigmoid = tf.sigmoid
softplus = tf.math.softplus
erf = tf.math.erf
relu = tf.nn.relu
elu = tf.nn.elu
silu = tf.nn.silu
isfinite = tf.math.is_finite
isnan = tf.math.is_nan
logical_and = tf.logical_and
logical_or = tf.logical_or
logical_not = tf.logical_not


def gelu(x: Array, /) -> Array:
    return 0.5 * x * (1 + tf.math.erf(x * math.sqrt(0.5)))  # tf.nn.gelu rounds its constant to float32: off by 5e-9


def leaky_relu(x: Array, /, negative_slope: float = 0.01) -> Array:
    return tf.where(x > 0, x, negative_slope * x)  # tf.nn.leaky_relu holds its slope in float32: off by 5e-10


def _pair(x: Operand, y: Operand) -> tuple[Array, Array]:
    """Give Python numbers the dtype of the array they meet (TensorFlow would make them float32 or int32)."""
    if isinstance(x, (int, float)):
        dtype = _number_dtype(x, y) if isinstance(y, (int, float)) else y.dtype
        x = tf.constant(x, dtype)
    if isinstance(y, (int, float)):
        y = tf.constant(y, x.dtype)
    return x, y


def pow(x: Operand, y: Operand, /) -> Array:
    return tf.pow(*_pair(x, y))


def where(condition: Array, x: Operand, y: Operand, /) -> Array:
    return tf.where(condition, *_pair(x, y))


def maximum(x: Operand, y: Operand, /) -> Array:
    x, y = _pair(x, y)
    if not x.dtype.is_floating:
        return tf.maximum(x, y)
    # TensorFlow gives a tie's gradient to its first argument: half of it comes from either order.
    return 0.5 * tf.maximum(x, y) + 0.5 * tf.maximum(y, x)


def minimum(x: Operand, y: Operand, /) -> Array:
    x, y = _pair(x, y)
    if not x.dtype.is_floating:
        return tf.minimum(x, y)
    return 0.5 * tf.minimum(x, y) + 0.5 * tf.minimum(y, x)


def clip(x: Array, /, lo: Operand = None, hi: Operand = None) -> Array:
    lo, hi = (bound if bound is None else _cast(bound, x.dtype) for bound in (lo, hi))
    if lo is not None and hi is not None:
        return tf.clip_by_value(x, lo, hi)
    if lo is not None:
        return tf.where(x < lo, lo, x)
    return x if hi is None else tf.where(x > hi, hi, x)


# ---- reductions -----------------------------------------------------------------------------------------------------


def _summable(x: Array) -> Array:
    return x if x.dtype.is_floating else tf.cast(x, int64)


def sum(x: Array, /, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
    return tf.reduce_sum(_summable(x), axis, keepdims)


def mean(x: Array, /, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
    if not x.dtype.is_floating:  # TensorFlow would round
        raise LearnerCoreError(f"mean needs a floating array, got dtype={x.dtype.name}: convert it by xp.astype first")
    return tf.reduce_mean(x, axis, keepdims)


def max(x: Array, /, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
    return tf.reduce_max(x, axis, keepdims)


def min(x: Array, /, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
    return tf.reduce_min(x, axis, keepdims)


def prod(x: Array, /, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
    return tf.reduce_prod(_summable(x), axis, keepdims)


def any(x: Array, /, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
    return tf.reduce_any(x, axis, keepdims)


def all(x: Array, /, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
    return tf.reduce_all(x, axis, keepdims)


def logsumexp(x: Array, /, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
    return tf.reduce_logsumexp(x, axis, keepdims)


def argmax(x: Array, /, axis: int) -> Array:
    return tf.argmax(x, axis, output_type=int64)


def cumulative_sum(x: Array, /, axis: int) -> Array:
    return tf.cumsum(_summable(x), axis)


# ---- shape ----------------------------------------------------------------------------------------------------------


def reshape(x: Array, shape: Shape, /) -> Array:
    return tf.reshape(x, [shape] if isinstance(shape, int) else shape)


def permute_dims(x: Array, axes: Sequence[int], /) -> Array:
    return tf.transpose(x, axes)


def expand_dims(x: Array, /, axis: int) -> Array:
    return tf.expand_dims(x, axis)


def squeeze(x: Array, /, axis: int | tuple[int, ...]) -> Array:
    return tf.squeeze(x, axis)


def concat(arrays: Sequence[Array], /, axis: int) -> Array:
    return tf.concat(arrays, axis)


def stack(arrays: Sequence[Array], /, axis: int) -> Array:
    return tf.stack(arrays, axis)


def split(x: Array, sizes: Sequence[int], /, axis: int) -> list[Array]:
    pieces: list[Array] = tf.split(x, list(sizes), axis)
    return pieces


def broadcast_to(x: Array, shape: Shape, /) -> Array:
    return tf.broadcast_to(x, [shape] if isinstance(shape, int) else shape)


def flip(x: Array, /, axis: int) -> Array:
    return tf.reverse(x, [axis])


def take(x: Array, indices: Array, /, axis: int) -> Array:
    # The gradient of a bare gather along axis 0 is sparse; that of the reshape, which does nothing else, is dense.
    return tf.gather(tf.reshape(x, shape(x)), indices, axis=axis)


def take_along_axis(x: Array, indices: Array, /, axis: int) -> Array:
    last = x.shape.rank - 1
    axis %= last + 1
    if axis == last:
        return tf.gather(x, indices, axis=last, batch_dims=last)
    order = [*range(axis), *range(axis + 1, last + 1), axis]
    back = [*range(axis), last, *range(axis, last)]
    picked = tf.gather(tf.transpose(x, order), tf.transpose(indices, order), axis=last, batch_dims=last)
    return tf.transpose(picked, back)


# ---- linear algebra and layers --------------------------------------------------------------------------------------

matmul = tf.matmul
einsum = tf.einsum


def linear(x: Array, w: Array, b: Array | None = None, /) -> Array:
    flat = x if x.shape.rank == 2 else tf.reshape(x, [-1, w.shape[1]])
    y = tf.matmul(flat, w, transpose_b=True)
    if b is not None:
        y = tf.nn.bias_add(y, b)
    return y if x.shape.rank == 2 else tf.reshape(y, [*shape(x)[:-1], w.shape[0]])


def conv2d(
    x: Array,
    w: Array,
    b: Array | None = None,
    /,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
) -> Array:
    above, beside = (padding, padding) if isinstance(padding, int) else padding
    y = tf.nn.conv2d(
        x,
        tf.transpose(w, [2, 3, 1, 0]),
        strides=stride if isinstance(stride, int) else list(stride),
        padding=[[0, 0], [above, above], [beside, beside], [0, 0]] if above or beside else "VALID",
    )
    return y if b is None else tf.nn.bias_add(y, b)


def layer_norm(x: Array, w: Array | None, b: Array | None, /, eps: float = 1e-5) -> Array:
    centred = x - tf.reduce_mean(x, -1, keepdims=True)
    y = centred * tf.math.rsqrt(tf.reduce_mean(tf.square(centred), -1, keepdims=True) + eps)
    if w is not None:
        y = y * w
    return y if b is None else y + b


def embedding(indices: Array, w: Array, /) -> Array:
    return take(w, indices, axis=0)


def softmax(x: Array, /, axis: int) -> Array:
    return tf.nn.softmax(x, axis)


def log_softmax(x: Array, /, axis: int) -> Array:
    return tf.nn.log_softmax(x, axis)


def one_hot(x: Array, n: int, /, dtype: DType = float32) -> Array:
    return tf.one_hot(x, n, dtype=dtype)


def dropout(x: Array, rate: Operand, noise_uniform: Array, /) -> Array:
    return tf.where(noise_uniform >= rate, x / (1 - rate), tf.zeros([], x.dtype))


# ---- control --------------------------------------------------------------------------------------------------------

stop_gradient = tf.stop_gradient


def scan(
    f: Callable[[ArrayTree, ArrayTree], tuple[ArrayTree, ArrayTree]],
    init: ArrayTree,
    xs: ArrayTree,
    /,
    reverse: builtins.bool = False,
) -> tuple[ArrayTree, ArrayTree]:
    lengths: list[int] = []
    map_tree(lambda leaf: lengths.append(leaf.shape[0]), xs)
    length = lengths[0]
    if length > _UNROLL and not tf.executing_eagerly():
        return _scan_loop(f, init, xs, length=length, reverse=reverse)
    carry, slices = init, []
    for t in reversed(range(length)) if reverse else range(length):
        carry, y = f(carry, map_tree(lambda leaf, t=t: leaf[t], xs))
        slices.append(y)
    if reverse:
        slices.reverse()
    return carry, map_tree(lambda *leaves: tf.stack(leaves), *slices)


def _scan_loop(
    f: Callable[[ArrayTree, ArrayTree], tuple[ArrayTree, ArrayTree]],
    init: ArrayTree,
    xs: ArrayTree,
    *,
    length: int,
    reverse: builtins.bool,
) -> tuple[ArrayTree, ArrayTree]:
    """A scan as one ``tf.while_loop``: the first step is taken outside, to learn what ``f`` returns."""

    def place(i: int | tf.Tensor) -> int | tf.Tensor:
        return length - 1 - i if reverse else i

    def store(ys: ArrayTree, y: ArrayTree, i: int | tf.Tensor) -> ArrayTree:
        return map_tree(lambda array, leaf: array.write(place(i), leaf), ys, y)

    def body(i: tf.Tensor, carry: ArrayTree, ys: ArrayTree) -> tuple[tf.Tensor, ArrayTree, ArrayTree]:
        carry, y = f(carry, map_tree(lambda leaf: leaf[place(i)], xs))
        return i + 1, carry, store(ys, y, i)

    carry, y = f(init, map_tree(lambda leaf: leaf[place(0)], xs))
    ys = map_tree(lambda leaf: tf.TensorArray(leaf.dtype, length, element_shape=leaf.shape), y)
    _, carry, ys = tf.while_loop(
        lambda i, carry, ys: i < length,
        body,
        (tf.constant(1), carry, store(ys, y, 0)),
        maximum_iterations=length - 1,  # XLA needs it to differentiate the loop
    )
    return carry, map_tree(lambda array: array.stack(), ys)


def value_and_grad(
    f: Callable[[dict[str, Array]], Array], /
) -> Callable[[Mapping[str, Array]], tuple[Array, dict[str, Array]]]:
    def differentiate(x: Mapping[str, Array]) -> tuple[Array, dict[str, Array]]:
        with tf.GradientTape() as tape:
            # Fresh tensors, so that uses of the same array outside of f's argument do not count.
            leaves = {key: tf.identity(v) for key, v in x.items()}
            tape.watch(list(leaves.values()))
            value = f(leaves)
        gradients = tape.gradient(value, leaves, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return value, {key: tf.convert_to_tensor(gradient) for key, gradient in gradients.items()}

    return differentiate
