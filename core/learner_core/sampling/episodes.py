"""Returns and lengths of episodes, counted over fragments.

Needs raw rewards (before any normalisation). Rows that are no steps (autoreset) and episodes that were given up
(their environment raised) are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..state.schema import COUNT, NUMBER, TEXT, Array, Items, ListOf, Record
from ..state.tree import Plain, Tree

__all__ = ["EPISODE", "AgentReturn", "Episode", "EpisodeTracker"]

#: What ``Episode.to_plain`` gives.
EPISODE = Items([NUMBER, COUNT, ListOf(Items([TEXT, TEXT, NUMBER, COUNT]))], optional=1)


class AgentReturn(NamedTuple):
    """One agent of a finished episode: its raw rewards' sum, the steps it acted in, and the module that played it."""

    agent_id: str
    module_id: str
    episode_return: float
    episode_length: int


class Episode(NamedTuple):
    """A finished episode: sum of its raw rewards (over all agents), number of its steps, and its agents if it had any.

    ``agents`` is empty for environments of one agent. ``is_cut``: an evaluation gave it up at its limit of steps, with
    the return that it had by then; no state has such a one.
    """

    episode_return: float
    episode_length: int
    agents: tuple[AgentReturn, ...] = ()
    is_cut: bool = False

    def to_plain(self) -> list[Plain]:
        """Plain data for a state: ``[return, length]``, with ``[[agent, module, return, length], ...]`` if several."""
        plain: list[Plain] = [float(self.episode_return), int(self.episode_length)]
        return [*plain, [list(agent) for agent in self.agents]] if self.agents else plain

    @classmethod
    def from_plain(cls, plain: Sequence[Plain]) -> Episode:
        """Back from ``to_plain``'s data."""
        agents = plain[2] if len(plain) > 2 else ()
        return cls(float(plain[0]), int(plain[1]), tuple(AgentReturn(a, m, float(r), int(n)) for a, m, r, n in agents))


class EpisodeTracker:
    """Running returns and lengths of N lanes.

    Args:
        num_envs: Number of lanes.
    """

    def __init__(self, num_envs: int) -> None:
        self.returns: np.ndarray = np.zeros(num_envs, np.float64)
        self.lengths: np.ndarray = np.zeros(num_envs, np.int64)
        self.num_episodes: int = 0
        self.num_lost: int = 0

    def update(
        self, rewards: np.ndarray, done: np.ndarray, stepped: np.ndarray, lost: Sequence[tuple[int, int]] = ()
    ) -> list[Episode]:
        """Take in a fragment.

        Args:
            rewards: float64[T, N], raw.
            done: bool[T, N], the episode ends with this step.
            stepped: bool[T, N], False on rows that are no step of an episode.
            lost: (t, lane) where an episode was given up; ``done`` is True there as well.

        Returns:
            The episodes that finished, in order of time, then lane.
        """
        ending = done.any(axis=0)
        going = ~ending
        self.returns[going] += np.where(stepped, rewards, 0.0).sum(axis=0)[going]
        self.lengths[going] += stepped.sum(axis=0)[going]
        gone = set(lost)
        finished: list[tuple[int, int, Episode]] = []
        for lane in map(int, np.flatnonzero(ending)):
            begin = 0
            for end in np.flatnonzero(done[:, lane]):
                self._advance(lane, rewards, stepped, begin, int(end) + 1)
                if (int(end), lane) in gone:
                    self.num_lost += 1
                else:
                    episode = Episode(float(self.returns[lane]), int(self.lengths[lane]))
                    finished.append((int(end), lane, episode))
                self.returns[lane], self.lengths[lane] = 0.0, 0
                begin = int(end) + 1
            self._advance(lane, rewards, stepped, begin, rewards.shape[0])
        finished.sort(key=lambda item: item[:2])
        self.num_episodes += len(finished)
        return [episode for _, _, episode in finished]

    def _advance(self, lane: int, rewards: np.ndarray, stepped: np.ndarray, begin: int, end: int) -> None:
        if begin < end:
            mask = stepped[begin:end, lane]
            self.returns[lane] += rewards[begin:end, lane][mask].sum()
            self.lengths[lane] += np.count_nonzero(mask)

    def drop_running(self) -> None:
        """Give up every running episode (the environments were restarted)."""
        self.num_lost += int(np.count_nonzero(self.lengths))
        self.returns[:] = 0.0
        self.lengths[:] = 0

    def get_state(self) -> dict[str, Plain]:
        """Running returns float64[N], lengths int64[N] and the counts over the lifetime; copies."""
        return {
            "returns": self.returns.copy(),
            "lengths": self.lengths.copy(),
            "num_episodes": self.num_episodes,
            "num_lost": self.num_lost,
        }

    def state_schema(self) -> Record:
        """What ``set_state`` takes."""
        lanes = self.returns.shape
        return Record(
            {
                "returns": Array(lanes),
                "lengths": Array(lanes, np.int64, least=0),
                "num_episodes": COUNT,
                "num_lost": COUNT,
            }
        )

    def set_state(self, state: Tree) -> None:
        """Take back a state that fits ``state_schema``."""
        self.returns, self.lengths = np.array(state["returns"], np.float64), np.array(state["lengths"], np.int64)
        self.num_episodes, self.num_lost = int(state["num_episodes"]), int(state["num_lost"])
