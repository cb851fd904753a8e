"""Which module did what in one fragment of a game of several agents.

Needs the steps in order. Refuses nothing. Rewards and ends become rows of the module that acted, whoever plays the
agent next; an episode that is given up takes its rows with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .agent_game import CopyStep, Lane
from .agent_recorder import AgentRecorder
from .columns import Columns
from .episodes import Episode

__all__ = ["AgentFragment"]


class AgentFragment:
    """One fragment.

    Args:
        num_steps: T.
        num_envs: Copies of the environment.

    Attributes:
        recorders: {module_id: its rows} of the modules that have played somebody.
    """

    def __init__(self, num_steps: int, num_envs: int) -> None:
        self._num_steps = num_steps
        #: The step in which each copy's running episode began, 0 if it is an earlier fragment's.
        self._began = [0] * num_envs
        self.recorders: dict[str, AgentRecorder] = {}

    def act(
        self,
        t: int,
        module_id: str,
        lanes: Sequence[Lane],
        *,
        obs: Columns,
        answer: Mapping[str, Columns],
        after: Columns | None,
    ) -> None:
        """A module answers ``obs`` [B, ...] of its lanes in step t; ``after``: its recurrent state then, if any."""
        recorder = self.recorders.setdefault(module_id, AgentRecorder(self._num_steps))
        recorder.act(t, lanes, obs, answer, after)

    def stepped(
        self, t: int, groups: Mapping[str, Sequence[Lane]], steps: Sequence[CopyStep]
    ) -> tuple[int, list[Episode]]:
        """The copies have taken step t.

        Args:
            t: Which step of the fragment.
            groups: {module: its lanes} that acted.
            steps: What it was to each copy.

        Returns:
            Steps of environments that this adds (fewer than none where an episode was given up), and the episodes
            that have finished.
        """
        for module_id, lanes in groups.items():
            recorder = self.recorders[module_id]
            for lane in lanes:
                step = steps[lane[0]]
                if step.lost:
                    continue
                agent = lane[1]
                if agent in step.ended:
                    recorder.ended(lane, step.rewards[agent], step.ended[agent], step.finals[agent])
                else:
                    recorder.went(lane, step.rewards[agent])
        num_env_steps, episodes = 0, []
        for copy, step in enumerate(steps):
            num_env_steps += 1
            if step.lost:
                num_env_steps -= t + 1 - self._began[copy]
                for recorder in self.recorders.values():
                    recorder.lose(copy, self._began[copy], t)
            elif step.episode is not None:
                episodes.append(step.episode)
                self._share(step.episode)
            if step.lost or step.episode is not None:
                self._began[copy] = t + 1
        return num_env_steps, episodes

    def _share(self, episode: Episode) -> None:
        """Every module has its agents' parts of a finished episode."""
        for agent in episode.agents:
            if agent.module_id in self.recorders:
                own = Episode(agent.episode_return, agent.episode_length, (agent,))
                self.recorders[agent.module_id].episodes.append(own)
