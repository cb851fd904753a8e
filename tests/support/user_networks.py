"""Networks as a user writes them, each once for Torch and once for Keras, and meant to be equivalent.

Frameworks are imported by the functions that need them only. ``CASES`` names every pair, its observation space and the
row of the interoperability table that it stands for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete

__all__ = ["CASES", "NUM_ACTIONS", "factory", "observations", "perturbed"]

NUM_ACTIONS = 3
_VECTOR = Box(-5, 5, (6,), np.float32)
_SEQUENCE = Box(-5, 5, (7, 5), np.float32)
_IMAGE = Box(0, 255, (44, 52, 3), np.uint8)
_MAP = Box(-5, 5, (9, 8, 4), np.float32)

#: name -> observation space.
CASES: dict[str, Any] = {
    "dense": _VECTOR,
    "attributes": _VECTOR,
    "nature cnn": _IMAGE,
    "padded convolution": _MAP,
    "depthwise and transposed": _MAP,
    "convolution in one dimension": _SEQUENCE,
    "image and vector": Dict({"image": _MAP, "vector": _VECTOR}),
    "flat normalisation": _MAP,
    "joined branches": _MAP,
    "square layer": _MAP,
    "mean and gate": _MAP,
    "cell on maps": _MAP,
    "tokens of maps": _MAP,
    "where features are": _MAP,
    "decoder": _MAP,
    "lstm": _SEQUENCE,
    "gru": _SEQUENCE,
    "bidirectional": _SEQUENCE,
    "stacked lstm": _SEQUENCE,
    "stacked gru": _SEQUENCE,
    "cells": _SEQUENCE,
    "layer norm": _VECTOR,
    "batch norm": _VECTOR,
    "attention": _SEQUENCE,
    "activations": _VECTOR,
    "embedding": MultiDiscrete([11, 11]),
    "tied": Discrete(NUM_ACTIONS),
    "frozen": _VECTOR,
}


def factory(framework: str, case: str) -> Callable[[], Any]:
    """A function that makes the network."""
    networks = _torch_networks() if framework == "torch" else _keras_networks()
    made: Callable[[], Any] = networks[case]
    return made


def observations(case: str, rows: int = 4) -> Any:
    """Random observations [rows, ...], the same in every process."""
    rng = np.random.default_rng(sum(case.encode()))

    def of(space: Any) -> Any:
        if isinstance(space, Dict):
            return {key: of(inner) for key, inner in space.spaces.items()}
        if isinstance(space, Discrete):
            return rng.integers(0, space.n, rows)
        if isinstance(space, MultiDiscrete):
            return rng.integers(0, space.nvec[0], (rows, len(space.nvec)))
        if space.dtype == np.uint8:
            return rng.integers(0, 256, (rows, *space.shape)).astype(np.uint8)
        return rng.normal(size=(rows, *space.shape)).astype(np.float32)

    return of(CASES[case])


def perturbed(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Values that depend on names and shapes alone, far from any initialisation: no zero bias, no unit variance."""
    out = {}
    for name, value in arrays.items():
        rng = np.random.default_rng(list(name.encode()))
        scale = 1.0 / np.sqrt(max(np.prod(value.shape[1:]), 1)) if value.ndim > 1 else 0.3
        values = rng.normal(size=value.shape) * scale
        if name.endswith("running_var"):
            values = np.exp(values)
        elif value.ndim == 1 and name.endswith("weight"):
            values = 1.0 + values
        out[name] = values.astype(value.dtype) if value.dtype.kind == "f" else value
    return out


