"""Playing whole episodes to measure a policy.

Needs lanes of its own and a policy. Refuses nothing; what the environments raise beyond their allowance comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..maths.action_masks import ActionMask
from .actions import ActionDoor
from .columns import Columns, tree_map
from .episodes import Episode
from .lane_memory import LaneMemory
from .lanes import Lanes, Step
from .noise_blocks import NoiseBlocks
from .normalize import RunningNormalizer
from .numpy_backend import Policy

__all__ = ["EpisodeQuota", "Watch", "evaluate"]

#: Called after every step with the observations [N, ...] before it (not normalised), the policy's answer, what the
#: environments returned, the observations after it, and bool[N]: lanes whose step belongs to an episode that counts.
#: The arrays are valid during the call alone.
Watch = Callable[[Columns, Mapping[str, np.ndarray], Step, Columns, np.ndarray], None]


class EpisodeQuota:
    """The episodes that N lanes may contribute: ``num_episodes / N`` each, rounded up for the first lanes and down for
    the rest.

    The quota is fixed beforehand: taking whichever episodes finish first would prefer short ones.

    Args:
        num_episodes: How many episodes in all.
        num_lanes: N.
    """

    def __init__(self, num_episodes: int, num_lanes: int) -> None:
        self._left = num_episodes // num_lanes + (np.arange(num_lanes) < num_episodes % num_lanes)
        self._played: list[list[Episode]] = [[] for _ in range(num_lanes)]

    @property
    def open(self) -> np.ndarray:
        """bool[N]: lanes whose running episode counts."""
        return self._left > 0

    def add(self, lane: int, episode: Episode) -> None:
        """A lane has finished an episode; those beyond its quota are left aside."""
        if self._left[lane] > 0:
            self._left[lane] -= 1
            self._played[lane].append(episode)

    def episodes(self) -> list[Episode]:
        """Every lane's first, then every lane's second, ..."""
        rounds = max(map(len, self._played))
        return [episodes[i] for i in range(rounds) for episodes in self._played if i < len(episodes)]


def evaluate(
    lanes: Lanes,
    policy: Policy,
    door: ActionDoor,
    num_episodes: int,
    *,
    example: Columns,
    normalizer: RunningNormalizer | None,
    seeds: Sequence[int],
    noise_seed: int,
    stream: str,
    explore: bool,
    mask: ActionMask | None = None,
    learned_rewards: Callable[[np.ndarray], np.ndarray] | None = None,
    watch: Watch | None = None,
) -> list[Episode]:
    """Play a fixed number of episodes in each lane: its quota (``EpisodeQuota``).

    Args:
        lanes: Environments to play in; they are reset.
        policy: Answers observations.
        door: Fits actions to the environments.
        num_episodes: How many episodes in all.
        example: One observation, for shapes and dtypes.
        normalizer: Normalises observations; learns nothing here.
        seeds: One per lane.
        noise_seed: Seed of the action noise.
        stream: Name of the action noise.
        explore: Sample actions instead of taking the most likely ones.
        mask: Where observations say which actions are allowed.
        learned_rewards: Rewards float[N] as a learner gets them, which a memory may be told of; None: as they are.
        watch: Told of every step.

    Returns:
        The episodes: every lane's first, then every lane's second, ...
    """
    count = lanes.num_envs
    quota = EpisodeQuota(num_episodes, count)
    obs: Any = tree_map(lambda leaf: np.empty((count, *leaf.shape), leaf.dtype), example)
    noise = NoiseBlocks(noise_seed, stream, count, policy.noise_shape)
    returns, lengths = np.zeros(count), np.zeros(count, np.int64)
    memory = LaneMemory(
        policy,
        count,
        mask,
        action_space=door.space,
        whose=lambda lane: f"environment {lane} of an evaluation, step {lanes.num_steps}",
    )
    lanes.reset(seeds, obs)
    step_number = 0
    while quota.open.any():
        seen = memory.seen(obs)
        allowed = memory.allowed(obs)
        shown = seen if normalizer is None else normalizer.normalize(seen)
        row = noise.at(step_number) if explore else None
        answer = memory.ask(shown, noise=row, explore=explore, allowed=allowed)
        state_out = answer.pop("state_out", None)
        before = None if watch is None else tree_map(np.array, seen)
        step = lanes.step(door.to_env(answer["actions"]), obs)
        paid = step.rewards if learned_rewards is None else learned_rewards(np.asarray(step.rewards, np.float64))
        memory.advance(step, memory.after(state_out, answer["actions"], paid))
        step_number += 1
        stepped = np.ones(count, np.bool_) if step.valid is None else step.valid
        if watch is not None:
            if allowed is not None:
                answer["action_mask"] = allowed
            step.finals = {lane: memory.seen(final) for lane, final in step.finals.items()}
            watch(before, answer, step, memory.seen(obs), stepped & quota.open)
        returns[stepped] += step.rewards[stepped]
        lengths += stepped
        for lane in np.flatnonzero(step.terminateds | step.truncateds):
            if lane not in step.lost:
                quota.add(int(lane), Episode(float(returns[lane]), int(lengths[lane])))
            returns[lane], lengths[lane] = 0.0, 0
    return quota.episodes()
