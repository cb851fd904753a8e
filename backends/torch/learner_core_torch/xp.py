"""The namespace ``xp`` over Torch: documented in :class:`learner_core.xp.Namespace`.

Every function works eagerly, under ``torch.compile`` and under ``make_fx`` with fake tensors: nothing here looks at
values. Arrays without an input (``zeros``, ``arange``, ``asarray`` of numpy) are made on Torch's current default
device: run a step inside ``with torch.device(...)``.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import get_proxy_mode

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
    "gru",
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
    "lstm",
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

name = "torch"
float32, float64, bfloat16 = torch.float32, torch.float64, torch.bfloat16
int32, int64, uint8 = torch.int32, torch.int64, torch.uint8
bool = torch.bool

# ---- creation and conversion ----------------------------------------------------------------------------------------


def asarray(x: object, /, dtype: DType = None) -> Array:
    if isinstance(x, torch.Tensor):
        return x if dtype is None else x.to(dtype)
    if isinstance(x, np.ndarray):
        if not x.dtype.isnative:
            x = x.astype(x.dtype.newbyteorder("="))
        # Torch warns of read-only memory and refuses negative strides.
        if not x.flags.writeable or builtins.any(step < 0 for step in x.strides):
            x = x.copy()
        if x.dtype.name == "bfloat16":  # from ml_dtypes, which Torch does not know
            x = torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.as_tensor(x, dtype=dtype)


def _shape(shape: Shape) -> tuple[int, ...]:
    return (shape,) if isinstance(shape, int) else tuple(shape)


def zeros(shape: Shape, /, dtype: DType = float32) -> Array:
    return torch.zeros(_shape(shape), dtype=dtype)


def ones(shape: Shape, /, dtype: DType = float32) -> Array:
    return torch.ones(_shape(shape), dtype=dtype)


def full(shape: Shape, value: Operand, /, dtype: DType = float32) -> Array:
    if isinstance(value, torch.Tensor):
        return value.to(dtype).expand(_shape(shape))
    return torch.full(_shape(shape), value, dtype=dtype)


def zeros_like(x: Array, /, dtype: DType = None) -> Array:
    return torch.zeros_like(x, dtype=dtype)


def ones_like(x: Array, /, dtype: DType = None) -> Array:
    return torch.ones_like(x, dtype=dtype)


def full_like(x: Array, value: Operand, /, dtype: DType = None) -> Array:
    if isinstance(value, torch.Tensor):
        return value.to(dtype or x.dtype).expand(x.shape)
    return torch.full_like(x, value, dtype=dtype)


def arange(n: int, /, dtype: DType = int64) -> Array:
    return torch.arange(n, dtype=dtype)


def astype(x: Array, dtype: DType, /) -> Array:
    return x.to(dtype)


def shape(x: Array, /) -> tuple[int, ...]:
    return tuple(x.shape)


# ---- elementwise ----------------------------------------------------------------------------------------------------

abs = torch.abs
exp = torch.exp
log = torch.log
log1p = torch.log1p
expm1 = torch.expm1
sqrt = torch.sqrt
square = torch.square
sign = torch.sign
floor = torch.floor
sin = torch.sin
cos = torch.cos
tanh = torch.tanh
sigmoid = torch.sigmoid
erf = torch.erf
relu = torch.relu
elu = F.elu
gelu = F.gelu
silu = F.silu
leaky_relu = F.leaky_relu
pow = torch.pow
where = torch.where
isfinite = torch.isfinite
isnan = torch.isnan
logical_and = torch.logical_and
logical_or = torch.logical_or
logical_not = torch.logical_not


def softplus(x: Array, /) -> Array:
    return F.softplus(x, threshold=40.0)  # the default, 20, is off by 2e-9: visible in float64


def _like(value: Operand, x: Array) -> Array:
    """A Python number as a 0-d array of ``x``'s dtype; arrays as they are."""
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, float) and not x.is_floating_point():
        raise LearnerCoreError(f"{value} meets an array of dtype={x.dtype}: convert the array by xp.astype first")
    return x.new_full((), value)


def maximum(x: Operand, y: Operand, /) -> Array:
    if isinstance(x, torch.Tensor):
        return torch.maximum(x, _like(y, x))
    return torch.maximum(_like(x, y), y)


def minimum(x: Operand, y: Operand, /) -> Array:
    if isinstance(x, torch.Tensor):
        return torch.minimum(x, _like(y, x))
    return torch.minimum(_like(x, y), y)


