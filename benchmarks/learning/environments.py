"""Environments that Gymnasium does not have; ``gymnasium.make("environments:<id>")`` imports and registers them.

Needs this folder on the path, as run.py's is.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

__all__ = ["HiddenVelocities", "MaskedGrid"]


class HiddenVelocities(gym.ObservationWrapper):
    """CartPole that shows the cart's place and the pole's angle, not how fast they move: that must be remembered."""

    _SHOWN = (0, 2)

    def __init__(self) -> None:
        # Its episodes are cut at 500 steps by this registration.
        super().__init__(gym.make("CartPole-v1", max_episode_steps=-1))
        space = self.env.observation_space
        assert isinstance(space, gym.spaces.Box)
        shown = list(self._SHOWN)
        self.observation_space = gym.spaces.Box(space.low[shown], space.high[shown], dtype=np.float32)

    def observation(self, observation: Any) -> np.ndarray:
        """float32[2]: place and angle."""
        return np.asarray(observation)[list(self._SHOWN)]


class MaskedGrid(gym.Env[dict[str, np.ndarray], int]):
    """A 6 x 6 grid with walls: go to the door and open it. Actions: up, down, left, right, open.

    Moves into walls and opening where there is no door are forbidden by ``action_mask``. A forbidden action raises, so
    that a run which ends has taken none.
    """

    _GRID = ("..#...", ".##.#.", "....#.", ".##..#", "...#..", ".#...D")
    _MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))

    def __init__(self) -> None:
        size = len(self._GRID)
        self.observation_space = gym.spaces.Dict(
            observations=gym.spaces.Box(0.0, 1.0, (size * size,), np.float32),
            action_mask=gym.spaces.MultiBinary(5),
        )
        self.action_space = gym.spaces.Discrete(5)
        self._place = (0, 0)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start on any free field but the door's."""
        super().reset(seed=seed)
        free = [(y, x) for y, row in enumerate(self._GRID) for x, field in enumerate(row) if field == "."]
        self._place = free[int(self.np_random.integers(len(free)))]
        return self._observation(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One point for opening the door, 0.02 less for each move."""
        if not self._mask()[action]:
            raise ValueError(f"action {action} is forbidden at {self._place}")
        if action == 4:
            return self._observation(), 1.0, True, False, {}
        dy, dx = self._MOVES[action]
        self._place = (self._place[0] + dy, self._place[1] + dx)
        return self._observation(), -0.02, False, False, {}

    def _mask(self) -> np.ndarray:
        mask = np.zeros(5, np.int8)
        for action, (dy, dx) in enumerate(self._MOVES):
            y, x = self._place[0] + dy, self._place[1] + dx
            mask[action] = 0 <= y < len(self._GRID) and 0 <= x < len(self._GRID) and self._GRID[y][x] != "#"
        mask[4] = self._GRID[self._place[0]][self._place[1]] == "D"
        return mask

    def _observation(self) -> dict[str, np.ndarray]:
        size = len(self._GRID)
        place = np.zeros(size * size, np.float32)
        place[self._place[0] * size + self._place[1]] = 1.0
        return {"observations": place, "action_mask": self._mask()}


gym.register("CartPoleHidden-v1", entry_point=HiddenVelocities, max_episode_steps=500)
gym.register("MaskedGrid-v0", entry_point=MaskedGrid, max_episode_steps=100)
