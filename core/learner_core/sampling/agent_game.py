"""What is going on in N copies of a multi-agent environment: who is there, played by whom, with what return so far.

Needs lanes, a mapping of agents to modules, and a ``Player`` for each module. Refuses what those refuse, and masks that
allow nothing, naming the copy and the agent.

An agent's module is asked for when the agent first appears in an episode, and stays until that episode ends. So does
the state of a recurrent module; it begins anew if the agent ends its part and comes back.

An agent waits whose part goes on while others act: it is another's turn, or its mask allows it nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from ..action_parts import NestedActions
from ..config.agents import AgentMapping
from ..errors import EnvError
from ..maths.action_inputs import PREV_REWARD
from ..state.tree import Plain, Tree
from .actions import EnvActions
from .agent_player import Player
from .columns import Columns, tree_map
from .episodes import AgentReturn, Episode
from .multi_agent_lanes import AgentLanes

__all__ = ["AgentGame", "CopyStep", "Lane", "stack"]

#: (copy, agent).
Lane = tuple[int, str]


@dataclass(slots=True)
class _Agent:
    """One agent of a running episode; ``memory`` is its recurrent state, None before the first step."""

    module_id: str
    result: float = 0.0
    length: int = 0
    memory: dict[str, np.ndarray] | None = None


@dataclass(slots=True)
class _Copy:
    """One copy's running episode.

    ``obs`` are of the agents that act next, ``allowed`` their masks of actions; ``waiting`` {agent that waits: what it
    saw last}.
    """

    number: int
    result: float = 0.0
    length: int = 0
    agents: dict[str, _Agent] = field(default_factory=dict)
    obs: dict[str, Columns] = field(default_factory=dict)
    allowed: dict[str, np.ndarray] = field(default_factory=dict)
    waiting: dict[str, Columns] = field(default_factory=dict)


@dataclass(slots=True)
class CopyStep:
    """What a step was to the agents of one copy, those that waited included.

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
        self.copies: list[_Copy] = [_Copy(first + copy) for copy in range(lanes.num_envs)]
        self.num_episodes: int = 0
        self.num_lost: int = 0
        self._checked: set[tuple[str, str]] = set()
        #: Agents in the order in which they were first seen: the order of lanes.
        self.rank: dict[str, int] = {agent: i for i, agent in enumerate(lanes.possible_agents())}

    def renumber(self) -> None:
        """Forget running episodes; every copy's next one has the number of the copy."""
        for number, copy in enumerate(self.copies):
            copy.number, copy.length = number, 0
            copy.agents.clear()

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

    def allowed(self, lanes: Sequence[Lane]) -> np.ndarray | None:
        """bool[B, K], which actions agents of one module may take; None where there are no masks."""
        mask = self.players[self.copies[lanes[0][0]].agents[lanes[0][1]].module_id].mask
        if mask is None:
            return None
        return np.stack([self.copies[copy].allowed[agent] for copy, agent in lanes])

    def memory(self, module_id: str, lanes: Sequence[Lane]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Recurrent state of agents of one module, leaves [B, ...], and bool[B], where it begins; {} without one."""
        initial = self.players[module_id].initial_state
        kept = [self.copies[copy].agents[agent].memory for copy, agent in lanes]
        fresh = np.array([memory is None for memory in kept])
        state = {
            leaf: np.stack([value if m is None else m[leaf] for m in kept]).astype(np.float32)
            for leaf, value in initial.items()
        }
        return state, fresh

    def remember(self, lanes: Sequence[Lane], state_out: Mapping[str, np.ndarray] | None) -> None:
        """Keep the recurrent state that agents of one module go on with."""
        if state_out is not None:
            for row, (copy, agent) in enumerate(lanes):
                memory = {leaf: np.array(value[row], _dtype(leaf)) for leaf, value in state_out.items()}
                self.copies[copy].agents[agent].memory = memory

    def step(self, groups: Mapping[str, Sequence[Lane]], actions: Mapping[str, EnvActions]) -> list[CopyStep]:
        """Step all copies.

        Args:
            groups: What ``groups()`` returned.
            actions: {module_id: what its lanes do, [B, ...]}, as the environment takes it.

        Returns:
            Of each copy, what happened to its agents; the copies have gone on, to a new episode where one ended.
        """
        self.lanes.num_steps += 1
        chosen: list[dict[str, object]] = [{} for _ in self.copies]
        for module_id, lanes in groups.items():
            own = actions[module_id]
            # Numbers, and nested actions, are made for each of them.
            scalar = isinstance(own, NestedActions) or own.ndim == 1
            for (copy, agent), action in zip(lanes, own, strict=True):
                chosen[copy][agent] = action if scalar else action.copy()
        return [self._step(copy, actions) for copy, actions in enumerate(chosen)]

    def _step(self, index: int, actions: Mapping[str, object]) -> CopyStep:
        copy = self.copies[index]
        step = self.lanes.step(index, actions, tuple(copy.waiting))
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
        for agent in (*actions, *copy.waiting):
            out.rewards[agent] = step.rewards.get(agent, 0.0)
            memory = copy.agents[agent].memory
            if memory is not None and PREV_REWARD in memory:
                memory[PREV_REWARD] += out.rewards[agent]
            if agent in step.ended:
                copy.agents[agent].memory = None
                # Of an agent that is gone without a word the last thing it saw stands for what it would have seen.
                final, last = step.finals.get(agent), copy.obs.get(agent, copy.waiting.get(agent))
                out.finals[agent] = last if final is None else self._take(index, agent, final)[0]
        if step.over:
            out.episode = _episode(copy)
            self.num_episodes += 1
            self._begin(index, step.obs)
        else:
            going = {agent: obs for agent, obs in {**copy.waiting, **copy.obs}.items() if agent not in step.ended}
            known = set(copy.agents)
            self._show(index, step.obs, going)
            for agent in copy.agents.keys() - known:  # paid before it first acts
                copy.agents[agent].result += step.rewards.get(agent, 0.0)
        return out

    def cut(self, index: int) -> Episode:
        """Give up a copy's running episode, and begin the next; what it was so far."""
        episode = _episode(self.copies[index])._replace(is_cut=True)
        self._begin(index, self.lanes.begin_again(index))
        return episode

    def _begin(self, index: int, obs: Mapping[str, Columns]) -> None:
        old = self.copies[index]
        fresh = old.length == 0 and not old.agents
        self.copies[index] = _Copy(old.number if fresh else old.number + self._stride)
        self._show(index, obs)

    def _show(
        self, index: int, obs: Mapping[str, Columns], going: Mapping[str, Columns] = MappingProxyType({})
    ) -> None:
        """Agents are shown ``obs``; of ``going``, whose parts go on, those that are not shown anything wait."""
        copy = self.copies[index]
        for agent in obs:
            if agent not in copy.agents:
                self.rank.setdefault(agent, len(self.rank))
                module_id = self.mapping.module_of(agent, copy.number)
                self._check_spaces(index, agent, module_id)
                copy.agents[agent] = _Agent(module_id)
        taken = {agent: self._take(index, agent, value) for agent, value in obs.items()}
        shut_out = {agent for agent, (_, allowed) in taken.items() if self._may_do_nothing(copy.agents[agent], allowed)}
        if taken and len(shut_out) == len(taken):
            raise EnvError(
                f"{self.lanes.whose(index)}: action_mask allows agent{'s' * (len(shut_out) > 1)} "
                f"{', '.join(map(repr, sorted(shut_out)))} no action, and nobody else may act; an agent that cannot go "
                "on must end its part"
            )
        copy.obs = {agent: columns for agent, (columns, _) in taken.items() if agent not in shut_out}
        copy.allowed = {
            agent: allowed for agent, (_, allowed) in taken.items() if agent in copy.obs and allowed is not None
        }
        copy.waiting = {agent: seen for agent, seen in going.items() if agent not in taken}
        copy.waiting.update({agent: taken[agent][0] for agent in taken if agent in shut_out})

    def _may_do_nothing(self, agent: _Agent, allowed: np.ndarray | None) -> bool:
        mask = self.players[agent.module_id].mask
        return allowed is not None and mask is not None and bool(mask.forbidden(allowed[np.newaxis])[0])

    def _take(self, index: int, agent: str, obs: Columns) -> tuple[Columns, np.ndarray | None]:
        return self.players[self.copies[index].agents[agent].module_id].take(obs)

    def _check_spaces(self, index: int, agent: str, module_id: str) -> None:
        if (agent, module_id) in self._checked:
            return
        self.players[module_id].meet(agent, *self.lanes.spaces_of(index, agent), module_id=module_id)
        self._checked.add((agent, module_id))

    # ---- changes in mid-run ----------------------------------------------------------------------------------------

    def forget(self, module_id: str) -> None:
        """A module is gone or is another: agents in running episodes that it played get one from the mapping anew."""
        self._checked = {pair for pair in self._checked if pair[1] != module_id}
        for index, copy in enumerate(self.copies):
            for agent, state in copy.agents.items():
                if state.module_id == module_id:
                    state.module_id, state.memory = self.mapping.module_of(agent, copy.number), None
                    if agent in copy.obs or agent in copy.waiting:
                        self._check_spaces(index, agent, state.module_id)

    # ---- state -----------------------------------------------------------------------------------------------------

    def get_state(self) -> dict[str, Plain]:
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
                    "agents": [
                        [name, a.module_id, a.result, a.length, None if a.memory is None else dict(a.memory)]
                        for name, a in copy.agents.items()
                    ],
                    "obs": [[agent, tree_map(np.array, obs)] for agent, obs in copy.obs.items()],
                    "allowed": [[agent, allowed.copy()] for agent, allowed in copy.allowed.items()],
                    "waiting": [[agent, tree_map(np.array, obs)] for agent, obs in copy.waiting.items()],
                }
                for copy in self.copies
            ],
        }

    def set_state(self, state: Tree, *, exact: bool) -> None:
        """Take it back; unless ``exact`` only counters and the numbers of episodes, whose next ones then begin."""
        self.num_episodes, self.num_lost = int(state["num_episodes"]), int(state["num_lost"])
        self.rank = {agent: i for i, agent in enumerate(state["agents"])}
        self.copies = []
        for saved in state["copies"]:
            copy = _Copy(int(saved["number"]), float(saved["return"]), int(saved["length"]))
            for name, module_id, result, length, memory in saved["agents"]:
                kept = None if memory is None else {leaf: np.array(value) for leaf, value in memory.items()}
                copy.agents[name] = _Agent(str(module_id), float(result), int(length), kept)
            if exact:
                copy.allowed = {agent: np.array(allowed) for agent, allowed in saved["allowed"]}
                copy.obs = {agent: tree_map(np.array, obs) for agent, obs in saved["obs"]}
                copy.waiting = {agent: tree_map(np.array, obs) for agent, obs in saved.get("waiting", ())}
            self.copies.append(copy)


def _episode(copy: _Copy) -> Episode:
    agents = tuple(AgentReturn(a, s.module_id, s.result, s.length) for a, s in copy.agents.items())
    return Episode(copy.result, copy.length, agents)


def _dtype(leaf: str) -> type[np.float64 | np.float32]:
    """What an agent is paid while it waits is added up as its row's reward is: in float64."""
    return np.float64 if leaf == PREV_REWARD else np.float32


def stack(trees: Sequence[Columns]) -> Columns:
    """Equal trees of arrays as one, with a new first axis."""
    first = trees[0]
    if isinstance(first, dict):
        return {key: stack([tree[key] for tree in trees]) for key in first}
    return np.stack(trees)
