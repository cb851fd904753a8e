"""Which module did what in one fragment of a game of several agents.

Needs the steps in order. Refuses nothing. Rewards and ends become rows of the module that acted, whoever plays the
agent next; an episode that is given up takes its rows with it.

A row stays open until its agent acts again or ends its part. What its agent is paid meanwhile is added to it. Rows
whose agents wait when the fragment ends are the next fragment's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from .agent_game import CopyStep, Lane
from .agent_recorder import AgentRecorder
from .columns import Columns
from .episodes import Episode
from .open_rows import OpenRows

__all__ = ["AgentFragment"]


class AgentFragment:
    """One fragment.

    Args:
        num_steps: T.
        num_envs: Copies of the environment.
        waiting: {module_id: rows that the last fragment has left open}.

    Attributes:
        recorders: {module_id: its rows} of the modules that have played somebody.
    """

    def __init__(self, num_steps: int, num_envs: int, waiting: Mapping[str, OpenRows] = MappingProxyType({})) -> None:
        self._num_steps = num_steps
        #: The step in which each copy's running episode began, 0 if it is an earlier fragment's.
        self._began = [0] * num_envs
        self.recorders: dict[str, AgentRecorder] = {}
        #: Whose row a lane's open one is.
        self._holders: dict[Lane, str] = {}
        for module_id, rows in waiting.items():
            self.act(0, module_id, rows.lanes, obs=rows.obs, answer=rows.answer, after=rows.after)
            for lane, reward in zip(rows.lanes, rows.rewards.tolist(), strict=True):
                self.recorders[module_id].paid(lane, reward)

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
        recorder = self.recorders.get(module_id)
        if recorder is None or not recorder.takes(answer):
            # Rows of random actions have fewer columns: those that were left open by a call of the other kind go.
            recorder = self.recorders[module_id] = AgentRecorder(self._num_steps)
            self._holders = {lane: holder for lane, holder in self._holders.items() if holder != module_id}
        recorder.act(t, lanes, obs, answer, after)
        self._holders.update(dict.fromkeys(lanes, module_id))

    def stepped(self, t: int, steps: Sequence[CopyStep]) -> tuple[int, list[Episode]]:
        """The copies have taken step t.

        Args:
            t: Which step of the fragment.
            steps: What it was to each copy.

        Returns:
            Steps of environments that this adds (fewer than none where an episode was given up), and the episodes
            that have finished.
        """
        for copy, step in enumerate(steps):
            for agent, reward in step.rewards.items():
                lane = (copy, agent)
                if lane not in self._holders:
                    continue  # it has not acted in this episode
                recorder = self.recorders[self._holders[lane]]
                recorder.paid(lane, reward)
                if agent in step.ended:
                    recorder.ended(lane, step.ended[agent], step.finals[agent])
                    del self._holders[lane]
        num_env_steps, episodes = 0, []
        for copy, step in enumerate(steps):
            num_env_steps += 1
            if step.lost:
                num_env_steps -= t + 1 - self._began[copy]
                for recorder in self.recorders.values():
                    recorder.lose(copy, self._began[copy], t)
                self._holders = {lane: holder for lane, holder in self._holders.items() if lane[0] != copy}
            elif step.episode is not None:
                episodes.append(step.episode)
                self._share(step.episode)
            if step.lost or step.episode is not None:
                self._began[copy] = t + 1
        return num_env_steps, episodes

    def take_waiting(self, waits: Callable[[Lane], bool]) -> dict[str, OpenRows]:
        """Take the open rows of lanes that wait out of the fragment, by module."""
        taken = {module_id: recorder.take_waiting(waits) for module_id, recorder in self.recorders.items()}
        return {module_id: rows for module_id, rows in taken.items() if rows is not None}

    def _share(self, episode: Episode) -> None:
        """Every module has its agents' parts of a finished episode."""
        for agent in episode.agents:
            if agent.module_id in self.recorders:
                own = Episode(agent.episode_return, agent.episode_length, (agent,))
                self.recorders[agent.module_id].episodes.append(own)
