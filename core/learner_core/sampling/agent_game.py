"""What is going on in N copies of a multi-agent environment: who is there, played by whom, with what return so far.

Needs lanes, a mapping of agents to modules, and a ``Player`` for each module. Refuses agents whose spaces are not
those of their module, observations of other shapes than their space says, and mappings to unknown modules.

An agent's module is asked for when the agent first appears in an episode, and stays until that episode ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..config.agents import AgentMapping
from ..errors import EnvError, SpaceError, StateError
from ..spaces import to_columns
from .actions import ActionDoor
from .columns import Columns, tree_map, tree_paths
from .episodes import AgentReturn, Episode
from .multi_agent_lanes import AgentLanes
from .normalize import RunningNormalizer
from .numpy_backend import Policy

__all__ = ["AgentGame", "CopyStep", "Lane", "Player"]

#: (copy, agent).
Lane = tuple[int, str]


class Player:
    """A module as agents see it.

    Args:
        spec: ``RLModuleSpec`` with its spaces.
        policy: Answers observations.
        normalized: Whether its observations are normalised, by statistics of its own.

    Attributes:
        example: One observation as the policy sees it; ``raw_example`` as the environment gives it.
    """

    def __init__(self, spec: Any, policy: Policy, *, normalized: bool) -> None:
        self.spec = spec
        self.policy = policy
        self.observation_space = spec.observation_space
        self.action_space = spec.action_space
        self.door = ActionDoor(self.action_space)
        self.raw_example = to_columns(self.observation_space, self.observation_space.sample())
        self.example = tree_map(_narrow, self.raw_example)
        self.normalizer = RunningNormalizer(self.raw_example) if normalized else None
        kept = self.raw_example if normalized else self.example
        self._shapes = {path: leaf.shape for path, leaf in tree_paths(kept, "obs")}

    def take(self, obs: Any) -> Columns:
        """A copy of an observation as columns.

        Raises:
            SpaceError: It does not have the structure or the shapes of the observation space.
        """
        columns = tree_map(np.array, to_columns(self.observation_space, obs))
        if self.normalizer is None:
            columns = tree_map(_narrow, columns)
        for path, leaf in tree_paths(columns, "obs"):
            if leaf.shape != self._shapes[path]:
                raise SpaceError(f"observation {path}: expected shape {self._shapes[path]}, got {leaf.shape}")
        return columns

    def shown(self, obs: Columns) -> Columns:
        """Observations [B, ...] as the policy sees them."""
        return obs if self.normalizer is None else self.normalizer.normalize(obs)


@dataclass(slots=True)
class _Agent:
    """One agent of a running episode."""

    module_id: str
    result: float = 0.0
    length: int = 0


@dataclass(slots=True)
class _Copy:
    """One copy's running episode; ``obs`` are of the agents that act next."""

    number: int
    result: float = 0.0
    length: int = 0
    agents: dict[str, _Agent] = field(default_factory=dict)
    obs: dict[str, Columns] = field(default_factory=dict)


@dataclass(slots=True)
class CopyStep:
    """What a step was to the agents of one copy that acted.

    ``rewards``; ``ended`` {agent: (terminated, truncated)}; ``finals`` {agent: last observation}; ``episode`` if it
    finished; ``lost``: it was given up, after ``lost_steps`` steps.
    """

    rewards: dict[str, float]
    ended: dict[str, tuple[bool, bool]]
    finals: dict[str, Columns]
    episode: Episode | None = None
    lost: bool = False


