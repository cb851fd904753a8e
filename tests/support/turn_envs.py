"""Turn-based environments of PettingZoo's, small enough to follow by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import AECEnv

__all__ = ["Duel", "MaskedDuel", "make_duel", "make_masked_duel"]


class Duel(AECEnv):
    """``a`` and ``b`` act in turn.

    At turn n the other one is paid 10 n; who has the last turn wins 100, and the other loses as much.

    An observation says episode, turns so far and whose it is.

    Args:
        length: Turns of an episode.
        raises: (episode, turn): it raises there, once in the lifetime of ``memory``.
        memory: Outlives the environment.
    """

    metadata = {"name": "duel"}
    render_mode = None

    def __init__(self, length: int = 3, raises: tuple[int, int] | None = None, memory: Any = None) -> None:
        super().__init__()
        self.possible_agents = ["a", "b"]
        self.length, self.raises, self.memory = length, raises, memory
        self.episode = -1

    def observation_space(self, agent: str) -> Any:
        return spaces.Box(-np.inf, np.inf, (3,), np.float32)

    def action_space(self, agent: str) -> Any:
        return spaces.Discrete(2)

    def observe(self, agent: str) -> Any:
        return np.array([self.episode, self.clock, self.possible_agents.index(agent)], np.float32)

    def reset(self, seed: int | None = None, options: Any = None) -> None:
        self.episode += 1
        self.clock = 0
        self.agents = list(self.possible_agents)
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.terminations = dict.fromkeys(self.agents, False)
        self.truncations = dict.fromkeys(self.agents, False)
        self.infos = {agent: self._info() for agent in self.agents}
        self.agent_selection = "a"

    def step(self, action: Any) -> None:
        agent = self.agent_selection
        if self.terminations[agent] or self.truncations[agent]:
            self._was_dead_step(action)
            return
        assert action in (0, 1), action
        other = "b" if agent == "a" else "a"
        self._cumulative_rewards[agent] = 0.0
        self.clock += 1
        if self.raises == (self.episode, self.clock) and not self.memory.get("raised"):
            self.memory["raised"] = True
            raise RuntimeError("the table fell over")
        over = self.clock == self.length
        self.rewards = {agent: 100.0 * over, other: 10.0 * self.clock - 100.0 * over}
        self.terminations = dict.fromkeys(self.agents, over)
        self.infos = {agent: self._info() for agent in self.agents}
        self.agent_selection = other
        self._accumulate_rewards()

    def _info(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        """Nothing is held."""


class MaskedDuel(Duel):
    """Action 0 is forbidden at even turns, 1 at odd ones; ``infos`` say so."""

    def _info(self) -> dict[str, Any]:
        return {"action_mask": np.array([self.clock % 2, 1 - self.clock % 2], np.int8)}

    def step(self, action: Any) -> None:
        assert action is None or action == 1 - self.clock % 2
        super().step(action)


def make_duel(env_config: dict[str, Any]) -> Duel:
    """Duel, ``{"length": ...}`` turns long."""
    return Duel(**env_config)


def make_masked_duel(env_config: dict[str, Any]) -> MaskedDuel:
    """MaskedDuel, ``{"length": ...}`` turns long."""
    return MaskedDuel(**env_config)