def _torch_networks() -> dict[str, Callable[[], Any]]:
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Attributes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 8)])
            self.heads = nn.ModuleDict({"pi": nn.Linear(8, NUM_ACTIONS), "vf": nn.Linear(8, 1)})
            self.temperature = nn.Parameter(torch.ones(NUM_ACTIONS))

        def forward(self, obs: Any) -> Any:
            for layer in self.body:
                obs = torch.tanh(layer(obs))
            return self.heads["pi"](obs) * self.temperature, self.heads["vf"](obs)

    class Nature(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Sequential(
                nn.Conv2d(3, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU()
            )
            self.fc = nn.Linear(2 * 3 * 64, 32)
            self.pi = nn.Linear(32, NUM_ACTIONS)

        def forward(self, obs: Any) -> Any:
            x = self.conv(obs.permute(0, 3, 1, 2).float() / 255.0)
            return {"action_dist_inputs": self.pi(torch.relu(self.fc(x.flatten(1))))}

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 6, 3, stride=2, padding=1)
            self.pi = nn.Linear(6 * 5 * 4, NUM_ACTIONS)

        def forward(self, obs: Any) -> Any:
            x = F.elu(self.conv(obs.permute(0, 3, 1, 2)))
            return self.pi(x.reshape(x.shape[0], -1))

    class Unusual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.depthwise = nn.Conv2d(4, 8, 3, groups=4)
            self.up = nn.ConvTranspose2d(8, 5, 3, stride=2)
            self.pi = nn.Linear(15 * 13 * 5, NUM_ACTIONS)

        def forward(self, obs: Any) -> Any:
            x = self.up(torch.tanh(self.depthwise(obs.permute(0, 3, 1, 2))))
            return self.pi(nn.Flatten()(x))

    class OneDimension(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(5, 6, 3)
            self.pi = nn.Linear(6 * 5, NUM_ACTIONS)

        def forward(self, obs: Any) -> Any:
            return self.pi(torch.tanh(self.conv(obs.transpose(1, 2))).flatten(1))

    class ImageAndVector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 3, 3)
            self.vector = nn.Linear(6, 5)
            self.joint = nn.Linear(5 + 3 * 3 * 3 + 6, 16)
            self.pi = nn.Linear(16, NUM_ACTIONS)

        def forward(self, obs: Any) -> Any:
            x = F.max_pool2d(torch.tanh(self.conv(obs["image"].permute(0, 3, 1, 2))), 2)
            x = torch.cat([self.vector(obs["vector"]), x.flatten(1), obs["vector"]], dim=-1)
            return self.pi(torch.tanh(self.joint(x)))

    class FlatNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 3, 3, stride=2)
            self.norm = nn.BatchNorm1d(3 * 4 * 3)
            self.pi = nn.Linear(3 * 4 * 3, NUM_ACTIONS)

        def forward(self, obs: Any) -> Any:
            return self.pi(torch.tanh(self.norm(self.conv(obs.permute(0, 3, 1, 2)).flatten(1))))

    class Joined(nn.Module):
        """Two branches joined as maps; a residual; the flattened maps have an axis of their own."""

        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(4, 3, 3), nn.Conv2d(4, 2, 3)
            self.same = nn.Conv2d(5, 5, 3, padding=1)
            self.pi = nn.Linear(5 * 7 * 6, NUM_ACTIONS)

        def forward(self, obs: Any) -> Any:
            maps = obs.permute(0, 3, 1, 2)
            x = torch.cat([self.left(maps), torch.tanh(self.right(maps))], 1)
            x = x + torch.tanh(self.same(x))
            return self.pi(x.flatten(1)[:, None]).squeeze(1)

    class Square(nn.Module):
        """As many outputs as flattened maps: the bias stays as it is."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, stride=2)
            self.square = nn.Linear(48, 48)
            self.pi = nn.Linear(48, NUM_ACTIONS)

        def forward(self, obs: Any) -> Any:
            return self.pi(torch.tanh(self.square(self.conv(obs.permute(0, 3, 1, 2)).flatten(1))))

    class MeanAndGate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 6, 3)
            self.excite = nn.Linear(3, 3)
            self.pi = nn.Linear(3 * 6 + 3 * 7, NUM_ACTIONS)

        def forward(self, obs: Any) -> Any:
            a, b = self.conv(obs.permute(0, 3, 1, 2)).chunk(2, 1)
            x = a * torch.sigmoid(b)
            x = x * torch.sigmoid(self.excite(x.mean((2, 3))))[:, :, None, None]
            return self.pi(torch.cat([x.mean(2).flatten(1), x.amax(3).flatten(1)], 1))

    class CellOnMaps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, stride=2)
            self.first, self.second = nn.GRUCell(48, 6), nn.LSTMCell(48, 5)
            self.pi = nn.Linear(11, NUM_ACTIONS)

        def forward(self, obs: Any) -> Any:
            x = torch.tanh(self.conv(obs.permute(0, 3, 1, 2))).flatten(1)
            return self.pi(torch.cat([self.first(x), self.second(x)[0]], 1))

    class TokensOfMaps(nn.Module):
        """Places as tokens, and channels as tokens."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 6, 3, stride=2)
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
            self.over_places = nn.Linear(12, 5)
            self.pi = nn.Linear(6 + 6 * 5, NUM_ACTIONS)

        def forward(self, obs: Any) -> Any:
            x = torch.tanh(self.conv(obs.permute(0, 3, 1, 2))).flatten(2)
            places = x.transpose(1, 2)
            y = self.attention(places, places, places, need_weights=False)[0].mean(1)
            return self.pi(torch.cat([y, torch.tanh(self.over_places(x)).flatten(1)], 1))

    class WhereFeaturesAre(nn.Module):
        """A softmax over the places of each channel; the strongest of them, in order; the strongest of all."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 5, 3)
            self.pi = nn.Linear(5 * 42 + 5 * 4 + 6, NUM_ACTIONS)

        def forward(self, obs: Any) -> Any:
            x = self.conv(obs.permute(0, 3, 1, 2)).flatten(2)
            best = torch.stack([x, torch.tanh(x)], 1).amax(1).topk(4, -1)[0]
            strongest = torch.sort(x.flatten(1), 1)[0][:, -6:]
            return self.pi(torch.cat([torch.softmax(x, -1).flatten(1), best.flatten(1), strongest], 1))

    class Decoder(nn.Module):
        """Maps from features, and from flattened maps."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 3, 3, stride=2)
            self.flat_norm = nn.LayerNorm(36)
            self.again = nn.Conv2d(3, 2, 2)
            self.features = nn.Linear(2 * 3 * 2, 4 * 3 * 2)
            self.up = nn.ConvTranspose2d(4, 3, 2)
            self.pi = nn.Linear(4 * 3 * 3 + 4 * 3 * 2, NUM_ACTIONS)

        def forward(self, obs: Any) -> Any:
            x = self.flat_norm(torch.tanh(self.conv(obs.permute(0, 3, 1, 2))).flatten(1))
            x = self.again(x.view(-1, 3, 4, 3)).flatten(1)
            features = torch.tanh(self.features(x))
            maps = torch.tanh(self.up(features.view(-1, 4, 3, 2)))
            return self.pi(torch.cat([maps.flatten(1), features], 1))

    class Recurrent(nn.Module):
        def __init__(self, kind: Any, **settings: Any) -> None:
            super().__init__()
            self.core = kind(5, 8, batch_first=True, **settings)
            self.pi = nn.Linear(16 if "bidirectional" in settings else 8, NUM_ACTIONS)

        def forward(self, obs: Any) -> Any:
            return self.pi(self.core(obs)[0].mean(1))

    class Cells(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.LSTMCell(5, 8), nn.GRUCell(8, 6)
            self.pi = nn.Linear(6, NUM_ACTIONS)

        def forward(self, obs: Any) -> Any:
            h = c = obs.new_zeros((obs.shape[0], 8))
            z = obs.new_zeros((obs.shape[0], 6))
            for t in range(obs.shape[1]):
                h, c = self.first(obs[:, t], (h, c))
                z = self.second(h, z)
            return self.pi(z)

    class Norm(nn.Module):
        def __init__(self, norm: Any) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 8)
            self.norm = norm
            self.pi = nn.Linear(8, NUM_ACTIONS)

        def forward(self, obs: Any) -> Any:
            return self.pi(torch.tanh(self.norm(self.fc(obs))))

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(5, 12)
            self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
            self.pi = nn.Linear(12, NUM_ACTIONS)

        def forward(self, obs: Any) -> Any:
            x = self.embed(obs)
            return self.pi(self.attention(x, x, x, need_weights=False)[0].mean(1))

    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(11, 4)
            self.pi = nn.Linear(8, NUM_ACTIONS)

        def forward(self, obs: Any) -> Any:
            return self.pi(self.table(obs).flatten(1))

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(NUM_ACTIONS, 4)
            self.twice = nn.Linear(4, 4)
            self.again = self.twice
            self.out = nn.Linear(4, NUM_ACTIONS, bias=False)
            self.out.weight = self.table.weight

        def forward(self, obs: Any) -> Any:
            return self.out(self.again(torch.tanh(self.twice(self.table(obs)))))

    def frozen() -> Any:
        network = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, NUM_ACTIONS))
        network[0].requires_grad_(False)
        return network

    return {
        "dense": lambda: nn.Sequential(
            nn.Linear(6, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, NUM_ACTIONS)
        ),
        "attributes": Attributes,
        "nature cnn": Nature,
        "padded convolution": Padded,
        "depthwise and transposed": Unusual,
        "convolution in one dimension": OneDimension,
        "image and vector": ImageAndVector,
        "flat normalisation": FlatNorm,
        "joined branches": Joined,
        "square layer": Square,
        "mean and gate": MeanAndGate,
        "cell on maps": CellOnMaps,
        "tokens of maps": TokensOfMaps,
        "where features are": WhereFeaturesAre,
        "decoder": Decoder,
        "lstm": lambda: Recurrent(nn.LSTM),
        "gru": lambda: Recurrent(nn.GRU),
        "bidirectional": lambda: Recurrent(nn.LSTM, bidirectional=True),
        "stacked lstm": lambda: Recurrent(nn.LSTM, num_layers=3),
        "stacked gru": lambda: Recurrent(nn.GRU, num_layers=2),
        "cells": Cells,
        "layer norm": lambda: Norm(nn.LayerNorm(8)),
        "batch norm": lambda: Norm(nn.BatchNorm1d(8, momentum=0.2)),
        "attention": Attention,
        "activations": lambda: nn.Sequential(
            nn.Linear(6, 8), nn.LeakyReLU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 3)
        ),
        "embedding": Embedded,
        "tied": Tied,
        "frozen": frozen,
    }


