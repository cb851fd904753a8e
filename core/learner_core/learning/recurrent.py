"""A trunk with a memory: encoder, recurrent core, head.

Needs batches with ``state_in``, and ``resets`` where they are sequences [B, T, ...]; a batch of rows [B, ...] is one
step. Refuses recurrent layers that do not exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from ..errors import ConfigError, did_you_mean
from ..maths.networks import MLP
from ..maths.recurrent import GRU, LSTM
from .sequences import leading_axes, obs_leaf

__all__ = ["RECURRENT_KEYS", "Memory"]

#: Settings of a model that say whether and how it remembers.
RECURRENT_KEYS: Final = ("recurrent", "recurrent_size")

_CORES: Final = {"lstm": LSTM, "gru": GRU}


class Memory:
    """``encoder -> core -> head`` in the place of a ``Trunk``.

    Parameters are the encoder's, ``{name}_core.*`` of the LSTM or GRU and ``{name}_head.0`` of the head. The state has
    the core's leaves under ``{name}_h`` (and ``{name}_c``).

    Args:
        name: prefix of the parameter names.
        space: observation space.
        model: ``recurrent`` is "lstm" or "gru", ``recurrent_size`` (64) the size of its state.
        encoder: a ``Trunk`` without head.
        output_size: size of the head; ``None``: the core's outputs.
        output_gain: scale of the head's initial weights.

    Raises:
        ConfigError: there is no such recurrent layer.
    """

    def __init__(
        self,
        name: str,
        space: Any,
        model: Mapping[str, Any],
        encoder: Any,
        output_size: int | None,
        *,
        output_gain: float = 1.0,
    ) -> None:
        kind = model["recurrent"]
        if kind not in _CORES:
            raise ConfigError(f"model={{'recurrent': {kind!r}}} does not exist.{did_you_mean(kind, _CORES)}")
        self.name = name
        self.encoder = encoder
        self._path, self._ndim = obs_leaf(space)
        init, size = model.get("init", "orthogonal"), model.get("recurrent_size")
        self.core = _CORES[kind](f"{name}_core", encoder.output_size, 64 if size is None else size, init=init)
        size = self.core.output_size
        self.head: MLP | None = None
        if output_size is not None:
            self.head = MLP(f"{name}_head", size, [], output_size, output_gain=output_gain, init=init)
        self.output_size = size if output_size is None else output_size

    def init(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Initial parameters."""
        head = {} if self.head is None else self.head.init(rng)
        return {**self.encoder.init(rng), **self.core.init(rng), **head}

    def initial_state(self) -> dict[str, np.ndarray]:
        """Zeros float32[recurrent_size] by leaf."""
        return {f"{self.name}_{leaf}": value for leaf, value in self.core.initial_state().items()}

    def apply(self, xp: Any, params: Mapping[str, Any], batch: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Answer a batch of sequences or of rows.

        Args:
            xp: the namespace.
            params: arrays by name.
            batch: ``obs`` [B, T, ...], ``resets`` bool[B, T], ``state_in`` leaves [B, size]; or ``obs`` [B, ...] and
                ``state_in`` for one step, before which nothing is reset.

        Returns:
            (float[B, T, output_size] or float[B, output_size], the state after it).
        """
        obs = batch["obs"]
        lead = leading_axes(xp, obs, self._path, self._ndim)
        steps = len(lead) == 2
        features = self.encoder.apply(xp, params, _folded(xp, obs) if steps else obs)
        state = {leaf: batch["state_in"][f"{self.name}_{leaf}"] for leaf in self.core.state_names}
        if steps:
            features = xp.reshape(features, (*lead, xp.shape(features)[-1]))
            outputs, state = self.core.apply(xp, params, features, state, resets=batch["resets"])
        else:
            outputs, state = self.core.step(xp, params, features, state)
        if self.head is not None:
            outputs = self.head.apply(xp, params, outputs)
        return outputs, {f"{self.name}_{leaf}": value for leaf, value in state.items()}


def _folded(xp: Any, obs: Any) -> Any:
    """Observations [B, T, ...] as [B * T, ...]."""
    if isinstance(obs, Mapping):
        return {key: _folded(xp, value) for key, value in obs.items()}
    shape = xp.shape(obs)
    return xp.reshape(obs, (shape[0] * shape[1], *shape[2:]))
