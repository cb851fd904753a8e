"""N copies of a PettingZoo environment, parallel or turn-based, stepped one after the other in this process.

Needs a maker of such environments. Refuses Gymnasium environments, agents whose names are no strings, live agents
that are shown nothing, rewards that are not finite, and environments that raise more often than allowed; one that
raises is rebuilt, and its running episode is given up.

Agents may come and go (https://pettingzoo.farama.org/api/parallel/): whoever is in ``env.agents`` after a step, and
was not reported terminated or truncated, acts next. One that is gone without such a report counts as truncated. When
nobody is left, the episode is over and the next begins in the same step. Of turn-based ones ``turns`` says the same.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..config.agents import check_agents
from ..config.foreign import failure
from ..errors import EnvError
from .agent_step import AgentStep
from .rebuilding import EnvList
from .turns import begin_turns, is_turn_based, take_turn

__all__ = ["AgentLanes"]


class AgentLanes(EnvList):
    """The copies.

    Args:
        make: Makes one environment of several agents.
        num_envs: How many copies.
        max_restarts: How many rebuilds are allowed over the lifetime of the lanes.
        whose: Copy -> its name in an error.
    """

    kind = "parallel"
    final_errors = (EnvError,)  # an environment against the interface: a new one would be no better

    def __init__(
        self, make: Callable[[], Any], num_envs: int, *, max_restarts: int, whose: Callable[[int], str]
    ) -> None:
        def make_checked() -> Any:
            env = make()
            check_agents(env)
            return env

        super().__init__(make_checked, num_envs, max_restarts=max_restarts, whose=whose)

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

    def step(self, copy: int, actions: dict[str, Any], waiting: Iterable[str] = ()) -> AgentStep:
        """Step one copy.

        Args:
            copy: Which.
            actions: Of every agent that was shown an observation and may act.
            waiting: The other agents whose part goes on.
        """
        try:
            if is_turn_based(self.envs[copy]):
                return self._take_turn(copy, actions, waiting)
            return self._step(copy, actions, waiting)
        except EnvError:
            raise
        except BaseException as error:
            return AgentStep(self._rebuild(copy, failure(error)), over=True, lost=True)

    def _step(self, copy: int, actions: dict[str, Any], waiting: Iterable[str]) -> AgentStep:
        env = self.envs[copy]
        obs, rewards, terminateds, truncateds, _ = env.step(actions)
        live = [agent for agent in env.agents if not (terminateds.get(agent) or truncateds.get(agent))]
        out = AgentStep({}, {agent: self._reward(copy, agent, reward) for agent, reward in rewards.items()})
        for agent in (*actions, *waiting):
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

    def _take_turn(self, copy: int, actions: dict[str, Any], waiting: Iterable[str]) -> AgentStep:
        (action,) = actions.values()
        step = take_turn(self.envs[copy], action, waiting, **self._told_of(copy))
        if step.over:
            step.obs = self._begin(copy)
        else:
            self._check_names(copy, step.obs)
        return step

    def _begin(self, copy: int, /, **seed: int) -> dict[str, Any]:
        env = self.envs[copy]
        if is_turn_based(env):
            first = begin_turns(env, seed, **self._told_of(copy))
            self._check_names(copy, first)
            return first
        obs, _ = env.reset(**seed)
        if not env.agents:
            raise EnvError(f"{self._whose(copy)}: there is no agent after reset()")
        return self._shown(copy, env.agents, obs)

    def _told_of(self, copy: int) -> dict[str, Any]:
        return {"reward": functools.partial(self._reward, copy), "whose": functools.partial(self._whose, copy)}

    def _reward(self, copy: int, agent: Any, reward: Any) -> float:
        number = float(reward)
        if not math.isfinite(number):
            raise EnvError(f"{self._whose(copy)}: gave agent {agent!r} a reward that is not finite: {number}")
        return number

    def _check_names(self, copy: int, agents: Iterable[Any]) -> None:
        for agent in agents:
            if not isinstance(agent, str):
                raise EnvError(f"{self._whose(copy)}: agent {agent!r}: names of agents must be strings")

    def _shown(self, copy: int, agents: Sequence[Any], obs: Mapping[str, Any]) -> dict[str, Any]:
        """Observations of live agents; PettingZoo's interface promises one of each."""
        self._check_names(copy, agents)
        for agent in agents:
            if agent not in obs:
                raise EnvError(
                    f"{self._whose(copy)}: agent {agent!r} is in env.agents but was given no observation; a parallel "
                    "environment shows every live agent one after each step, or leaves the agent out of env.agents"
                )
        return {agent: obs[agent] for agent in agents}
