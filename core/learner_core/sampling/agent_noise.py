"""Noise of agents that come and go.

Needs the run's seed. What an agent draws is a function of seed, runner, module, agent, copy, purpose and step, whoever
else is there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .agent_game import Lane
from .agent_player import Player
from .noise_blocks import NoiseBlocks

__all__ = ["AgentNoise"]


class AgentNoise:
    """Rows of noise by step number.

    Args:
        seed: The run's seed.
        worker_index: Of the runner.
        num_envs: Copies of the environment.
        purpose: "actions" (normal numbers for the policy), "random" (uniform ones for the door) or
            "evaluation/<number>" (normal ones again).
    """

    def __init__(self, seed: int, worker_index: int, num_envs: int, purpose: str) -> None:
        self._seed = seed
        self._worker_index = worker_index
        self._num_envs = num_envs
        self._purpose = purpose
        self._blocks: dict[tuple[str, str], NoiseBlocks] = {}

    def at(self, step: int, module_id: str, player: Player, lanes: Sequence[Lane]) -> np.ndarray:
        """Noise [B, ...] of these lanes, which the module plays, in one step."""
        return np.stack([self._of(module_id, player, agent).at(step)[copy] for copy, agent in lanes])

    def _of(self, module_id: str, player: Player, agent: str) -> NoiseBlocks:
        key = (module_id, agent)
        if key not in self._blocks:
            random = self._purpose == "random"
            shape = player.door.noise_shape if random else player.policy.noise_shape
            stream = f"env_runner/{self._worker_index}/{module_id}/{agent}/{self._purpose}"
            kind = "uniform" if random else "normal"
            self._blocks[key] = NoiseBlocks(self._seed, stream, self._num_envs, shape, kind=kind)
        return self._blocks[key]
