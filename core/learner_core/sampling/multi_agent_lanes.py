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

from ..config.agents import check_parallel
from ..config.foreign import failure
from ..errors import EnvError
from .rebuilding import EnvList

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


class AgentLanes(EnvList):
    """The copies.

    Args:
        make: Makes one parallel environment.
        num_envs: How many copies.
        max_restarts: How many rebuilds are allowed over the lifetime of the lanes.
        whose: Copy -> its name in an error.
    """

    kind = "parallel"
    final_errors = (EnvError,)  # an environment against the interface: a new one would be no better

    def __init__(
        self, make: Callable[[], Any], num_envs: int, *, max_restarts: int, whose: Callable[[int], str]
    ) -> None:
        def make_parallel() -> Any:
            env = make()
            check_parallel(env)
            return env

        super().__init__(make_parallel, num_envs, max_restarts=max_restarts, whose=whose)

    def possible_agents(self) -> list[str]:
        """Agents known beforehand; none if the environment makes them up as it goes."""
        return list(getattr(self.envs[0], "possible_agents", ()))

    def reset(self, seeds: Sequence[int]) -> list[dict[str, Any]]:
        """Start an episode in every copy; {agent: observation} of each."""
        shown = []
        for copy, seed in enumerate(self._take_seeds(seeds)):
            try:
                shown.append(self._begin(copy, seed=seed))
            except EnvError:
                raise
            except BaseException as error:
                shown.append(self._rebuild(copy, failure(error)))
        return shown

    def step(self, copy: int, actions: dict[str, Any]) -> AgentStep:
        """Step one copy with an action of every agent that was shown an observation."""
        try:
            return self._step(copy, actions)
        except EnvError:
            raise
        except BaseException as error:
            return AgentStep(self._rebuild(copy, failure(error)), over=True, lost=True)

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

    def _begin(self, copy: int, /, **seed: int) -> dict[str, Any]:
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