def _keras_networks() -> dict[str, Callable[[], Any]]:
    import keras
    from keras import layers, ops

    class Attributes(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.body = [layers.Dense(8, activation="tanh"), layers.Dense(8, activation="tanh")]
            self.heads = {"pi": layers.Dense(NUM_ACTIONS), "vf": layers.Dense(1)}
            self.temperature = self.add_weight(shape=(NUM_ACTIONS,), initializer="ones", name="temperature")

        def call(self, obs: Any) -> Any:
            for layer in self.body:
                obs = layer(obs)
            return self.heads["pi"](obs) * self.temperature, self.heads["vf"](obs)

    def nature() -> Any:
        obs = keras.Input((44, 52, 3), dtype="uint8")
        x = layers.Rescaling(1 / 255.0)(obs)
        conv = keras.Sequential(
            [
                layers.Conv2D(32, 8, 4, activation="relu"),
                layers.Conv2D(64, 4, 2, activation="relu"),
                layers.Conv2D(64, 3, activation="relu"),
            ],
            name="conv",
        )
        x = layers.Dense(32, activation="relu", name="fc")(layers.Flatten()(conv(x)))
        return keras.Model(obs, {"action_dist_inputs": layers.Dense(NUM_ACTIONS, name="pi")(x)})

    class Padded(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.pad = layers.ZeroPadding2D(1)
            self.conv = layers.Conv2D(6, 3, 2, activation="elu")
            self.pi = layers.Dense(NUM_ACTIONS)

        def call(self, obs: Any) -> Any:
            return self.pi(layers.Flatten()(self.conv(self.pad(obs))))

    class Unusual(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.depthwise = layers.DepthwiseConv2D(3, depth_multiplier=2, activation="tanh")
            self.up = layers.Conv2DTranspose(5, 3, strides=2)
            self.pi = layers.Dense(NUM_ACTIONS)

        def call(self, obs: Any) -> Any:
            return self.pi(ops.reshape(self.up(self.depthwise(obs)), (ops.shape(obs)[0], -1)))

    class OneDimension(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.conv = layers.Conv1D(6, 3, activation="tanh")
            self.pi = layers.Dense(NUM_ACTIONS)
            self.flatten = layers.Flatten()

        def call(self, obs: Any) -> Any:
            return self.pi(self.flatten(self.conv(obs)))

    class ImageAndVector(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.conv = layers.Conv2D(3, 3, activation="tanh")
            self.pool = layers.MaxPooling2D(2)
            self.flatten = layers.Flatten()
            self.vector = layers.Dense(5)
            self.joint = layers.Dense(16, activation="tanh")
            self.pi = layers.Dense(NUM_ACTIONS)

        def call(self, obs: Any) -> Any:
            x = self.flatten(self.pool(self.conv(obs["image"])))
            return self.pi(self.joint(ops.concatenate([self.vector(obs["vector"]), x, obs["vector"]], -1)))

    class FlatNorm(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.conv = layers.Conv2D(3, 3, 2)
            self.flatten = layers.Flatten()
            self.norm = layers.BatchNormalization(momentum=0.9, epsilon=1e-5)
            self.pi = layers.Dense(NUM_ACTIONS)

        def call(self, obs: Any, training: Any = None) -> Any:
            return self.pi(ops.tanh(self.norm(self.flatten(self.conv(obs)), training=training)))

    def flat(x: Any) -> Any:
        return ops.reshape(x, (-1, int(np.prod(x.shape[1:]))))

    class Joined(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = layers.Conv2D(3, 3), layers.Conv2D(2, 3, activation="tanh")
            self.same = layers.Conv2D(5, 3, padding="same", activation="tanh")
            self.pi = layers.Dense(NUM_ACTIONS)

        def call(self, obs: Any) -> Any:
            x = ops.concatenate([self.left(obs), self.right(obs)], -1)
            return self.pi(flat(x + self.same(x)))

    class Square(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.conv = layers.Conv2D(4, 3, 2)
            self.square = layers.Dense(48, activation="tanh")
            self.pi = layers.Dense(NUM_ACTIONS)

        def call(self, obs: Any) -> Any:
            return self.pi(self.square(flat(self.conv(obs))))

    class MeanAndGate(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.conv = layers.Conv2D(6, 3)
            self.excite = layers.Dense(3, activation="sigmoid")
            self.pi = layers.Dense(NUM_ACTIONS)

        def call(self, obs: Any) -> Any:
            a, b = ops.split(self.conv(obs), 2, -1)
            x = a * ops.sigmoid(b)
            x = x * self.excite(ops.mean(x, (1, 2)))[:, None, None, :]
            return self.pi(ops.concatenate([flat(ops.mean(x, 1)), flat(ops.max(x, 2))], 1))

    class CellOnMaps(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.conv = layers.Conv2D(4, 3, 2, activation="tanh")
            self.first, self.second = layers.GRUCell(6), layers.LSTMCell(5)
            self.pi = layers.Dense(NUM_ACTIONS)

        def call(self, obs: Any) -> Any:
            x = flat(self.conv(obs))
            zeros = [ops.zeros((ops.shape(x)[0], size), x.dtype) for size in (6, 5)]
            y, _ = self.first(x, [zeros[0]])
            z, _ = self.second(x, [zeros[1], zeros[1]])
            return self.pi(ops.concatenate([y, z], 1))

    class TokensOfMaps(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.conv = layers.Conv2D(6, 3, 2, activation="tanh")
            self.attention = layers.MultiHeadAttention(2, 3)
            self.over_places = layers.Dense(5, activation="tanh")
            self.pi = layers.Dense(NUM_ACTIONS)

        def call(self, obs: Any) -> Any:
            places = ops.reshape(self.conv(obs), (-1, 12, 6))
            y = ops.mean(self.attention(places, places), 1)
            return self.pi(ops.concatenate([y, flat(self.over_places(ops.transpose(places, (0, 2, 1))))], 1))

    class WhereFeaturesAre(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.conv = layers.Conv2D(5, 3)
            self.pi = layers.Dense(NUM_ACTIONS)

        def call(self, obs: Any) -> Any:
            x = ops.reshape(self.conv(obs), (-1, 42, 5))
            best = ops.max(ops.stack([x, ops.tanh(x)], 1), 1)
            best = ops.transpose(ops.top_k(ops.transpose(best, (0, 2, 1)), 4)[0], (0, 2, 1))
            strongest = ops.sort(flat(x), 1)[:, -6:]
            return self.pi(ops.concatenate([flat(ops.softmax(x, 1)), flat(best), strongest], 1))

    class Decoder(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.conv = layers.Conv2D(3, 3, 2, activation="tanh")
            self.flat_norm = layers.LayerNormalization(epsilon=1e-5)
            self.again = layers.Conv2D(2, 2)
            self.features = layers.Dense(24, activation="tanh")
            self.up = layers.Conv2DTranspose(3, 2, activation="tanh")
            self.pi = layers.Dense(NUM_ACTIONS)

        def call(self, obs: Any) -> Any:
            x = ops.reshape(self.flat_norm(flat(self.conv(obs))), (-1, 4, 3, 3))
            features = self.features(flat(self.again(x)))
            maps = self.up(ops.reshape(features, (-1, 3, 2, 4)))
            return self.pi(ops.concatenate([flat(maps), features], 1))

    class Core(keras.Model):
        def __init__(self, core: Any) -> None:
            super().__init__()
            self.core = core
            self.pi = layers.Dense(NUM_ACTIONS)

        def call(self, obs: Any) -> Any:
            return self.pi(ops.mean(self.core(obs), 1))

    class Cells(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = layers.LSTMCell(8), layers.GRUCell(6)
            self.pi = layers.Dense(NUM_ACTIONS)

        def call(self, obs: Any) -> Any:
            h = c = ops.zeros((ops.shape(obs)[0], 8), obs.dtype)
            z = ops.zeros((ops.shape(obs)[0], 6), obs.dtype)
            for t in range(obs.shape[1]):
                _, (h, c) = self.first(obs[:, t], [h, c])
                z, _ = self.second(h, [z])
            return self.pi(z)

    class Norm(keras.Model):
        def __init__(self, norm: Any) -> None:
            super().__init__()
            self.fc = layers.Dense(8)
            self.norm = norm
            self.pi = layers.Dense(NUM_ACTIONS)

        def call(self, obs: Any) -> Any:
            return self.pi(ops.tanh(self.norm(self.fc(obs))))

    class Attention(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.embed = layers.Dense(12)
            self.attention = layers.MultiHeadAttention(3, 4)
            self.pi = layers.Dense(NUM_ACTIONS)

        def call(self, obs: Any) -> Any:
            x = self.embed(obs)
            return self.pi(ops.mean(self.attention(x, x), 1))

    class Embedded(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.table = layers.Embedding(11, 4)
            self.pi = layers.Dense(NUM_ACTIONS)

        def call(self, obs: Any) -> Any:
            return self.pi(ops.reshape(self.table(obs), (-1, 8)))

    class Tied(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.table = layers.Embedding(NUM_ACTIONS, 4)
            self.twice = layers.Dense(4)
            self.again = self.twice

        def call(self, obs: Any) -> Any:
            x = self.again(ops.tanh(self.twice(self.table(obs))))
            return ops.matmul(x, ops.transpose(self.table.embeddings))

    def frozen() -> Any:
        first = layers.Dense(8, activation="tanh", trainable=False)
        return keras.Sequential([first, layers.Dense(NUM_ACTIONS)])

    return {
        "dense": lambda: keras.Sequential(
            [layers.Dense(256, activation="tanh"), layers.Dense(256, activation="tanh"), layers.Dense(NUM_ACTIONS)]
        ),
        "attributes": Attributes,
        "nature cnn": nature,
        "padded convolution": Padded,
        "depthwise and transposed": Unusual,
        "convolution in one dimension": OneDimension,
        "image and vector": ImageAndVector,
        "flat normalisation": FlatNorm,
        "joined branches": Joined,
        "square layer": Square,
        "mean and gate": MeanAndGate,
        "cell on maps": CellOnMaps,
        "tokens of maps": TokensOfMaps,
        "where features are": WhereFeaturesAre,
        "decoder": Decoder,
        "lstm": lambda: Core(layers.LSTM(8, return_sequences=True)),
        "gru": lambda: Core(layers.GRU(8, return_sequences=True)),
        "bidirectional": lambda: Core(layers.Bidirectional(layers.LSTM(8, return_sequences=True))),
        "stacked lstm": lambda: Core(layers.RNN([layers.LSTMCell(8) for _ in range(3)], return_sequences=True)),
        "stacked gru": lambda: Core(layers.RNN([layers.GRUCell(8) for _ in range(2)], return_sequences=True)),
        "cells": Cells,
        "layer norm": lambda: Norm(layers.LayerNormalization(epsilon=1e-5)),
        "batch norm": lambda: Norm(layers.BatchNormalization(momentum=0.8, epsilon=1e-5)),
        "attention": Attention,
        "activations": lambda: keras.Sequential(
            [
                layers.Dense(8),
                layers.LeakyReLU(0.01),
                layers.Dense(8),
                layers.Activation(lambda x: keras.activations.gelu(x, approximate=False)),
                layers.Dense(8, activation="silu"),
                layers.Dense(3),
            ]
        ),
        "embedding": Embedded,
        "tied": Tied,
        "frozen": frozen,
    }
