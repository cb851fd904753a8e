"""Signals, a PettingZoo environment in which two agents of different spaces have to learn together.

A speaker sees a number and says one; a listener hears what was said the step before and has to answer with the number
that the speaker saw then. Both are paid 1 where the listener is right, so neither learns without the other: a discrete
and small form of the speaker-listener task of Lowe et al. (2017). An episode is ten steps, the first of which nobody
can get right; the most both together can have is 18.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pettingzoo
from gymnasium import spaces

__all__ = ["Signals"]

SIZE = 3
LENGTH = 10


class Signals(pettingzoo.ParallelEnv):
    """The environment; ``SIZE`` numbers, ``LENGTH`` steps, ended by truncation."""

    metadata = {"name": "signals_v0", "render_modes": []}

    def __init__(self) -> None:
        self.possible_agents = ["speaker", "listener"]
        self.agents: list[str] = []
        self._spaces = {
            "speaker": (spaces.Discrete(SIZE), spaces.Discrete(SIZE)),
            "listener": (spaces.Box(0, 1, (SIZE + 1,), np.float32), spaces.Discrete(SIZE)),
        }
        self._rng = np.random.default_rng()

    def observation_space(self, agent: str) -> Any:
        return self._spaces[agent][0]

    def action_space(self, agent: str) -> Any:
        return self._spaces[agent][1]

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self.agents = list(self.possible_agents)
        self._clock, self._said, self._asked = 0, SIZE, SIZE
        self._number = int(self._rng.integers(SIZE))
        return self._observations(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> Any:
        right = float(int(actions["listener"]) == self._asked)
        self._said, self._asked = int(actions["speaker"]), self._number
        self._number = int(self._rng.integers(SIZE))
        self._clock += 1
        agents, over = self.agents, self._clock == LENGTH
        self.agents = [] if over else agents
        rewards, ended = dict.fromkeys(agents, right), dict.fromkeys(agents, over)
        return self._observations(), rewards, dict.fromkeys(agents, False), ended, {agent: {} for agent in agents}

    def _observations(self) -> dict[str, Any]:
        return {"speaker": np.int64(self._number), "listener": np.eye(SIZE + 1, dtype=np.float32)[self._said]}


pettingzoo.register("parallel", id="learner_core/signals-v0", entry_point=Signals)
