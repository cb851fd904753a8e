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
from ..spaces import AnySpace
from ..xp import Arrays, ArrayTree, Columns, Namespace
from .previous import Previous
from .sequences import leading_axes, obs_leaf

__all__ = ["RECURRENT_KEYS", "Memory"]

#: Settings of a model that say whether and how it remembers.
RECURRENT_KEYS: Final = ("recurrent", "recurrent_size", "use_prev_action", "use_prev_reward")

_CORES: Final[dict[str, type[LSTM | GRU]]] = {"lstm": LSTM, "gru": GRU}


class Memory:
    """``encoder -> core -> head`` in the place of a ``Trunk``.

    Parameters are the encoder's, ``{name}_core.*`` of the LSTM or GRU and ``{name}_head.0`` of the head. The state has
    the core's leaves under ``{name}_h`` (and ``{name}_c``), and ``prev_action`` and ``prev_reward`` of the step before,
    where the core is told these beside the encoder's features.

    Args:
        name: prefix of the parameter names.
        space: observation space.
        model: ``recurrent`` is "lstm" or "gru", ``recurrent_size`` (64) the size of its state; ``use_prev_action`` and
            ``use_prev_reward`` (False) say what the core is told of the step before.
        encoder: a ``Trunk`` without head.
        output_size: size of the head; ``None``: the core's outputs.
        output_gain: scale of the head's initial weights.
        action_space: of the module.

    Raises:
        ConfigError: there is no such recurrent layer.
    """

    def __init__(
        self,
        name: str,
        space: AnySpace,
        model: Mapping[str, Any],
        encoder: Any,
        output_size: int | None,
        *,
        output_gain: float = 1.0,
        action_space: AnySpace = None,
    ) -> None:
        kind = model["recurrent"]
        if kind not in _CORES:
            raise ConfigError(f"model={{'recurrent': {kind!r}}} does not exist.{did_you_mean(kind, _CORES)}")
        self.name = name
        self.encoder = encoder
        self._path, self._ndim = obs_leaf(space)
        init, size = model.get("init", "orthogonal"), model.get("recurrent_size")
        told = {what: bool(model.get(f"use_prev_{what}")) for what in ("action", "reward")}
        self._previous = Previous(action_space, **told) if any(told.values()) else None
        inputs = encoder.output_size + (0 if self._previous is None else self._previous.size)
        self.core: LSTM | GRU = _CORES[kind](f"{name}_core", inputs, 64 if size is None else size, init=init)
        size = self.core.output_size
        self.head: MLP | None = None
        if output_size is not None:
            self.head = MLP(f"{name}_head", size, [], output_size, output_gain=output_gain, init=init)
        self.output_size: int = size if output_size is None else output_size

    def init(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Initial parameters."""
        head = {} if self.head is None else self.head.init(rng)
        return {**self.encoder.init(rng), **self.core.init(rng), **head}

    def initial_state(self) -> dict[str, np.ndarray]:
        """Zeros by leaf: float32[recurrent_size], and of what the step before was."""
        told = {} if self._previous is None else self._previous.initial_state()
        return {**{f"{self.name}_{leaf}": value for leaf, value in self.core.initial_state().items()}, **told}

    def apply(self, xp: Namespace, params: Arrays, batch: Columns) -> tuple[Any, dict[str, Any]]:
        """Answer a batch of sequences or of rows.

        Args:
            xp: the namespace.
            params: arrays by name.
            batch: ``obs`` [B, T, ...], ``resets`` bool[B, T], ``state_in`` leaves [B, size], and ``actions`` and
                ``rewards`` where it is told these; or ``obs`` [B, ...] and ``state_in`` for one step, before which
                nothing is reset.

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
        told: dict[str, Any] = {}
        if self._previous is not None:
            of = self._previous.of_sequence if steps else self._previous.of_step
            inputs, told = of(xp, batch, params[f"{self.core.name}.weight_ih_l0"])
            features = xp.concat([xp.astype(features, inputs.dtype), inputs], -1)
        if steps:
            outputs, state = self.core.apply(xp, params, features, state, resets=batch["resets"])
        else:
            outputs, state = self.core.step(xp, params, features, state)
        if self.head is not None:
            outputs = self.head.apply(xp, params, outputs)
        return outputs, {**{f"{self.name}_{leaf}": value for leaf, value in state.items()}, **told}


def _folded(xp: Namespace, obs: ArrayTree) -> Any:
    """Observations [B, T, ...] as [B * T, ...]."""
    if isinstance(obs, Mapping):
        return {key: _folded(xp, value) for key, value in obs.items()}
    shape = xp.shape(obs)
    return xp.reshape(obs, (shape[0] * shape[1], *shape[2:]))
