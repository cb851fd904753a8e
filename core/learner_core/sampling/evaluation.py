"""Playing whole episodes to measure a policy.

Needs lanes of its own and a policy. Refuses nothing; what the environments raise beyond their allowance comes out. It
ends, whatever the environments do, as long as each step does: an episode that is longer than a limit is cut
(docs/decisions/environments.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..maths.action_masks import ActionMask
from .actions import ActionDoor
from .columns import Columns, tree_map
from .episodes import Episode
from .lane_memory import LaneMemory
from .lanes import AnyEnv, Lanes, Step
from .noise_blocks import NoiseBlocks
from .normalize import RunningNormalizer
from .numpy_backend import Policy
from .rebuilding import Tell, warn

__all__ = ["DEFAULT_STEPS", "EpisodeQuota", "StepLimit", "Trial", "Watch", "evaluate"]

#: Steps of an episode that nobody has set a limit for: about 100 minutes of a console game, at four frames a step.
DEFAULT_STEPS = 100_000
#: Steps of such an episode after which the user is told.
_NOTICED_STEPS = 10_000

#: Called after every step with the observations [N, ...] before it (not normalised), the policy's answer, what the
#: environments returned, the observations after it, and bool[N]: lanes whose step belongs to an episode that counts.
#: The arrays are valid during the call alone.
Watch = Callable[[Columns, Mapping[str, np.ndarray], Step, Columns, np.ndarray], None]


class StepLimit:
    """How long an episode of an evaluation may be.

    Where no limit is given it is 100,000 steps, or the environments' own time limit if that is longer; the user is told
    of it once in an evaluation, by a warning, when an episode has gone on for 10,000 steps.

    Args:
        given: The limit that was set; None: none.
        environments: Objects whose ``spec.max_episode_steps`` is looked at.
        tell: Takes the warning; by default the user of this process.
    """

    def __init__(self, given: int | None, environments: Iterable[AnyEnv] = (), *, tell: Tell | None = None) -> None:
        own = [_own_limit(env) for env in environments] if given is None else []
        self.steps: int = given if given is not None else max([DEFAULT_STEPS, *own])
        self._tell = tell or warn
        # An environment that ends by itself in time is nothing to be told of.
        self._tells = given is None and not any(0 < one <= DEFAULT_STEPS for one in own)

    def cuts(self, length: int) -> bool:
        """Whether an episode that has not ended by now, after so many steps, is given up."""
        if self._tells and length >= _NOTICED_STEPS:
            self._tells = False
            self._tell(
                f"an episode of this evaluation has not ended in {_NOTICED_STEPS:,} steps; it is cut after "
                f"{self.steps:,} and reported as unfinished. Set another limit by .evaluation(max_episode_steps=N), "
                "evaluate(max_episode_steps=N) or --max-episode-steps N"
            )
        return length >= self.steps


def _own_limit(env: AnyEnv) -> int:
    """Steps after which the environment itself ends an episode; 0: it does not say."""
    try:
        return int(env.spec.max_episode_steps or 0)
    except Exception:
        return 0


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


@dataclass(frozen=True, slots=True)
class Trial:
    """Who is measured, and where.

    Attributes:
        lanes: Environments to play in; they are reset.
        policy: Answers observations.
        door: Fits actions to the environments.
        example: One observation, for shapes and dtypes.
        normalizer: Normalises observations; learns nothing here.
        mask: Where observations say which actions are allowed.
        learned_rewards: Rewards float[N] as a learner gets them, which a memory may be told of.
    """

    lanes: Lanes
    policy: Policy
    door: ActionDoor
    example: Columns
    normalizer: RunningNormalizer | None
    mask: ActionMask | None
    learned_rewards: Callable[[np.ndarray], np.ndarray]


def evaluate(
    trial: Trial,
    num_episodes: int,
    *,
    seeds: Sequence[int],
    noise: NoiseBlocks | None,
    limit: StepLimit,
    watch: Watch | None = None,
) -> list[Episode]:
    """Play a fixed number of episodes in each lane: its quota (``EpisodeQuota``).

    An episode that reaches the limit (``StepLimit``) is cut and counts as one of them. Its lane begins the next one at
    once where that can be done for one lane alone; else it waits until no other lane has anything to play, and all are
    reset together.

    Args:
        trial: Who plays, and where.
        num_episodes: How many episodes in all.
        seeds: One per lane.
        noise: Samples actions; None takes the most likely ones.
        limit: How long an episode may be.
        watch: Told of every step; the last one of an episode that is cut is truncated.

    Returns:
        The episodes: every lane's first, then every lane's second, ...
    """
    lanes, door, normalizer = trial.lanes, trial.door, trial.normalizer
    count = lanes.num_envs
    quota = EpisodeQuota(num_episodes, count)
    obs: Columns = tree_map(lambda leaf: np.empty((count, *leaf.shape), leaf.dtype), trial.example)
    returns, lengths = np.zeros(count), np.zeros(count, np.int64)
    memory = LaneMemory(
        trial.policy,
        count,
        trial.mask,
        action_space=door.space,
        whose=lambda lane: f"environment {lane} of an evaluation, step {lanes.num_steps}",
    )
    lanes.reset(seeds, obs)
    # Lanes whose episode was cut, and which cannot begin another one by themselves.
    waits = np.zeros(count, np.bool_)
    step_number = num_resets = 0
    while quota.open.any():
        if not (quota.open & ~waits).any():
            num_resets += 1
            lanes.reset([_next_seed(seed, num_resets) for seed in seeds], obs)
            memory.begin()
            returns[:], lengths[:], waits[:] = 0.0, 0, False
        seen = memory.seen(obs)
        allowed = memory.allowed(obs)
        shown = seen if normalizer is None else normalizer.normalize(seen)
        row = None if noise is None else noise.at(step_number)
        answer = memory.ask(shown, noise=row, explore=noise is not None, allowed=allowed)
        state_out = answer.pop("state_out", None)
        before = None if watch is None else tree_map(np.array, seen)
        step = lanes.step(door.to_env(answer["actions"]), obs)
        step_number += 1
        stepped = np.ones(count, np.bool_) if step.valid is None else step.valid
        counts = stepped & quota.open & ~waits
        returns[stepped] += step.rewards[stepped]
        lengths += stepped
        ended = step.terminateds | step.truncateds
        going = np.where(counts & ~ended, lengths, 0)
        cut = [int(lane) for lane in np.flatnonzero(going >= limit.steps)] if limit.cuts(int(going.max())) else []
        if cut:
            step.truncateds[cut] = True
            for lane in cut:
                step.finals[lane] = tree_map(lambda leaf, lane=lane: np.array(leaf[lane]), obs)
        if watch is not None:
            if allowed is not None:
                answer["action_mask"] = allowed
            step.finals = {lane: memory.seen(final) for lane, final in step.finals.items()}
            watch(before, answer, step, memory.seen(obs), counts)
        for lane in map(int, np.flatnonzero(ended | step.truncateds)):
            if lane not in step.lost and not waits[lane]:
                quota.add(lane, Episode(float(returns[lane]), int(lengths[lane]), is_cut=lane in cut))
            returns[lane], lengths[lane] = 0.0, 0
        if cut and not lanes.begin_again(cut, obs):
            waits[cut] = True
        paid = trial.learned_rewards(np.asarray(step.rewards, np.float64))
        memory.advance(step, memory.after(state_out, answer["actions"], paid))
    return quota.episodes()


def _next_seed(seed: int, number: int) -> int:
    """A lane's seed after so many resets of all lanes."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