class AgentGame:
    """The copies.

    Args:
        lanes: Steps the environments.
        players: {module_id: Player}; may change between steps.
        mapping: Agents to modules.
        first: Number of the first copy's first episode.
        stride: What a copy's episode numbers grow by, so that no two episodes of a run have the same.
    """

    def __init__(
        self, lanes: AgentLanes, players: Mapping[str, Player], mapping: AgentMapping, *, first: int, stride: int
    ) -> None:
        self.lanes = lanes
        self.players = players
        self.mapping = mapping
        self._stride = stride
        self.copies = [_Copy(first + copy) for copy in range(lanes.num_envs)]
        self.num_episodes = 0
        self.num_lost = 0
        self._checked: set[tuple[str, str]] = set()
        #: Agents in the order in which they were first seen: the order of lanes.
        self.rank: dict[str, int] = {agent: i for i, agent in enumerate(lanes.possible_agents())}

    def reset(self, seeds: Sequence[int]) -> None:
        """Start an episode in every copy; running ones are given up."""
        for copy, obs in enumerate(self.lanes.reset(seeds)):
            self.num_lost += self.copies[copy].length > 0
            self._begin(copy, obs)

    def groups(self) -> dict[str, list[Lane]]:
        """The agents that act now, by the module that plays them."""
        found: dict[str, list[Lane]] = {}
        for index, copy in enumerate(self.copies):
            for agent in copy.obs:
                found.setdefault(copy.agents[agent].module_id, []).append((index, agent))
        return found

    def observations(self, lanes: Sequence[Lane]) -> Columns:
        """What agents of one module see, [B, ...]."""
        return stack([self.copies[copy].obs[agent] for copy, agent in lanes])

    def step(self, groups: Mapping[str, Sequence[Lane]], actions: Mapping[str, np.ndarray]) -> list[CopyStep]:
        """Step all copies.

        Args:
            groups: What ``groups()`` returned.
            actions: {module_id: what its lanes do, [B, ...]}, as the environment takes it.

        Returns:
            Of each copy, what happened to its agents; the copies have gone on, to a new episode where one ended.
        """
        chosen: list[dict[str, Any]] = [{} for _ in self.copies]
        for module_id, lanes in groups.items():
            scalar = actions[module_id].ndim == 1
            for (copy, agent), action in zip(lanes, actions[module_id], strict=True):
                chosen[copy][agent] = action if scalar else action.copy()
        return [self._step(copy, actions) for copy, actions in enumerate(chosen)]

    def _step(self, index: int, actions: dict[str, Any]) -> CopyStep:
        copy = self.copies[index]
        step = self.lanes.step(index, actions)
        if step.lost:
            self.num_lost += 1
            self._begin(index, step.obs)
            return CopyStep({}, {}, {}, lost=True)
        copy.length += 1
        out = CopyStep({}, step.ended, {})
        for agent, reward in step.rewards.items():
            copy.result += reward
            if agent in copy.agents:
                copy.agents[agent].result += reward
        for agent in actions:
            copy.agents[agent].length += 1
            out.rewards[agent] = step.rewards.get(agent, 0.0)
            if agent in step.ended:
                # Of an agent that is gone without a word the last thing it saw stands for what it would have seen.
                final = step.finals.get(agent)
                out.finals[agent] = copy.obs[agent] if final is None else self._take(index, agent, final)
        if step.over:
            agents = tuple(AgentReturn(a, s.module_id, s.result, s.length) for a, s in copy.agents.items())
            out.episode = Episode(copy.result, copy.length, agents)
            self.num_episodes += 1
            self._begin(index, step.obs)
        else:
            self._show(index, step.obs)
        return out

    def _begin(self, index: int, obs: Mapping[str, Any]) -> None:
        old = self.copies[index]
        fresh = old.length == 0 and not old.agents
        self.copies[index] = _Copy(old.number if fresh else old.number + self._stride)
        self._show(index, obs)

    def _show(self, index: int, obs: Mapping[str, Any]) -> None:
        copy = self.copies[index]
        for agent in obs:
            if agent not in copy.agents:
                self.rank.setdefault(agent, len(self.rank))
                module_id = self.mapping.module_of(agent, copy.number)
                self._check_spaces(index, agent, module_id)
                copy.agents[agent] = _Agent(module_id)
        copy.obs = {agent: self._take(index, agent, value) for agent, value in obs.items()}

    def _take(self, index: int, agent: str, obs: Any) -> Columns:
        module_id = self.copies[index].agents[agent].module_id
        try:
            return self.players[module_id].take(obs)
        except (SpaceError, TypeError, ValueError) as error:
            raise EnvError(
                f"copy {index} of the environment: agent {agent!r}, played by module {module_id!r}: {error}"
            ) from error

    def _check_spaces(self, index: int, agent: str, module_id: str) -> None:
        if (agent, module_id) in self._checked:
            return
        player, env = self.players[module_id], self.lanes.envs[index]
        for name, expected in (
            ("observation_space", player.observation_space),
            ("action_space", player.action_space),
        ):
            got = getattr(env, name)(agent)
            if got != expected:
                raise SpaceError(
                    f"agent {agent!r} has {name} {got}, but module {module_id!r}, which is to play it, has {expected}; "
                    "give agents of different spaces modules of their own by .multi_agent(policies=..., "
                    "policy_mapping_fn=...)"
                )
        self._checked.add((agent, module_id))

    # ---- changes in mid-run ----------------------------------------------------------------------------------------

    def forget(self, module_id: str) -> None:
        """A module is gone or is another: agents in running episodes that it played get one from the mapping anew."""
        self._checked = {pair for pair in self._checked if pair[1] != module_id}
        for index, copy in enumerate(self.copies):
            for agent, state in copy.agents.items():
                if state.module_id == module_id:
                    state.module_id = self.mapping.module_of(agent, copy.number)
                    if agent in copy.obs:
                        self._check_spaces(index, agent, state.module_id)

    # ---- state -----------------------------------------------------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """Running episodes and counters, as plain data; the environments and the lanes are apart."""
        return {
            "num_episodes": self.num_episodes,
            "num_lost": self.num_lost,
            "agents": list(self.rank),
            "copies": [
                {
                    "number": copy.number,
                    "return": copy.result,
                    "length": copy.length,
                    "agents": [[name, a.module_id, a.result, a.length] for name, a in copy.agents.items()],
                    "obs": [[agent, tree_map(np.array, obs)] for agent, obs in copy.obs.items()],
                }
                for copy in self.copies
            ],
        }

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Refuse what does not fit.

        Raises:
            StateError: Another number of copies, or modules that do not exist here.
        """
        if len(state["copies"]) != len(self.copies):
            raise StateError(f"expected {len(self.copies)} environments, got {len(state['copies'])}", path="num_envs")
        for copy in state["copies"]:
            for name, module_id, _, _ in copy["agents"]:
                if module_id not in self.players:
                    raise StateError(
                        f"agent {name!r} is played by module {module_id!r}, which is not here", path="game"
                    )

    def set_state(self, state: Mapping[str, Any], *, exact: bool) -> None:
        """Take it back; unless ``exact`` only counters and the numbers of episodes, whose next ones then begin."""
        self.num_episodes, self.num_lost = int(state["num_episodes"]), int(state["num_lost"])
        self.rank = {agent: i for i, agent in enumerate(state["agents"])}
        self.copies = []
        for saved in state["copies"]:
            copy = _Copy(int(saved["number"]), float(saved["return"]), int(saved["length"]))
            copy.agents = {a: _Agent(str(m), float(r), int(n)) for a, m, r, n in saved["agents"]}
            if exact:
                copy.obs = {agent: tree_map(np.array, obs) for agent, obs in saved["obs"]}
            self.copies.append(copy)


def stack(trees: Sequence[Columns]) -> Columns:
    """Equal trees of arrays as one, with a new first axis."""
    first = trees[0]
    if isinstance(first, dict):
        return {key: stack([tree[key] for tree in trees]) for key in first}
    return np.stack(trees)


def _narrow(leaf: np.ndarray) -> np.ndarray:
    """float64 observations are kept as float32: no learner takes more, and they are half of a rollout."""
    return leaf.astype(np.float32) if leaf.dtype == np.float64 else leaf
