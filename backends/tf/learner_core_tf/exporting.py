"""A policy as a Keras model of Keras' own layers, which ``keras.models.load_model`` opens without this library.

The module is run once over a namespace that lays layers: ``xp.linear`` becomes a Dense layer named after its weight,
``xp.conv2d`` a Conv2D with its padding explicit, everything else one of ``keras.ops``.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import keras
import numpy as np
from keras import layers, ops

from learner_core import numpy_xp, spaces
from learner_core.backend import Backend
from learner_core.errors import ConfigError
from learner_core.exporting.source import nest, sample_state
from learner_core.xp import Axis, DType, Shape

if TYPE_CHECKING:
    from learner_core.exporting.source import ExportedPolicy

__all__ = ["build_keras_model", "export_policy"]

Value: TypeAlias = Any
"""What a layer takes: a KerasTensor, a weight, a numpy array or a number."""


def export_policy(policy: ExportedPolicy, path: Path, backend: Backend) -> None:
    """Write the policy as a ``.keras`` model: ``model(obs)`` -> {"actions": ..., "action_dist_inputs": ...}.

    Args:
        policy: ``learner_core.exporting.source.ExportedPolicy``; a user's own model is saved as it is.
        path: ends in ``.keras``.
        backend: the TensorFlow backend.
    """
    if path.suffix != ".keras":
        raise ConfigError(f"Keras saves models in files that end in .keras, not {path.suffix!r}")
    spec = policy.require_spec("keras")
    if spec.is_neutral:
        model = build_keras_model(policy)
    else:
        network: Any = spec.build(backend.xp, backend)
        model = network.load_into_network(policy.params)
    model.save(str(path))


def build_keras_model(policy: ExportedPolicy) -> keras.Model:
    """The policy as a Functional model: of the observations, or of ``{"obs": ..., "state_in": {leaf: ...}}``."""
    spec = policy.require_spec("keras")
    inputs = {
        "/".join(("obs", *path)): keras.Input(shape, dtype=np.dtype(dtype).name, name=path[-1] if path else "obs")
        for path, (shape, dtype) in spaces.leaves(spec.observation_space).items()
    }
    first = next(iter(inputs.values()))
    xp: Any = _Layers(first)  # a namespace for what such a module asks for
    module = spec.build(xp)
    params = {name: _Weight(value, name) for name, value in policy.params.items()}
    obs = nest(inputs)
    state = {
        leaf: keras.Input(value.shape[1:], dtype=value.dtype.name, name=leaf)
        for leaf, value in sample_state(module, 1).items()
    }
    answers = policy.act(module, params, policy.normalized(xp, obs), state)
    for name, value in answers.items():
        if name != "state_out" and not _symbolic(value):
            raise ConfigError(f"{name!r} is the same whatever the observation is, and a Keras model has no such output")
    return keras.Model({"obs": obs, "state_in": state} if state else obs, answers, name="policy")


class _Weight:
    """A parameter with its name; an array to everything that does not know better."""

    def __init__(self, value: np.ndarray, name: str) -> None:
        self.value, self.name = value, name
        self.dtype, self.shape = value.dtype, value.shape

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return self.value if dtype is None else self.value.astype(dtype)

    def __add__(self, other: Value) -> np.ndarray:
        return np.asarray(self.value + _plain(other))


def _plain(x: Value) -> Value:
    return x.value if isinstance(x, _Weight) else x


def _symbolic(x: object) -> bool:
    return isinstance(x, keras.KerasTensor)


#: xp name -> keras.ops name, of functions that take arrays and nothing else.
_DIRECT = {name: name for name in "abs exp log log1p expm1 sqrt square sign floor sin cos tanh sigmoid erf".split()}
_DIRECT |= {name: name for name in "softplus relu elu silu maximum minimum isfinite isnan".split()}
_DIRECT |= {name: name for name in "logical_and logical_or logical_not matmul where".split()}
_DIRECT |= {"pow": "power"}
_REDUCTIONS = "sum mean max min prod any all logsumexp".split()


class _Layers:
    """``xp`` over KerasTensors; constants stay numpy."""

    name = "keras"
    float32, float64, int32, int64, uint8, bool = "float32", "float64", "int32", "int64", "uint8", "bool"

    def __init__(self, anchor: keras.KerasTensor) -> None:
        self._anchor = anchor

    def __getattr__(self, name: str) -> Value:
        function = getattr(numpy_xp, name, None)
        if name.startswith("_") or function is None:
            raise AttributeError(name)
        if name in _DIRECT:

            def direct(*args: Value) -> Value:
                values = [_plain(arg) for arg in args]
                return (getattr(ops, _DIRECT[name]) if any(map(_symbolic, values)) else function)(*values)

            return direct
        if name in _REDUCTIONS:

            def reduce(x: Value, axis: Axis = None, keepdims: builtins.bool = False) -> Value:
                x = _plain(x)
                return (getattr(ops, name) if _symbolic(x) else function)(x, axis=axis, keepdims=keepdims)

            return reduce
        raise ConfigError(f"xp.{name} has no Keras layer here: this module cannot be exported to Keras")

    def asarray(self, x: Value, dtype: DType = None) -> Value:
        return _plain(x) if dtype is None else self.astype(x, dtype)

    def astype(self, x: Value, dtype: DType) -> Value:
        name = np.dtype(dtype).name
        if _symbolic(x):
            return x if x.dtype == name else ops.cast(x, name)
        if isinstance(x, _Weight):
            return x if x.dtype == name else _Weight(x.value.astype(name), x.name)
        return np.asarray(x).astype(name)

    def shape(self, x: Value) -> tuple[int, ...]:
        return tuple(-1 if size is None else size for size in x.shape) if _symbolic(x) else tuple(np.shape(_plain(x)))

    def stop_gradient(self, x: Value) -> Value:
        return x

    def gelu(self, x: Value) -> Value:
        return ops.gelu(x, approximate=False)

    def leaky_relu(self, x: Value, negative_slope: float = 0.01) -> Value:
        return ops.leaky_relu(x, negative_slope=negative_slope)

    def clip(self, x: Value, lo: Value = None, hi: Value = None) -> Value:
        x = x if lo is None else self.maximum(x, lo)
        return x if hi is None else self.minimum(x, hi)

    def reshape(self, x: Value, shape: Shape) -> Value:
        if not _symbolic(x):
            return np.reshape(_plain(x), shape)
        sizes = [shape] if isinstance(shape, int) else list(shape)
        inner = math.prod(int(size) for size in x.shape[1:])
        given = math.prod(size for size in sizes[1:] if size != -1)
        return layers.Reshape([inner // given if size == -1 else size for size in sizes[1:]])(x)

    def permute_dims(self, x: Value, axes: Sequence[int]) -> Value:
        return ops.transpose(_plain(x), axes)

    def expand_dims(self, x: Value, axis: int) -> Value:
        return ops.expand_dims(x, axis) if _symbolic(x) else np.expand_dims(_plain(x), axis)

    def squeeze(self, x: Value, axis: Axis) -> Value:
        return ops.squeeze(x, axis) if _symbolic(x) else np.squeeze(_plain(x), axis)

    def concat(self, arrays: Sequence[Value], axis: int) -> Value:
        return ops.concatenate([_plain(value) for value in arrays], axis)

    def stack(self, arrays: Sequence[Value], axis: int) -> Value:
        return ops.stack([_plain(value) for value in arrays], axis)

    def split(self, x: Value, sizes: Sequence[int], axis: int) -> list[Value]:
        ends = np.cumsum(sizes)[:-1].tolist()
        return list(ops.split(x, ends, axis) if _symbolic(x) else np.split(_plain(x), ends, axis))

    def argmax(self, x: Value, axis: int) -> Value:
        return ops.cast(ops.argmax(x, axis), "int64")

    def softmax(self, x: Value, axis: int) -> Value:
        return ops.softmax(x, axis)

    def log_softmax(self, x: Value, axis: int) -> Value:
        return ops.log_softmax(x, axis)

    def full_like(self, x: Value, value: Value, dtype: DType = None) -> Value:
        name = np.dtype(x.dtype if dtype is None else dtype).name
        if not _symbolic(x):
            return np.full_like(_plain(x), value, name)
        return ops.full_like(x, value, dtype=name)

    def zeros_like(self, x: Value, dtype: DType = None) -> Value:
        return self.full_like(x, 0, dtype)

    def ones_like(self, x: Value, dtype: DType = None) -> Value:
        return self.full_like(x, 1, dtype)

    def arange(self, n: int, dtype: DType = "int64") -> Value:
        return np.arange(n, dtype=np.dtype(dtype).name)

    def flip(self, x: Value, axis: int) -> Value:
        return ops.flip(x, axis)

    def take(self, x: Value, indices: Value, axis: int) -> Value:
        return ops.take(_plain(x), _plain(indices), axis)

    def take_along_axis(self, x: Value, indices: Value, axis: int) -> Value:
        return ops.take_along_axis(_plain(x), _plain(indices), axis)

    def cumulative_sum(self, x: Value, axis: int) -> Value:
        return ops.cumsum(x, axis)

    def einsum(self, equation: str, *operands: Value) -> Value:
        return ops.einsum(equation, *[_plain(value) for value in operands])

    def one_hot(self, x: Value, n: int, dtype: DType = "float32") -> Value:
        return ops.one_hot(ops.cast(x, "int32"), n, dtype=np.dtype(dtype).name)

    def broadcast_to(self, x: Value, shape: Sequence[int]) -> Value:
        if not _symbolic(x) and -1 not in shape:
            return np.broadcast_to(_plain(x), shape)
        if len(shape) != 2 or _symbolic(x):
            raise ConfigError("xp.broadcast_to beyond one row per observation cannot be exported to Keras")
        # A layer without weights but a bias: the same values in every row.
        flat = layers.Reshape((math.prod(self._anchor.shape[1:]),))(ops.cast(self._anchor, "float32"))
        value = np.broadcast_to(np.asarray(_plain(x), np.float32), shape[1:])
        return self.linear(
            flat[:, :1] * 0.0, np.zeros((shape[1], 1), np.float32), x if value.shape == x.shape else value
        )

    def linear(self, x: Value, w: Value, b: Value = None) -> Value:
        weights = [np.asarray(_plain(w)).T] + ([] if b is None else [np.asarray(_plain(b))])
        layer = layers.Dense(weights[0].shape[1], use_bias=b is not None, name=_name(w, b))
        out = layer(x)
        layer.set_weights(weights)
        return out

    def conv2d(self, x: Value, w: Value, b: Value = None, stride: Shape = 1, padding: Shape = 0) -> Value:
        kernel = np.transpose(np.asarray(_plain(w)), (2, 3, 1, 0))
        above, beside = (padding, padding) if isinstance(padding, int) else padding
        if above or beside:
            x = layers.ZeroPadding2D((above, beside))(x)
        layer = layers.Conv2D(
            kernel.shape[3], kernel.shape[:2], strides=stride, use_bias=b is not None, name=_name(w, b)
        )
        out = layer(x)
        layer.set_weights([kernel] + ([] if b is None else [np.asarray(_plain(b))]))
        return out

    def layer_norm(self, x: Value, w: Value, b: Value, eps: float = 1e-5) -> Value:
        layer = layers.LayerNormalization(epsilon=eps, center=b is not None, scale=w is not None, name=_name(w, b))
        out = layer(x)
        layer.set_weights([np.asarray(_plain(value)) for value in (w, b) if value is not None])
        return out

    def embedding(self, indices: Value, w: Value) -> Value:
        table = np.asarray(_plain(w))
        layer = layers.Embedding(*table.shape, name=_name(w, None))
        out = layer(indices)
        layer.set_weights([table])
        return out


def _name(w: Value, b: Value) -> str | None:
    named = next((value.name for value in (w, b) if isinstance(value, _Weight)), None)
    return None if named is None else named.removesuffix(".weight").removesuffix(".bias")
