"""Environments stepped one after the other in this process.

Needs a maker of single gymnasium environments. Refuses environments that raise more often than allowed; one that
raises is rebuilt, and its running episode is given up. The others do not notice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..config.foreign import failure
from ..spaces import to_columns
from .columns import Columns, tree_map
from .lanes import SAME_STEP, Step, lose, write
from .rebuilding import EnvList

__all__ = ["SyncLanes"]


class SyncLanes(EnvList):
    """Environments stepped one after the other in this process; an episode's end and the reset are one step.

    Args:
        make: Makes one environment.
        num_envs: How many.
        max_restarts: How many rebuilds are allowed over the lifetime of the lanes.
        whose: Lane -> the environment's name in an error.
    """

    kind = "sync"
    autoreset = SAME_STEP

    def __init__(
        self, make: Callable[[], Any], num_envs: int, *, max_restarts: int, whose: Callable[[int], str] | None = None
    ) -> None:
        named = whose or (lambda lane: f"environment {lane}")
        super().__init__(make, num_envs, max_restarts=max_restarts, whose=named)
        self.observation_space = self.envs[0].observation_space
        self.action_space = self.envs[0].action_space

    def reset(self, seeds: Sequence[int], out: Columns) -> None:
        for lane, seed in enumerate(self._take_seeds(seeds)):
            try:
                obs = self._begin(lane, seed=seed)
            except BaseException as error:
                obs = self._rebuild(lane, failure(error))
            write(out, obs, lane)

    def step(self, actions: Any, out: Columns) -> Step:
        count = self.num_envs
        rewards = np.zeros(count, np.float64)
        terminateds, truncateds = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
        step = Step(rewards, terminateds, truncateds)
        for lane, env in enumerate(self.envs):
            try:
                obs, reward, terminated, truncated, _ = env.step(actions[lane])
                if terminated or truncated:
                    step.finals[lane] = tree_map(np.array, to_columns(self.observation_space, obs))
                    terminateds[lane], truncateds[lane] = terminated, truncated
                    obs = self._begin(lane)
                rewards[lane] = reward
                write(out, obs, lane)
            except BaseException as error:
                write(out, self._rebuild(lane, failure(error)), lane)
                rewards[lane], terminateds[lane] = 0.0, False
                step.finals.pop(lane, None)
                lose(step, [lane], count)
        return step

    def _begin(self, lane: int, /, **seed: int) -> Any:
        obs, _ = self.envs[lane].reset(**seed)
        return obs
