"""N copies of a PettingZoo parallel environment, stepped one after the other in this process.

Needs a maker of parallel environments. Refuses turn-based (AEC) and Gymnasium environments, agents whose names are no
strings, live agents that are shown nothing, rewards that are not finite, and environments that raise more often than
allowed; one that raises is rebuilt, and its running episode is given up.

Agents may come and go (https://pettingzoo.farama.org/api/parallel/): whoever is in ``env.agents`` after a step, and
was not reported terminated or truncated, acts next. One that is gone without such a report counts as truncated. When
nobody is left, the episode is over and the next begins in the same step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..config.agents import check_parallel
from ..errors import EnvError

__all__ = ["AgentLanes", "AgentStep"]


@dataclass(slots=True)
class AgentStep:
    """What one step of one copy gave, as the environment gave it.

    ``rewards`` by agent, those of agents that did not act included; ``ended`` {agent that acted: (terminated,
    truncated)} of those that go no further; ``finals`` their last observations, where there was one; ``obs``
    {agent that acts next: observation}, of a new episode if this one is ``over``; ``lost``: the episode was given up.
    """

    obs: dict[str, Any]
    rewards: dict[str, float] = field(default_factory=dict)
    ended: dict[str, tuple[bool, bool]] = field(default_factory=dict)
    finals: dict[str, Any] = field(default_factory=dict)
    over: bool = False
    lost: bool = False


class AgentLanes:
    """The copies.

    Args:
        make: Makes one parallel environment.
        num_envs: How many copies.
        max_restarts: How many rebuilds are allowed over the lifetime of the lanes.
        whose: Copy -> its name in an error.
    """

    kind = "parallel"

    def __init__(
        self, make: Callable[[], Any], num_envs: int, *, max_restarts: int, whose: Callable[[int], str]
    ) -> None:
        self._make = make
        self._whose = whose
        self.num_envs = num_envs
        self.max_restarts = max_restarts
        self.num_restarts = 0
        self.envs = []
        for _ in range(num_envs):
            self.envs.append(make())
            check_parallel(self.envs[-1])
        self._seeds = [0] * num_envs

    def possible_agents(self) -> list[str]:
        """Agents known beforehand; none if the environment makes them up as it goes."""
        return list(getattr(self.envs[0], "possible_agents", ()))

    def reset(self, seeds: Sequence[int]) -> list[dict[str, Any]]:
        """Start an episode in every copy; {agent: observation} of each."""
        self._seeds = [int(seed) for seed in seeds]
        shown = []
        for copy, seed in enumerate(self._seeds):
            try:
                shown.append(self._begin(copy, seed=seed))
            except EnvError:
                raise
            except Exception as error:
                shown.append(self._rebuild(copy, error))
        return shown

    def step(self, copy: int, actions: dict[str, Any]) -> AgentStep:
        """Step one copy with an action of every agent that was shown an observation."""
        try:
            return self._step(copy, actions)
        except EnvError:
            raise
        except Exception as error:
            return AgentStep(self._rebuild(copy, error), over=True, lost=True)

    def _step(self, copy: int, actions: dict[str, Any]) -> AgentStep:
        env = self.envs[copy]
        obs, rewards, terminateds, truncateds, _ = env.step(actions)
        live = [agent for agent in env.agents if not (terminateds.get(agent) or truncateds.get(agent))]
        out = AgentStep({}, {agent: float(reward) for agent, reward in rewards.items()})
        for agent, reward in out.rewards.items():
            if not math.isfinite(reward):
                raise EnvError(f"{self._whose(copy)}: gave agent {agent!r} a reward that is not finite: {reward}")
        for agent in actions:
            if agent not in live:
                terminated = bool(terminateds.get(agent, False))
                out.ended[agent] = (terminated, not terminated)
                if agent in obs:
                    out.finals[agent] = obs[agent]
        if live:
            out.obs = self._shown(copy, live, obs)
        else:
            out.over = True
            out.obs = self._begin(copy)
        return out

    def _begin(self, copy: int, **seed: int) -> dict[str, Any]:
        env = self.envs[copy]
        obs, _ = env.reset(**seed)
        if not env.agents:
            raise EnvError(f"{self._whose(copy)}: there is no agent after reset()")
        return self._shown(copy, env.agents, obs)

    def _shown(self, copy: int, agents: Sequence[Any], obs: Mapping[str, Any]) -> dict[str, Any]:
        """Observations of live agents; PettingZoo's interface promises one of each."""
        for agent in agents:
            if not isinstance(agent, str):
                raise EnvError(f"{self._whose(copy)}: agent {agent!r}: names of agents must be strings")
            if agent not in obs:
                raise EnvError(
                    f"{self._whose(copy)}: agent {agent!r} is in env.agents but was given no observation; a parallel "
                    "environment shows every live agent one after each step, or leaves the agent out of env.agents"
                )
        return {agent: obs[agent] for agent in agents}

    def _rebuild(self, copy: int, error: Exception) -> dict[str, Any]:
        """Replace a copy by a new one, with a seed that follows from its first and the number of rebuilds."""
        while True:
            self.num_restarts += 1
            if self.num_restarts > self.max_restarts:
                raise EnvError(
                    f"{self._whose(copy)} raised {type(error).__name__}: {error}; max_env_restarts="
                    f"{self.max_restarts} rebuilds are used up"
                ) from error
            try:
                self.envs[copy].close()
            except Exception as close_error:
                error.add_note(f"closing it raised {type(close_error).__name__}: {close_error}")
            try:
                self.envs[copy] = self._make()
                seed = np.random.SeedSequence([self._seeds[copy], self.num_restarts]).generate_state(1)[0]
                return self._begin(copy, seed=int(seed))
            except EnvError:
                raise
            except Exception as next_error:
                error = next_error

    def environments(self) -> list[Any]:
        """The copies, whose state may be saved."""
        return list(self.envs)

    def get_state(self) -> dict[str, Any]:
        """What the lanes themselves carry from step to step."""
        return {"kind": self.kind, "num_restarts": self.num_restarts, "seeds": list(self._seeds)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        self.num_restarts = int(state["num_restarts"])
        self._seeds = [int(seed) for seed in state["seeds"]]

    def close(self) -> None:
        """Release the environments; safe to call twice."""
        for env in self.envs:
            env.close()
