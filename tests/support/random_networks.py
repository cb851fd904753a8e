"""Random networks between images and actions, each written for Torch and for Keras as a user of either would write it.

A network is a list of steps: an operation, its layers, its numbers. ``generate`` draws one and keeps track of what the
data are: ``maps`` [height, width, channels], ``rows`` (what is left of maps when an axis is gone: channels first in
Torch), ``tokens`` [tokens, features] and a ``vector``. Torch has maps and rows channels first, Keras channels last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.spaces import Box

__all__ = ["NUM_ACTIONS", "Step", "build", "generate", "values_of"]

NUM_ACTIONS = 3


@dataclass(frozen=True)
class Step:
    """One operation: its layers by name, and its numbers."""

    name: str
    layers: dict[str, tuple[Any, ...]]
    numbers: dict[str, Any]


class _Draw:
    """A network while it is drawn."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng([7, seed])
        height, width = int(self.rng.integers(7, 11)), int(self.rng.integers(7, 11))
        self.first_axis = bool(self.rng.random() < 0.15)  # the environment gives channels first
        self.kind, self.shape = "maps", (height, width, int(self.rng.integers(1, 4)))
        self.space = Box(-5.0, 5.0, (self.shape[2], height, width) if self.first_axis else self.shape, np.float32)
        self.steps: list[Step] = []

    def int(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def add(self, name: str, kind: str, shape: tuple[int, ...], layers: list[tuple[Any, ...]], **numbers: Any) -> None:
        named = {f"l{len(self.steps)}{'ab'[k] if len(layers) > 1 else ''}": layer for k, layer in enumerate(layers)}
        self.steps.append(Step(name, named, numbers))
        self.kind, self.shape = kind, shape


def generate(seed: int) -> tuple[Box, list[Step]]:
    """(observations, steps) of one network."""
    draw = _Draw(seed)
    draw.add("channels_first" if draw.first_axis else "images", "maps", draw.shape, [])
    if draw.rng.random() < 0.9:
        _convolution(draw)
    for _ in range(draw.int(1, 6)):
        choices = _CHOICES[draw.kind]
        choices[draw.int(0, len(choices) - 1)](draw)
    if draw.kind != "vector":
        draw.add("flatten", "vector", (int(np.prod(draw.shape)),), [])
    if draw.rng.random() < 0.95:
        draw.add("dense", "vector", (NUM_ACTIONS,), [("dense", draw.shape[0], NUM_ACTIONS)])
    else:
        draw.add("slice", "vector", (NUM_ACTIONS,), []) if draw.shape[0] >= NUM_ACTIONS else draw.add(
            "dense", "vector", (NUM_ACTIONS,), [("dense", draw.shape[0], NUM_ACTIONS)]
        )
    return draw.space, draw.steps


# ---------------------------------------------------------------------------------------------------- what is drawn


def _convolution(draw: _Draw) -> None:
    h, w, c = draw.shape
    size, stride, out = (3, draw.int(1, 2), draw.int(2, 6)) if min(h, w) >= 3 else (1, 1, draw.int(2, 6))
    shape = ((h - size) // stride + 1, (w - size) // stride + 1, out)
    draw.add("layer_tanh", "maps", shape, [("conv", c, out, size, stride)])


def _pool(draw: _Draw) -> None:
    h, w, c = draw.shape
    if min(h, w) >= 2:
        draw.add(("max_pool", "mean_pool")[draw.int(0, 1)], "maps", (h // 2, w // 2, c), [])


def _residual(draw: _Draw) -> None:
    c = draw.shape[2]
    draw.add("residual", "maps", draw.shape, [("conv_same", c, c)])


def _branches(draw: _Draw) -> None:
    h, w, c = draw.shape
    a, b = draw.int(1, 4), draw.int(1, 4)
    draw.add("branches", "maps", (h, w, a + b), [("conv_same", c, a), ("conv_same", c, b)])


def _flat_branches(draw: _Draw) -> None:
    h, w, c = draw.shape
    a, b = draw.int(1, 4), draw.int(1, 4)
    draw.add("flat_branches", "vector", (h * w * (a + b),), [("conv_same", c, a), ("conv_same", c, b)])


def _gate(draw: _Draw) -> None:
    h, w, c = draw.shape
    draw.add("gate", "maps", (h, w, c), [("conv_same", c, 2 * c)])


def _excite(draw: _Draw) -> None:
    c = draw.shape[2]
    draw.add("excite", "maps", draw.shape, [("dense", c, c)])


def _simple(name: str) -> Callable[[_Draw], None]:
    return lambda draw: draw.add(name, draw.kind, draw.shape, [])


def _softmax(draw: _Draw) -> None:
    last = draw.kind in ("tokens", "vector")
    draw.add("softmax_channels", draw.kind, draw.shape, [], last=last)


def _double(draw: _Draw) -> None:
    draw.add("double", draw.kind, draw.shape, [], last=draw.kind in ("tokens", "vector"))


def _batch_norm(draw: _Draw) -> None:
    draw.add("layer", draw.kind, draw.shape, [("batch_norm", len(draw.shape), draw.shape[-1])])


def _crop(draw: _Draw) -> None:
    h, w, c = draw.shape
    if min(h, w) >= 2:
        draw.add("crop", "maps", (h - 1, w - 1, c), [])


def _pad(draw: _Draw) -> None:
    h, w, c = draw.shape
    draw.add("pad", "maps", (h + 2, w + 2, c), [])


def _over_axis(draw: _Draw) -> None:
    h, w, c = draw.shape
    axis = draw.int(0, 1)
    name = ("mean_axis", "max_axis")[draw.int(0, 1)]
    draw.add(name, "rows", ((w, c), (h, c))[axis], [], axis=axis)


def _over_all(draw: _Draw) -> None:
    draw.add(("mean_all", "max_all", "pool_all")[draw.int(0, 2)], "vector", (draw.shape[2],), [])


def _flatten(draw: _Draw) -> None:
    draw.add("flatten", "vector", (int(np.prod(draw.shape)),), [])


def _tokens(draw: _Draw) -> None:
    h, w, c = draw.shape
    draw.add("tokens", "tokens", (h * w, c), [])


def _places(draw: _Draw) -> None:
    h, w, c = draw.shape
    draw.add("places", "rows", (h * w, c), [])


def _shuffle(draw: _Draw) -> None:
    h, w, c = draw.shape
    out = draw.int(1, 3)
    draw.add("shuffle", "maps", (2 * h, 2 * w, out), [("conv_same", c, 4 * out)], out=out)


def _decode(draw: _Draw) -> None:
    size, out = draw.shape[0], draw.int(1, 3)
    draw.add("decode", "maps", (2, 2, out), [("dense", size, 9 * 2), ("conv", 2, out, 2, 1)])


def _rows_dense(draw: _Draw) -> None:
    length, c = draw.shape
    out = draw.int(1, 4)
    draw.add("rows_dense", "rows", (out, c), [("dense", length, out)], swap=True)


def _rows_conv(draw: _Draw) -> None:
    length, c = draw.shape
    if length >= 3:
        out = draw.int(1, 4)
        draw.add("rows_conv", "rows", (length - 2, out), [("conv1d", c, out)])


def _rows_mean(draw: _Draw) -> None:
    draw.add("rows_mean", "vector", (draw.shape[1],), [])


def _rows_to_tokens(draw: _Draw) -> None:
    draw.add("rows_to_tokens", "tokens", draw.shape, [])


def _rows_as_tokens(draw: _Draw) -> None:
    length, c = draw.shape
    draw.add("rows_as_tokens", "tokens", (c, length), [])


def _tokens_layer(kind: str) -> Callable[[_Draw], None]:
    def choose(draw: _Draw) -> None:
        length, size = draw.shape
        out = size if kind in ("layer_norm", "attention") else draw.int(2, 5)
        draw.add(f"tokens_{kind}", "tokens", (length, out), [(kind, size, out)])

    return choose


def _tokens_mean(draw: _Draw) -> None:
    draw.add(("tokens_mean", "tokens_last")[draw.int(0, 1)], "vector", (draw.shape[1],), [])


def _tokens_mix(draw: _Draw) -> None:
    length, size = draw.shape
    draw.add("tokens_mix", "tokens", (length, size), [("dense", length, length)])


def _dense(draw: _Draw) -> None:
    size = draw.shape[0]
    out = size if size <= 200 and draw.rng.random() < 0.5 else draw.int(2, 12)
    draw.add("layer_tanh", "vector", (out,), [("dense", size, out)])


def _dense_extra_axis(draw: _Draw) -> None:
    out = draw.int(2, 12)
    draw.add("dense_extra_axis", "vector", (out,), [("dense", draw.shape[0], out)])


def _cell(draw: _Draw) -> None:
    out = draw.int(2, 8)
    kind = ("gru_cell", "lstm_cell")[draw.int(0, 1)]
    draw.add(kind, "vector", (out,), [(kind, draw.shape[0], out)], size=out)


def _vector_norm(draw: _Draw) -> None:
    draw.add("layer", "vector", draw.shape, [("layer_norm", draw.shape[0], draw.shape[0])])


def _halves(draw: _Draw) -> None:
    size = draw.shape[0]
    if size % 2 == 0:
        draw.add("halves", "vector", (size,), [])


def _in_two(draw: _Draw) -> None:
    size = draw.shape[0]
    if size % 2 == 0:
        out = draw.int(2, 4)
        draw.add("in_two", "vector", (2 * out,), [("dense", size // 2, out)])


_ANY = [_simple("elu"), _simple("scale"), _simple("centre"), _softmax, _double]
_CHOICES: dict[str, list[Callable[[_Draw], None]]] = {
    "maps": [
        *_ANY,
        *[_simple(name) for name in ("cumsum", "sort", "flip", "spatial_softmax", "stack_mean")],
        *(_convolution, _convolution, _pool, _residual, _branches, _flat_branches, _gate, _excite, _batch_norm),
        *(_crop, _pad, _over_axis, _over_all, _flatten, _tokens, _places, _shuffle),
    ],
    "rows": [*_ANY, _rows_dense, _rows_conv, _rows_mean, _rows_to_tokens, _rows_as_tokens, _flatten],
    "tokens": [
        *_ANY,
        *[_tokens_layer(kind) for kind in ("dense", "lstm", "gru", "layer_norm", "attention")],
        *(_tokens_mean, _tokens_mix, _flatten, _simple("self_attention")),
    ],
    "vector": [
        *(_dense, _dense, _dense_extra_axis, _cell, _vector_norm, _halves, _in_two, _batch_norm, _decode),
        *_ANY,
    ],
}


def values_of(shapes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Values that a name and a shape alone decide, far from any initialisation, that keep outputs moderate."""
    out = {}
    for name, like in shapes.items():
        rng = np.random.default_rng(list(name.encode()))
        values = rng.normal(size=like.shape) / np.sqrt(max(1, like[0].size) if like.ndim > 1 else 4)
        if name.endswith("running_var"):
            values = 0.5 + np.abs(values)
        out[name] = values.astype(like.dtype)
    return out


# ---------------------------------------------------------------------------------------------------------- Torch


def build(backend_name: str, steps: list[Step]) -> Any:
    """The network, in one framework."""
    return {"torch": _in_torch, "tf": _in_keras}[backend_name](steps)


def _in_torch(steps: list[Step]) -> Any:
    import torch
    from torch import nn
    from torch.nn import functional as F

    kinds: dict[str, Any] = {
        "dense": nn.Linear,
        "conv": nn.Conv2d,
        "conv_same": lambda i, o: nn.Conv2d(i, o, 3, padding=1),
        "conv1d": lambda i, o: nn.Conv1d(i, o, 3),
        "batch_norm": lambda ndim, size: {3: nn.BatchNorm2d, 2: nn.BatchNorm1d, 1: nn.BatchNorm1d}[ndim](size),
        "layer_norm": lambda i, o: nn.LayerNorm(i),
        "lstm": lambda i, o: nn.LSTM(i, o, batch_first=True),
        "gru": lambda i, o: nn.GRU(i, o, batch_first=True),
        "attention": lambda i, o: nn.MultiheadAttention(i, 1, batch_first=True),
        "gru_cell": nn.GRUCell,
        "lstm_cell": nn.LSTMCell,
    }

    def gated(u: Any, v: Any) -> Any:
        return u * torch.sigmoid(v)

    def layer(x: Any, first: Any) -> Any:
        return first(x)

    operations: dict[str, Callable[..., Any]] = {
        "images": lambda x: x.permute(0, 3, 1, 2),
        "channels_first": lambda x: x,
        "layer": layer,
        "layer_tanh": lambda x, a: torch.tanh(a(x)),
        "dense": layer,
        "elu": F.elu,
        "scale": lambda x: x * 0.5 + 0.1,
        "double": lambda x, last: x + torch.cat([x, x], -1 if last else 1).chunk(2, -1 if last else 1)[1],
        "softmax_channels": lambda x, last: torch.softmax(x, -1 if last else 1),
        "centre": lambda x: x - x.mean(tuple(range(1, x.ndim)), keepdim=True),
        "cumsum": lambda x: torch.cumsum(x, 3),
        "sort": lambda x: torch.sort(x, 2)[0],
        "flip": lambda x: torch.flip(x, (2,)),
        "spatial_softmax": lambda x: x * torch.softmax(x.flatten(2), -1).reshape(x.shape),
        "stack_mean": lambda x: torch.stack([x, torch.tanh(x)], 1).amax(1),
        "max_pool": lambda x: F.max_pool2d(x, 2),
        "mean_pool": lambda x: F.avg_pool2d(x, 2),
        "residual": lambda x, a: x + torch.tanh(a(x)),
        "branches": lambda x, a, b: torch.cat([a(x), torch.tanh(b(x))], 1),
        "flat_branches": lambda x, a, b: torch.cat([a(x).flatten(1), b(x).flatten(1)], 1),
        "gate": lambda x, a: F.glu(a(x), 1) if a.out_channels % 4 else gated(*a(x).chunk(2, 1)),
        "excite": lambda x, a: x * torch.sigmoid(a(x.mean((2, 3))))[:, :, None, None],
        "crop": lambda x: x[:, :, 1:, :-1],
        "pad": lambda x: F.pad(x, (1, 1, 1, 1)),
        "mean_axis": lambda x, axis: x.mean(2 + axis),
        "max_axis": lambda x, axis: x.max(2 + axis)[0],
        "mean_all": lambda x: x.mean((2, 3)),
        "max_all": lambda x: x.amax((2, 3)),
        "pool_all": lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
        "flatten": lambda x: x.flatten(1),
        "slice": lambda x: x[:, :NUM_ACTIONS],
        "tokens": lambda x: x.flatten(2).transpose(1, 2),
        "places": lambda x: x.flatten(2),
        "shuffle": lambda x, a, out: F.pixel_shuffle(a(x), 2),
        "decode": lambda x, a, b: b(a(x).view(-1, 2, 3, 3)),
        "rows_dense": lambda x, a, swap: a(x),
        "rows_conv": layer,
        "rows_mean": lambda x: x.mean(2),
        "rows_to_tokens": lambda x: x.transpose(1, 2),
        "rows_as_tokens": lambda x: x,
        "tokens_dense": layer,
        "tokens_layer_norm": layer,
        "tokens_lstm": lambda x, a: a(x)[0],
        "tokens_gru": lambda x, a: a(x)[0],
        "tokens_attention": lambda x, a: a(x, x, x, need_weights=False)[0],
        "self_attention": lambda x: torch.softmax(x @ x.transpose(1, 2), -1) @ x,
        "tokens_mean": lambda x: x.mean(1),
        "tokens_last": lambda x: x[:, -1],
        "tokens_mix": lambda x, a: a(x.transpose(1, 2)).transpose(1, 2),
        "dense_extra_axis": lambda x, a: torch.tanh(a(x.unsqueeze(1))).squeeze(1),
        "gru_cell": lambda x, a, size: a(x),
        "lstm_cell": lambda x, a, size: a(x)[0],
        "halves": lambda x: torch.cat([x.chunk(2, 1)[1], torch.tanh(x.chunk(2, 1)[0])], 1),
        "in_two": lambda x, a: a(x.view(x.shape[0], 2, -1)).flatten(1),
    }

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for step in steps:
                for name, (kind, *sizes) in step.layers.items():
                    setattr(self, name, kinds[kind](*sizes))

        def forward(self, x: Any) -> Any:
            for step in steps:
                x = operations[step.name](x, *[getattr(self, name) for name in step.layers], **step.numbers)
            return x

    return Network()


# ---------------------------------------------------------------------------------------------------------- Keras


def _in_keras(steps: list[Step]) -> Any:
    import keras
    import tensorflow as tf
    from keras import layers, ops

    kinds: dict[str, Any] = {
        "dense": lambda i, o: layers.Dense(o),
        "conv": lambda i, o, size, stride: layers.Conv2D(o, size, stride),
        "conv_same": lambda i, o: layers.Conv2D(o, 3, padding="same"),
        "conv1d": lambda i, o: layers.Conv1D(o, 3),
        "batch_norm": lambda ndim, size: layers.BatchNormalization(epsilon=1e-5, momentum=0.9),
        "layer_norm": lambda i, o: layers.LayerNormalization(epsilon=1e-5),
        "lstm": lambda i, o: layers.LSTM(o, return_sequences=True),
        "gru": lambda i, o: layers.GRU(o, return_sequences=True),
        "attention": lambda i, o: layers.MultiHeadAttention(1, i),
        "gru_cell": lambda i, o: layers.GRUCell(o),
        "lstm_cell": lambda i, o: layers.LSTMCell(o),
    }

    def layer(x: Any, first: Any) -> Any:
        return first(x)

    def flat(x: Any) -> Any:
        return ops.reshape(x, (-1, int(np.prod(x.shape[1:]))))

    def gated(u: Any, v: Any) -> Any:
        return u * ops.sigmoid(v)

    def tokens(x: Any) -> Any:
        return ops.reshape(x, (-1, x.shape[1] * x.shape[2], x.shape[3]))

    def zeros(x: Any, size: int) -> Any:
        return ops.zeros((ops.shape(x)[0], size))

    def spatial_softmax(x: Any) -> Any:
        return x * ops.reshape(ops.softmax(tokens(x), 1), (-1, *x.shape[1:]))

    def centre(x: Any) -> Any:
        return x - ops.mean(x, tuple(range(1, len(x.shape))), keepdims=True)

    operations: dict[str, Callable[..., Any]] = {
        "images": lambda x: x,
        "channels_first": lambda x: ops.transpose(x, (0, 2, 3, 1)),
        "layer": layer,
        "layer_tanh": lambda x, a: ops.tanh(a(x)),
        "dense": layer,
        "elu": ops.elu,
        "scale": lambda x: x * 0.5 + 0.1,
        "double": lambda x, last: x + ops.split(ops.concatenate([x, x], -1), 2, -1)[1],
        "softmax_channels": lambda x, last: ops.softmax(x, -1),
        "centre": centre,
        "cumsum": lambda x: ops.cumsum(x, 2),
        "sort": lambda x: ops.sort(x, 1),
        "flip": lambda x: ops.flip(x, 1),
        "spatial_softmax": spatial_softmax,
        "stack_mean": lambda x: ops.max(ops.stack([x, ops.tanh(x)], 1), 1),
        "max_pool": lambda x: ops.max_pool(x, 2),
        "mean_pool": lambda x: ops.average_pool(x, 2),
        "residual": lambda x, a: x + ops.tanh(a(x)),
        "branches": lambda x, a, b: ops.concatenate([a(x), ops.tanh(b(x))], -1),
        "flat_branches": lambda x, a, b: ops.concatenate([flat(a(x)), flat(b(x))], -1),
        "gate": lambda x, a: gated(*ops.split(a(x), 2, -1)),
        "excite": lambda x, a: x * ops.sigmoid(a(ops.mean(x, (1, 2))))[:, None, None, :],
        "crop": lambda x: x[:, 1:, :-1, :],
        "pad": lambda x: ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))),
        "mean_axis": lambda x, axis: ops.mean(x, 1 + axis),
        "max_axis": lambda x, axis: ops.max(x, 1 + axis),
        "mean_all": lambda x: ops.mean(x, (1, 2)),
        "max_all": lambda x: ops.max(x, (1, 2)),
        "pool_all": lambda x: ops.mean(x, (1, 2)),
        "flatten": flat,
        "slice": lambda x: x[:, :NUM_ACTIONS],
        "tokens": tokens,
        "places": tokens,
        "shuffle": lambda x, a, out: tf.nn.depth_to_space(a(x), 2),
        "decode": lambda x, a, b: b(ops.reshape(a(x), (-1, 3, 3, 2))),
        "rows_dense": lambda x, a, swap: ops.transpose(a(ops.transpose(x, (0, 2, 1))), (0, 2, 1)),
        "rows_conv": layer,
        "rows_mean": lambda x: ops.mean(x, 1),
        "rows_to_tokens": lambda x: x,
        "rows_as_tokens": lambda x: ops.transpose(x, (0, 2, 1)),
        "tokens_dense": layer,
        "tokens_layer_norm": layer,
        "tokens_lstm": layer,
        "tokens_gru": layer,
        "tokens_attention": lambda x, a: a(x, x),
        "self_attention": lambda x: ops.softmax(x @ ops.transpose(x, (0, 2, 1)), -1) @ x,
        "tokens_mean": lambda x: ops.mean(x, 1),
        "tokens_last": lambda x: x[:, -1],
        "tokens_mix": lambda x, a: ops.transpose(a(ops.transpose(x, (0, 2, 1))), (0, 2, 1)),
        "dense_extra_axis": lambda x, a: ops.squeeze(ops.tanh(a(ops.expand_dims(x, 1))), 1),
        "gru_cell": lambda x, a, size: a(x, [zeros(x, size)])[0],
        "lstm_cell": lambda x, a, size: a(x, [zeros(x, size), zeros(x, size)])[0],
        "halves": lambda x: ops.concatenate([ops.split(x, 2, 1)[1], ops.tanh(ops.split(x, 2, 1)[0])], 1),
        "in_two": lambda x, a: flat(a(ops.reshape(x, (-1, 2, x.shape[1] // 2)))),
    }

    class Network(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            for step in steps:
                for name, (kind, *sizes) in step.layers.items():
                    setattr(self, name, kinds[kind](*sizes))

        def call(self, x: Any) -> Any:
            for step in steps:
                x = operations[step.name](x, *[getattr(self, name) for name in step.layers], **step.numbers)
            return x

    return Network()
