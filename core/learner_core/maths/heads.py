"""Heads over features: the dueling head of Q-learning.

(The two Q networks of SAC are two networks, ``qf`` and ``qf_twin``, of the SAC module.)

References:
    Wang et al., Dueling network architectures for deep reinforcement learning, https://arxiv.org/abs/1511.06581
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..xp import Array, Namespace
from .networks import MLP, Parameters

__all__ = ["DuelingHead"]


class DuelingHead:
    """Q values as a state's value and the advantages of its actions over their mean::

        Q(s, a) = V(s) + A(s, a) - mean_a' A(s, a')

    Parameters are those of two networks, ``{name}_value.*`` and ``{name}_advantage.*``.

    Args:
        name: Prefix of the parameter names.
        input_size: Length of the last axis of the features.
        num_actions: How many actions there are.
        hidden: Sizes of the hidden layers of either network; none by default.
        activation: After every hidden layer.
        init: As for :class:`MLP`.

    Raises:
        ConfigError: As :class:`MLP`.
    """

    def __init__(
        self,
        name: str,
        input_size: int,
        num_actions: int,
        *,
        hidden: Sequence[int] = (),
        activation: str = "relu",
        init: str = "orthogonal",
    ) -> None:
        self.name = name
        self.value: MLP = MLP(f"{name}_value", input_size, hidden, 1, activation=activation, init=init)
        self.advantage: MLP = MLP(
            f"{name}_advantage", input_size, hidden, num_actions, activation=activation, init=init
        )

    @property
    def output_size(self) -> int:
        """Number of actions."""
        return self.advantage.output_size

    def init(self, rng: np.random.Generator) -> Parameters:
        """Sample the parameters of both networks, float32."""
        return {**self.value.init(rng), **self.advantage.init(rng)}

    def apply(self, xp: Namespace, params: Mapping[str, Array], x: Array) -> Array:
        """Compute Q values.

        Args:
            xp: The array namespace.
            params: Arrays by parameter name; others are ignored.
            x: ``[..., input_size]``.

        Returns:
            ``[..., num_actions]``.
        """
        advantages = self.advantage.apply(xp, params, x)
        return self.value.apply(xp, params, x) + advantages - xp.mean(advantages, axis=-1, keepdims=True)

    def __repr__(self) -> str:
        return f"DuelingHead({self.name!r}, {self.value.input_size} -> {self.output_size})"
