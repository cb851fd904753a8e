"""Keras layers' weights in canonical form: Torch's shapes and names, both ways.

One function per kind of layer says which canonical arrays its variables are made of. The way to Keras is
differentiable, so training happens in canonical form: where Torch has two biases and Keras their sum, both are there
and both learn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from learner_core.xp import Array

__all__ = ["Weight", "reordered", "weights_of"]


@dataclass(frozen=True)
class Weight:
    """One Keras variable.

    Attributes:
        variable: the Keras variable.
        names: canonical names of the arrays it is made of, without the layer's path.
        to_keras: ``to_keras(*arrays) -> tensor`` in the variable's shape.
        to_canonical: ``to_canonical(value) -> tuple of numpy arrays``, as ``names``.
        buffer: it changes without a gradient.
    """

    variable: keras.Variable
    names: tuple[str, ...]
    to_keras: Callable[..., tf.Tensor]
    to_canonical: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    buffer: bool = False


LayerWeights: TypeAlias = tuple[list[Weight], str]
"""A layer's weights, and why they cannot move to another framework, or ""."""


def reordered(weight: Weight, axis: int, order: np.ndarray) -> Weight:
    """A weight whose variable has its entries along an axis in another order than the state.

    Args:
        weight: as if they were in order.
        axis: of the variable.
        order: int64, for each entry of the variable the place it has in the state.
    """
    return replace(
        weight,
        to_keras=lambda *arrays: tf.gather(weight.to_keras(*arrays), order, axis=axis),
        to_canonical=lambda value: weight.to_canonical(np.take(value, np.argsort(order), axis)),
    )


def weights_of(layer: layers.Layer) -> LayerWeights | None:
    """The weights of a layer whose layout is known.

    Returns:
        (weights, why they cannot move to another framework or ""); ``None`` for any other layer.
    """
    for kind, function in _KINDS.items():
        if type(layer) is kind:
            return function(layer)
    return None


def _same(variable: keras.Variable, name: str, *, buffer: bool = False) -> Weight:
    return Weight(variable, (name,), lambda value: value, lambda value: (value,), buffer)


def _moved(variable: keras.Variable, name: str, to_keras: tuple[int, ...]) -> Weight:
    """A variable whose axes are the canonical ones, reordered by ``to_keras``."""
    back = tuple(int(axis) for axis in np.argsort(to_keras))
    return Weight(
        variable, (name,), lambda value: tf.transpose(value, to_keras), lambda value: (np.transpose(value, back),)
    )


def _with_bias(layer: layers.Layer, weight: Weight) -> list[Weight]:
    return [weight, _same(layer.bias, "bias")] if layer.use_bias else [weight]


def _dense(layer: layers.Layer) -> LayerWeights:
    return _with_bias(layer, _moved(layer._kernel, "weight", (1, 0))), ""


def _convolution(layer: layers.Layer) -> LayerWeights:
    axes = (2, 1, 0) if layer.rank == 1 else (2, 3, 1, 0)
    return _with_bias(layer, _moved(layer._kernel, "weight", axes)), _why_not_convolution(layer)


def _transposed(layer: layers.Layer) -> LayerWeights:
    # Keras [h, w, out, in], Torch [in, out, h, w].
    return _with_bias(layer, _moved(layer.kernel, "weight", (2, 3, 1, 0))), _why_not_convolution(layer)


def _depthwise(layer: layers.Layer) -> LayerWeights:
    height, width, channels, multiplier = layer.kernel.shape

    def to_keras(value: Array) -> Array:  # [channels * multiplier, 1, h, w]
        return tf.transpose(tf.reshape(value, (channels, multiplier, height, width)), (2, 3, 0, 1))

    def to_canonical(value: np.ndarray) -> tuple[np.ndarray, ...]:
        return (np.transpose(value, (2, 3, 0, 1)).reshape(channels * multiplier, 1, height, width),)

    return _with_bias(layer, Weight(layer.kernel, ("weight",), to_keras, to_canonical)), _why_not_convolution(layer)


