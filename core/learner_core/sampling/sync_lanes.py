"""Environments stepped one after the other in this process.

Needs a maker of single gymnasium environments. Refuses environments that raise more often than allowed; up to then one
that raises is rebuilt, and its running episode is given up. The others do not notice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ..config.foreign import failure
from ..errors import EnvOutputError
from .actions import EnvActions
from .answers import flag_of, reset_result, reward_of, step_result
from .columns import Columns
from .lanes import SAME_STEP, AnyEnv, Step, lose
from .observations import ObservationReader
from .rebuilding import EnvList, Tell

if TYPE_CHECKING:
    from ..spaces import AnySpace

__all__ = ["SyncLanes"]


class SyncLanes(EnvList["AnyEnv", object]):
    """Environments stepped one after the other in this process; an episode's end and the reset are one step.

    Args:
        make: Makes one environment.
        num_envs: How many.
        max_restarts: How many rebuilds are allowed over the lifetime of the lanes.
        whose: Lane -> the environment's name in an error.
        tell: Told of every rebuild.
    """

    kind = "sync"
    autoreset = SAME_STEP

    def __init__(
        self,
        make: Callable[[], AnyEnv],
        num_envs: int,
        *,
        max_restarts: int,
        whose: Callable[[int], str] | None = None,
        tell: Tell | None = None,
    ) -> None:
        named = whose or (lambda lane: f"environment {lane}")
        super().__init__(make, num_envs, max_restarts=max_restarts, whose=named, tell=tell)
        self.observation_space: AnySpace = self.envs[0].observation_space
        self.action_space: AnySpace = self.envs[0].action_space
        self._reader = ObservationReader(self.observation_space, self.whose)

    def reset(self, seeds: Sequence[int], out: Columns) -> None:
        self.num_steps: int = 0
        begin = {lane: partial(self._begin_anew, lane, seed) for lane, seed in enumerate(self._take_seeds(seeds))}
        self._begin_each(begin, out)

    def begin_again(self, lanes: Sequence[int], out: Columns) -> bool:
        self._begin_each({lane: partial(self._begin, lane) for lane in lanes}, out)
        return True

    def _begin_each(self, begin: Mapping[int, Callable[[], object]], out: Columns) -> None:
        """Begin episodes: ``begin`` {lane: what gives its first observation}. One that raises is made anew."""
        for lane, first in begin.items():
            try:
                obs = first()
            except EnvOutputError:
                raise
            except BaseException as error:
                obs = self._rebuild(lane, failure(error))
            self._reader.write(out, obs, lane)
        self._reader.check(out)

    def step(self, actions: EnvActions, out: Columns) -> Step:
        count = self.num_envs
        self.num_steps += 1
        rewards = np.zeros(count, np.float64)
        terminateds, truncateds = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
        step = Step(rewards, terminateds, truncateds)
        for lane in range(count):
            try:
                self._step(lane, actions[lane], out, step)
            except EnvOutputError:
                raise
            except BaseException as error:
                self._reader.write(out, self._rebuild(lane, failure(error)), lane)
                rewards[lane], terminateds[lane] = 0.0, False
                step.finals.pop(lane, None)
                lose(step, [lane], count)
        self._reader.check(out)
        return step

    def _step(self, lane: int, action: object, out: Columns, step: Step) -> None:
        whose, arrays = self._whose, self._arrays[lane]
        self._lengths[lane] += 1
        obs, reward, terminated, truncated, _ = step_result(self.envs[lane].step(arrays.give(action)), lane, whose)
        obs, reward, terminated, truncated = arrays.read((obs, reward, terminated, truncated))
        step.rewards[lane] = reward_of(reward, lane, whose)
        if terminated is not False or truncated is not False:
            step.terminateds[lane] = flag_of(terminated, "terminated", lane, whose)
            step.truncateds[lane] = flag_of(truncated, "truncated", lane, whose)
            if step.terminateds[lane] or step.truncateds[lane]:
                step.finals[lane] = self._reader.read(obs, lane)  # before the reset, which may write into it
                obs = self._begin(lane)
        self._reader.write(out, obs, lane)

    def _begin(self, lane: int, /, **seed: int) -> object:
        self._lengths[lane] = 0
        return self._arrays[lane].read(reset_result(self.envs[lane].reset(**seed), lane, self._whose)[0])
