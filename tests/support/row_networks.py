"""Networks whose layers look at all rows of a minibatch, of either framework; imports the one that is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["coupled_network", "norm_network"]


def norm_network(backend_name: str) -> Callable[[], Any]:
    """A function that makes a policy and values for three observations: BatchNorm before, between and beside layers."""
    return _torch_norms if backend_name == "torch" else _keras_norms


def coupled_network(backend_name: str) -> Callable[[], Any]:
    """A function that makes a policy and values of which every row knows the mean of all, by no layer that is known."""
    return _torch_coupled if backend_name == "torch" else _keras_coupled


def _torch_norms() -> Any:
    import torch
    from torch import nn

    class Norms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shown = nn.BatchNorm1d(3, affine=False)
            self.body = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6, momentum=0.3), nn.Tanh())
            # As images are: channels first, and places that count like rows.
            self.places = nn.BatchNorm2d(2)
            self.beside = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6, momentum=None))
            self.pi, self.vf = nn.Linear(6, 2), nn.Linear(6, 1)

        def forward(self, obs: Any) -> Any:
            x = self.body(self.shown(obs))
            x = x + self.places(x.reshape(-1, 2, 3, 1)).reshape(-1, 6)
            return self.pi(x), self.vf(torch.tanh(self.beside(x)))

    return Norms()


def _keras_norms() -> Any:
    import keras
    from keras import layers, ops

    class Norms(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.shown = layers.BatchNormalization(center=False, scale=False)
            self.first, self.norm = layers.Dense(6), layers.BatchNormalization(momentum=0.7)
            self.places = layers.BatchNormalization(axis=1)
            self.beside, self.other = layers.Dense(6), layers.BatchNormalization(momentum=0.5)
            self.pi, self.vf = layers.Dense(2), layers.Dense(1)

        def call(self, obs: Any, training: Any = None) -> Any:
            x = ops.tanh(self.norm(self.first(self.shown(obs, training=training)), training=training))
            x = x + ops.reshape(self.places(ops.reshape(x, (-1, 2, 3)), training=training), (-1, 6))
            return self.pi(x), self.vf(ops.tanh(self.other(self.beside(x), training=training)))

    return Norms()


def _torch_coupled() -> Any:
    from torch import nn

    class Coupled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pi, self.vf = nn.Linear(3, 2), nn.Linear(3, 1)

        def forward(self, obs: Any) -> Any:
            return self.pi(obs - obs.mean(0)), self.vf(obs)

    return Coupled()


def _keras_coupled() -> Any:
    import keras
    from keras import layers, ops

    class Coupled(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.pi, self.vf = layers.Dense(2), layers.Dense(1)

        def call(self, obs: Any) -> Any:
            return self.pi(obs - ops.mean(obs, 0)), self.vf(obs)

    return Coupled()