def _why_not_convolution(layer: layers.Layer) -> str:
    if layer.data_format == "channels_first":
        return "data_format='channels_first'"
    if layer.padding == "same" and max(layer.strides) > 1:
        return "padding='same' with a stride pads unevenly; pad explicitly (ZeroPadding2D) and use padding='valid'"
    return ""


def _embedding(layer: layers.Layer) -> LayerWeights:
    return [_same(layer._embeddings, "weight")], ""


def _layer_norm(layer: layers.Layer) -> LayerWeights:
    axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
    reason = "" if len(axes) == 1 else "LayerNormalization over several axes"
    weights = [_same(layer.gamma, "weight")] if layer.gamma is not None else []
    return weights + ([_same(layer.beta, "bias")] if layer.beta is not None else []), reason


def _batch_norm(layer: layers.Layer) -> LayerWeights:
    weights = [_same(layer.gamma, "weight")] if layer.scale else []
    weights += [_same(layer.beta, "bias")] if layer.center else []
    weights.append(_same(layer.moving_mean, "running_mean", buffer=True))
    weights.append(_same(layer.moving_variance, "running_var", buffer=True))
    return weights, "" if bool(layer.scale) == bool(layer.center) else "scale without center, or the other way round"


def _recurrent(layer: layers.Layer, suffix: str = "") -> LayerWeights:
    return _cell_weights(layer.cell, f"_l0{suffix}"), _why_not_backwards(layer) or _why_not_cell(layer.cell)


def _stack(layer: layers.Layer) -> LayerWeights | None:
    """``RNN([LSTMCell(8), LSTMCell(8)])``, which is Torch's LSTM of two layers; over other cells: not known."""
    cells = layer.cell.cells if isinstance(layer.cell, layers.StackedRNNCells) else [layer.cell]
    kinds = {type(cell) for cell in cells}
    if kinds not in ({layers.LSTMCell}, {layers.GRUCell}):
        return None
    reason = next((text for text in map(_why_not_cell, cells) if text), "") or _why_not_backwards(layer)
    if len({cell.units for cell in cells}) > 1:
        reason = "RNN over cells of different sizes"
    return [weight for index, cell in enumerate(cells) for weight in _cell_weights(cell, f"_l{index}")], reason


def _cell(cell: layers.Layer) -> LayerWeights:
    return _cell_weights(cell, ""), _why_not_cell(cell)


