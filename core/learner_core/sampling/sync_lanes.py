"""Environments stepped one after the other in this process.

Needs a maker of single gymnasium environments. Refuses environments that raise more often than allowed; one that
raises is rebuilt, and its running episode is given up. The others do not notice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import EnvError
from ..spaces import to_columns
from .columns import Columns, tree_map
from .lanes import SAME_STEP, Step, lose, write

__all__ = ["SyncLanes"]


class SyncLanes:
    """Environments stepped one after the other in this process; an episode's end and the reset are one step.

    Args:
        make: Makes one environment.
        num_envs: How many.
        max_restarts: How many rebuilds are allowed over the lifetime of the lanes.
    """

    autoreset = SAME_STEP

    def __init__(self, make: Callable[[], Any], num_envs: int, *, max_restarts: int) -> None:
        self._make = make
        self.num_envs = num_envs
        self.max_restarts = max_restarts
        self.num_restarts = 0
        self.envs = [make() for _ in range(num_envs)]
        self.observation_space = self.envs[0].observation_space
        self.action_space = self.envs[0].action_space
        self._seeds = [0] * num_envs

    def reset(self, seeds: Sequence[int], out: Columns) -> None:
        self._seeds = [int(seed) for seed in seeds]
        for lane, seed in enumerate(self._seeds):
            try:
                obs, _ = self.envs[lane].reset(seed=seed)
            except Exception as error:
                obs = self._rebuild(lane, error)
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
                    obs, _ = env.reset()
                rewards[lane] = reward
                write(out, obs, lane)
            except Exception as error:
                write(out, self._rebuild(lane, error), lane)
                rewards[lane], terminateds[lane] = 0.0, False
                step.finals.pop(lane, None)
                lose(step, [lane], count)
        return step

    def _rebuild(self, lane: int, error: Exception) -> Any:
        """Replace the environment of a lane by a new one.

        The seed comes from the lane's first seed and the number of rebuilds, so that it is the same in every run.
        """
        while True:
            self.num_restarts += 1
            if self.num_restarts > self.max_restarts:
                raise EnvError(
                    f"environment {lane} raised {type(error).__name__}: {error}; max_env_restarts="
                    f"{self.max_restarts} rebuilds are used up"
                ) from error
            try:
                self.envs[lane].close()
            except Exception as close_error:
                error.add_note(f"closing it raised {type(close_error).__name__}: {close_error}")
            try:
                self.envs[lane] = self._make()
                seed = np.random.SeedSequence([self._seeds[lane], self.num_restarts]).generate_state(1)[0]
                obs, _ = self.envs[lane].reset(seed=int(seed))
                return obs
            except Exception as next_error:
                error = next_error

    def environments(self) -> list[Any]:
        return list(self.envs)

    def get_state(self) -> dict[str, Any]:
        return {"kind": "sync", "num_restarts": self.num_restarts, "seeds": list(self._seeds)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.num_restarts = int(state["num_restarts"])
        self._seeds = [int(seed) for seed in state["seeds"]]

    def close(self) -> None:
        for env in self.envs:
            env.close()
