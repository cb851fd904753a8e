"""N copies of a PettingZoo environment, parallel or turn-based, stepped one after the other in this process.

Needs a maker of such environments. Refuses Gymnasium environments, agents whose names are no strings, live agents
that are shown nothing, observations that are not what the agent's space says, rewards that are no finite numbers, and
environments that raise more often than allowed; one that raises is rebuilt, and its running episode is given up. What
an environment returns is copied at once: it may write into it when it steps or resets.

Agents may come and go (https://pettingzoo.farama.org/api/parallel/): whoever is in ``env.agents`` after a step, and
was not reported terminated or truncated, acts next. One that is gone without such a report counts as truncated. When
nobody is left, the episode is over and the next begins in the same step. Of turn-based ones ``turns`` says the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

from ..config.agents import check_agents, is_turn_based
from ..config.foreign import failure
from ..errors import EnvError
from ..plugins.containment import said
from ..spaces import AnySpace
from .agent_step import AgentStep
from .answers import flag_of, mapping_of, reset_result, reward_of, step_result
from .columns import Columns
from .lanes import AgentsEnv
from .observations import ObservationReader
from .rebuilding import EnvList, Tell
from .turns import TurnChecks, begin_turns, take_turn

__all__ = ["AgentLanes"]


class AgentLanes(EnvList["AgentsEnv", dict[str, Columns]]):
    """The copies.

    Args:
        make: Makes one environment of several agents.
        num_envs: How many copies.
        max_restarts: How many rebuilds are allowed over the lifetime of the lanes.
        whose: Copy -> its name in an error.
        tell: Told of every rebuild.
    """

    kind = "parallel"
    # An environment against the interface: a new one would be no better.
    final_errors: tuple[type[Exception], ...] = (EnvError,)

    def __init__(
        self,
        make: Callable[[], AgentsEnv],
        num_envs: int,
        *,
        max_restarts: int,
        whose: Callable[[int], str],
        tell: Tell | None = None,
    ) -> None:
        def make_checked() -> AgentsEnv:
            env = make()
            check_agents(env)
            return env

        super().__init__(make_checked, num_envs, max_restarts=max_restarts, whose=whose, tell=tell)
        self._readers: dict[str, ObservationReader] = {}

    def possible_agents(self) -> list[str]:
        """Agents known beforehand; none if the environment makes them up as it goes."""
        return list(getattr(self.envs[0], "possible_agents", ()))

    def reset(self, seeds: Sequence[int]) -> list[dict[str, Columns]]:
        """Start an episode in every copy; {agent: observation} of each."""
        self.num_steps = 0
        shown = []
        for copy, seed in enumerate(self._take_seeds(seeds)):
            try:
                shown.append(self._begin_anew(copy, seed))
            except EnvError:
                raise
            except BaseException as error:
                shown.append(self._rebuild(copy, failure(error)))
        return shown

    def begin_again(self, copy: int) -> dict[str, Columns]:
        """Give up one copy's running episode; {agent: observation} of a new one."""
        try:
            return self._begin(copy)
        except EnvError:
            raise
        except BaseException as error:
            return self._rebuild(copy, failure(error))

    def step(self, copy: int, actions: Mapping[str, object], waiting: Iterable[str] = ()) -> AgentStep:
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

    def _step(self, copy: int, actions: Mapping[str, object], waiting: Iterable[str]) -> AgentStep:
        env, whose, arrays = self.envs[copy], self._whose, self._arrays[copy]
        self._lengths[copy] += 1
        result = arrays.read(step_result(env.step(arrays.give(actions)), copy, whose)[:4])
        names = ("observations", "rewards", "terminations", "truncations")
        obs, rewards, terminateds, truncateds = (
            mapping_of(values, name, copy, whose) for values, name in zip(result, names, strict=False)
        )
        there = (*actions, *waiting)
        flags = {
            agent: self._flags(copy, agent, terminateds.get(agent, False), truncateds.get(agent, False))
            for agent in {*env.agents, *there}
        }
        live = [agent for agent in env.agents if not any(flags[agent])]
        out = AgentStep({}, {agent: self._reward(copy, agent, reward) for agent, reward in rewards.items()})
        for agent in there:
            if agent not in live:
                terminated, _ = flags[agent]
                out.ended[agent] = (terminated, not terminated)
                if agent in obs:
                    out.finals[agent] = self._read(copy, agent, obs[agent])
        if live:
            out.obs = self._shown(copy, live, obs)
        else:
            out.over = True
            out.obs = self._begin(copy)
        return out

    def _take_turn(self, copy: int, actions: Mapping[str, object], waiting: Iterable[str]) -> AgentStep:
        (action,) = actions.values()
        self._lengths[copy] += 1
        step = take_turn(self.envs[copy], self._arrays[copy].give(action), waiting, self._checks(copy))
        if step.over:
            step.obs = self._begin(copy)
        return step

    def _begin(self, copy: int, /, **seed: int) -> dict[str, Columns]:
        env = self.envs[copy]
        self._lengths[copy] = 0
        if is_turn_based(env):
            return begin_turns(env, seed, self._checks(copy))
        answer = self._arrays[copy].read(reset_result(env.reset(**seed), copy, self._whose)[0])
        obs = mapping_of(answer, "observations", copy, self._whose)
        if not env.agents:
            raise EnvError(f"{self._whose(copy)}: there is no agent after reset()")
        return self._shown(copy, env.agents, obs)

    def _checks(self, copy: int) -> TurnChecks:
        """What is done with all that a turn-based environment says."""
        return TurnChecks(
            reward=functools.partial(self._reward, copy),
            flags=functools.partial(self._flags, copy),
            read=functools.partial(self._read, copy),
            whose=functools.partial(self._whose, copy),
            as_numpy=self._arrays[copy].read,
        )

    def _check_names(self, copy: int, agents: Iterable[object]) -> None:
        for agent in agents:
            if not isinstance(agent, str):
                raise EnvError(f"{self._whose(copy)}: agent {agent!r}: names of agents must be strings")

    def _shown(self, copy: int, agents: Sequence[str], obs: Mapping[str, object]) -> dict[str, Columns]:
        """Observations of live agents; PettingZoo's interface promises one of each."""
        self._check_names(copy, agents)
        for agent in agents:
            if agent not in obs:
                raise EnvError(
                    f"{self._whose(copy)}: agent {agent!r} is in env.agents but was given no observation; a parallel "
                    "environment shows every live agent one after each step, or leaves the agent out of env.agents"
                )
        return {agent: self._read(copy, agent, obs[agent]) for agent in agents}

    def _read(self, copy: int, agent: str, obs: object) -> Columns:
        self._check_names(copy, [agent])
        if agent not in self._readers:
            space, _ = self.spaces_of(copy, agent)
            self._readers[agent] = ObservationReader(space, functools.partial(self._whose_agent, agent))
        return self._readers[agent].read(obs, copy)

    def _reward(self, copy: int, agent: str, reward: object) -> float:
        return reward_of(reward, copy, functools.partial(self._whose_agent, agent))

    def _flags(self, copy: int, agent: str, terminated: object, truncated: object) -> tuple[bool, bool]:
        """Whether an agent was reported terminated, or truncated."""
        whose = functools.partial(self._whose_agent, agent)
        return flag_of(terminated, "terminated", copy, whose), flag_of(truncated, "truncated", copy, whose)

    def _whose_agent(self, agent: str, copy: int) -> str:
        return f"{self._whose(copy)}, agent {agent!r}"

    def spaces_of(self, copy: int, agent: str) -> tuple[AnySpace, AnySpace]:
        """An agent's (observation space, action space).

        Raises:
            EnvError: Asked for them, the environment raised.
        """
        env = self.envs[copy]
        try:
            return env.observation_space(agent), env.action_space(agent)
        except BaseException as error:
            text = said(failure(error))
            raise EnvError(f"{self._whose(copy)}: asked for the spaces of agent {agent!r} raised {text}") from error