def _cell_weights(cell: layers.Layer, ending: str) -> list[Weight]:
    is_gru = type(cell) is layers.GRUCell
    # GRU gates: Keras z r h, Torch r z n; swapping the first two is its own inverse.
    order = [1, 0, 2] if is_gru else [0, 1, 2, 3]
    size = cell.units

    def gates(value: Array) -> Array:
        if not is_gru:
            return value
        parts = [value[gate * size : (gate + 1) * size] for gate in order]
        return np.concatenate(parts, 0) if isinstance(value, np.ndarray) else tf.concat(parts, 0)

    def matrix(variable: keras.Variable, name: str) -> Weight:
        return Weight(variable, (name,), lambda v: tf.transpose(gates(v)), lambda v: (gates(v.T),))

    names = [f"{name}{ending}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    weights = [matrix(cell.kernel, names[0]), matrix(cell.recurrent_kernel, names[1])]
    if cell.use_bias and len(cell.bias.shape) == 2:
        weights.append(
            Weight(
                cell.bias,
                (names[2], names[3]),
                lambda a, b: tf.stack([gates(a), gates(b)], 0),
                lambda v: (gates(v[0]), gates(v[1])),
            )
        )
    elif cell.use_bias:
        weights.append(
            Weight(
                cell.bias,
                (names[2], names[3]),
                lambda a, b: gates(a) + gates(b),
                lambda v: (gates(v), np.zeros_like(v)),
            )
        )
    return weights


def _why_not_backwards(layer: layers.Layer) -> str:
    return "go_backwards=True outside Bidirectional" if layer.go_backwards else ""


def _why_not_cell(cell: layers.Layer) -> str:
    if type(cell) is layers.GRUCell and not cell.reset_after:
        return "GRU with reset_after=False"
    names = (getattr(cell.activation, "__name__", ""), getattr(cell.recurrent_activation, "__name__", ""))
    return "" if names == ("tanh", "sigmoid") else f"activations {names[0]} and {names[1]}, not tanh and sigmoid"


def _bidirectional(layer: layers.Layer) -> LayerWeights | None:
    if type(layer.forward_layer) not in (layers.LSTM, layers.GRU):
        return None
    forward, reason = _recurrent(layer.forward_layer)
    backward, _ = _recurrent(layer.backward_layer, "_reverse")
    if layer.merge_mode != "concat":
        reason = f"Bidirectional with merge_mode={layer.merge_mode!r}"
    return forward + backward, reason


def _attention(layer: layers.Layer) -> LayerWeights:
    query, key, value, out = layer._query_dense, layer._key_dense, layer._value_dense, layer._output_dense
    inputs = [dense.kernel.shape[0] for dense in (query, key, value)]
    heads, depth = layer.num_heads, layer.key_dim
    size = heads * depth
    if inputs != [size] * 3 or (layer.value_dim or depth) != depth or tuple(out.kernel.shape) != (heads, depth, size):
        # Keras numbers layers as it makes them: only the end of a path is the same in every process.
        names = {".".join(v.path.split("/")[-2:]): v for v in layer.variables}
        return [_same(v, name) for name, v in names.items()], "sizes of heads that do not make up the input's"
    weights: list[Weight] = []

    def part(index: int, name: str, dense: layers.Dense) -> None:
        weights.append(
            Weight(
                dense.kernel,
                (f"{name}_weight",),
                lambda v: tf.reshape(tf.transpose(v), (size, heads, depth)),
                lambda v: (v.reshape(size, size).T,),
            )
        )
        if layer._use_bias:
            weights.append(
                Weight(
                    dense.bias,
                    (f"{name}_bias",),
                    lambda v: tf.reshape(v, (heads, depth)),
                    lambda v: (v.reshape(size),),
                )
            )

    for index, (name, dense) in enumerate((("q", query), ("k", key), ("v", value))):
        part(index, name, dense)
    weights.append(
        Weight(
            out.kernel,
            ("out_proj.weight",),
            lambda v: tf.reshape(tf.transpose(v), (heads, depth, size)),
            lambda v: (v.reshape(size, size).T,),
        )
    )
    if layer._use_bias:
        weights.append(_same(out.bias, "out_proj.bias"))
    return weights, ""


#: Canonical arrays that are several Keras variables one under the other: name -> the parts' names.
PACKED: Mapping[str, tuple[str, ...]] = {
    "in_proj_weight": ("q_weight", "k_weight", "v_weight"),
    "in_proj_bias": ("q_bias", "k_bias", "v_bias"),
}

_KINDS: dict[type, Callable[[layers.Layer], LayerWeights | None]] = {
    layers.Dense: _dense,
    layers.Conv1D: _convolution,
    layers.Conv2D: _convolution,
    layers.Conv2DTranspose: _transposed,
    layers.DepthwiseConv2D: _depthwise,
    layers.Embedding: _embedding,
    layers.LayerNormalization: _layer_norm,
    layers.BatchNormalization: _batch_norm,
    layers.LSTM: _recurrent,
    layers.GRU: _recurrent,
    layers.LSTMCell: _cell,
    layers.GRUCell: _cell,
    layers.RNN: _stack,
    layers.Bidirectional: _bidirectional,
    layers.MultiHeadAttention: _attention,
}