def clip(x: Array, /, lo: Operand = None, hi: Operand = None) -> Array:
    if lo is None and hi is None:
        return x
    if isinstance(lo, torch.Tensor) or isinstance(hi, torch.Tensor):  # Torch takes two numbers or two tensors
        lo, hi = (bound if bound is None else _like(bound, x) for bound in (lo, hi))
    return torch.clamp(x, lo, hi)


# ---- reductions -----------------------------------------------------------------------------------------------------


def _axes(x: Array, axis: Axis) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(x.ndim))
    return (axis,) if isinstance(axis, int) else axis


def sum(x: Array, /, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
    return torch.sum(x, dim=axis, keepdim=keepdims)


def mean(x: Array, /, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
    return torch.mean(x, dim=axis, keepdim=keepdims)


def max(x: Array, /, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
    return torch.amax(x, dim=_axes(x, axis), keepdim=keepdims)


def min(x: Array, /, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
    return torch.amin(x, dim=_axes(x, axis), keepdim=keepdims)


def prod(x: Array, /, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
    for one in sorted((one % x.ndim for one in _axes(x, axis)), reverse=True):  # torch.prod takes one axis at a time
        x = torch.prod(x, dim=one, keepdim=keepdims)
    return x


def any(x: Array, /, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
    return torch.any(x, dim=_axes(x, axis), keepdim=keepdims)


def all(x: Array, /, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
    return torch.all(x, dim=_axes(x, axis), keepdim=keepdims)


def logsumexp(x: Array, /, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
    return torch.logsumexp(x, dim=_axes(x, axis), keepdim=keepdims)


def argmax(x: Array, /, axis: int) -> Array:
    return torch.argmax(x, dim=axis)


def cumulative_sum(x: Array, /, axis: int) -> Array:
    return torch.cumsum(x, dim=axis)


# ---- shape ----------------------------------------------------------------------------------------------------------


def reshape(x: Array, shape: Shape, /) -> Array:
    return torch.reshape(x, _shape(shape))


def permute_dims(x: Array, axes: Sequence[int], /) -> Array:
    return torch.permute(x, tuple(axes))


def expand_dims(x: Array, /, axis: int) -> Array:
    return torch.unsqueeze(x, axis)


def squeeze(x: Array, /, axis: int | tuple[int, ...]) -> Array:
    for one in _axes(x, axis):
        if x.shape[one] != 1:  # Torch would leave the axis alone
            raise LearnerCoreError(f"squeeze: axis {one} of shape={tuple(x.shape)} is not of length 1")
    return torch.squeeze(x, axis)


def concat(arrays: Sequence[Array], /, axis: int) -> Array:
    return torch.cat(tuple(arrays), axis)


def stack(arrays: Sequence[Array], /, axis: int) -> Array:
    return torch.stack(tuple(arrays), axis)


def split(x: Array, sizes: Sequence[int], /, axis: int) -> list[Array]:
    return list(torch.split(x, list(sizes), axis))


def broadcast_to(x: Array, shape: Shape, /) -> Array:
    return torch.broadcast_to(x, _shape(shape))


def flip(x: Array, /, axis: int) -> Array:
    return torch.flip(x, (axis,))


def take(x: Array, indices: Array, /, axis: int) -> Array:
    if indices.ndim == 1:
        return torch.index_select(x, axis, indices)
    axis %= x.ndim
    picked = torch.index_select(x, axis, indices.reshape(-1))
    return picked.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def take_along_axis(x: Array, indices: Array, /, axis: int) -> Array:
    return torch.take_along_dim(x, indices.to(torch.int64), axis)


# ---- linear algebra and layers --------------------------------------------------------------------------------------

matmul = torch.matmul
einsum = torch.einsum
linear = F.linear


def conv2d(
    x: Array,
    w: Array,
    b: Array | None = None,
    /,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
) -> Array:
    # The permutations are views: Torch sees a tensor in its channels-last memory format and keeps to it.
    y = F.conv2d(
        x.permute(0, 3, 1, 2),
        w,
        b,
        stride=stride if isinstance(stride, int) else tuple(stride),
        padding=padding if isinstance(padding, int) else tuple(padding),
    )
    return y.permute(0, 2, 3, 1)


def layer_norm(x: Array, w: Array | None, b: Array | None, /, eps: float = 1e-5) -> Array:
    return F.layer_norm(x, (x.shape[-1],), w, b, eps)


embedding = F.embedding


def softmax(x: Array, /, axis: int) -> Array:
    return torch.softmax(x, axis)


def log_softmax(x: Array, /, axis: int) -> Array:
    return torch.log_softmax(x, axis)


def one_hot(x: Array, n: int, /, dtype: DType = float32) -> Array:
    # Not F.one_hot: it looks at the values, which a trace cannot, and refuses those outside.
    return (x.unsqueeze(-1) == torch.arange(n, device=x.device)).to(dtype)


def lstm(x: Array, h: Array, c: Array, w_ih: Array, w_hh: Array, b_ih: Array, b_hh: Array, /) -> ArrayTree:
    """All steps of an LSTM, by Torch's own kernel.

    Args:
        x: ``[B, T, input]``.
        h, c: ``[B, hidden]``, the state before the first step.
        w_ih, w_hh, b_ih, b_hh: as ``torch.nn.LSTM`` has them.

    Returns:
        ``(outputs [B, T, hidden], h, c)``; ``NotImplemented`` while a step for the CPU is recorded: inductor compiles
        no backward pass of oneDNN's LSTM (torch 2.13: "expected Tensor() for op: mkldnn_rnn_layer").
    """
    if _recorded_for_cpu(x):
        return NotImplemented
    y, h, c = torch._VF.lstm(  # what torch.nn.LSTM calls
        x,
        (h.unsqueeze(0), c.unsqueeze(0)),
        (w_ih, w_hh, b_ih, b_hh),
        True,
        1,
        0.0,
        torch.is_grad_enabled(),
        False,
        True,
    )
    return y, h.squeeze(0), c.squeeze(0)


def _recorded_for_cpu(x: Array) -> builtins.bool:
    return x.device.type == "cpu" and get_proxy_mode() is not None


def gru(x: Array, h: Array, w_ih: Array, w_hh: Array, b_ih: Array, b_hh: Array, /) -> ArrayTree:
    """All steps of a GRU, by Torch's own function; as :func:`lstm`, without ``c``."""
    if _recorded_for_cpu(x):
        return NotImplemented
    y, h = torch._VF.gru(
        x, h.unsqueeze(0), (w_ih, w_hh, b_ih, b_hh), True, 1, 0.0, torch.is_grad_enabled(), False, True
    )
    return y, h.squeeze(0)


def dropout(x: Array, rate: Operand, noise_uniform: Array, /) -> Array:
    return torch.where(noise_uniform >= rate, x / (1 - rate), 0.0)


# ---- control --------------------------------------------------------------------------------------------------------


def stop_gradient(x: Array, /) -> Array:
    return x.detach()


def scan(
    f: Callable[[ArrayTree, ArrayTree], tuple[ArrayTree, ArrayTree]],
    init: ArrayTree,
    xs: ArrayTree,
    /,
    reverse: builtins.bool = False,
) -> tuple[ArrayTree, ArrayTree]:
    lengths: list[int] = []
    map_tree(lambda leaf: lengths.append(leaf.shape[0]), xs)
    carry, slices = init, []
    for t in reversed(range(lengths[0])) if reverse else range(lengths[0]):
        carry, y = f(carry, map_tree(lambda leaf, t=t: leaf[t], xs))
        slices.append(y)
    if reverse:
        slices.reverse()
    return carry, map_tree(lambda *leaves: torch.stack(leaves), *slices)


def value_and_grad(
    f: Callable[[dict[str, Array]], Array], /
) -> Callable[[Mapping[str, Array]], tuple[Array, dict[str, Array]]]:
    """See :meth:`learner_core.xp.Namespace.value_and_grad`.

    The results can themselves be differentiated (a gradient penalty inside a loss) when gradients are enabled where
    the returned function is called; under ``torch.no_grad()`` they are constants, and cheaper.
    """

    def differentiate(x: Mapping[str, Array]) -> tuple[Array, dict[str, Array]]:
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            # A fresh view, so that uses of the same array outside of f's argument do not count.
            leaves = {key: v.view_as(v) if v.requires_grad else v.detach().requires_grad_() for key, v in x.items()}
            value = f(leaves)
            if not value.requires_grad:
                return value, {key: torch.zeros_like(v) for key, v in x.items()}
            gradients = torch.autograd.grad(
                value, tuple(leaves.values()), create_graph=again, allow_unused=True, materialize_grads=True
            )
        return value if again else value.detach(), dict(zip(leaves, gradients, strict=True))

    return differentiate
