"""What all agents see, shown to the critic of each: for training with a value function that knows more than the policy.

Needs one of PettingZoo's environments. An agent's observation becomes a Dict: ``own``, what it was; and what is added,
``all`` {agent: its observation} with ``present`` int8[agents], or ``state``, what ``env.state()`` says. Masks of
actions stay where the library looks for them. Refuses environments without a ``state_space``, where that is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from learner_core.errors import ConfigError, EnvOutputError
from learner_core.spaces import blank

from ..spaces import AnySpace, ResetResult, SpaceValue, StepResult
from .agents import has_agents, is_turn_based
from .info_masks import Forwards

__all__ = ["OWN", "with_central_observations"]

#: Where in the observations what the agent itself sees is.
OWN = "own"
_MASK = "action_mask"


def with_central_observations(env: Any, kind: str) -> Any:
    """The environment with more in its observations.

    Args:
        env: One of PettingZoo's environments, parallel or turn-based.
        kind: "all" or "state".

    Raises:
        ConfigError: It has one agent, or no ``state_space``.
    """
    if not has_agents(env):
        raise ConfigError(
            f"multi_agent(critic_observes={kind!r}) shows the critic what other agents see, and {type(env).__name__} "
            "is no environment of several"
        )
    if kind == "state" and getattr(env, "state_space", None) is None:
        raise ConfigError(
            f"multi_agent(critic_observes='state'): {type(env).__name__} has no state_space; critic_observes='all' "
            "shows the observations of all agents"
        )
    return TurnCentralObservations(env, kind) if is_turn_based(env) else ParallelCentralObservations(env, kind)


class _Central(Forwards):
    """What both interfaces have in common."""

    def __init__(self, env: Any, kind: str) -> None:
        super().__init__(env)
        self._kind = kind

    def observation_space(self, agent: object) -> AnySpace:
        """A Dict of the agent's own observation and what is added."""
        from gymnasium import spaces

        seen, mask = _parts(self.env.observation_space(agent))
        if self._kind == "state":
            more: dict[str, Any] = {"state": self.env.state_space}
        else:
            all_seen = {str(other): _parts(self.env.observation_space(other))[0] for other in self.env.possible_agents}
            more = {"all": spaces.Dict(all_seen), "present": spaces.MultiBinary(len(all_seen))}
        central = spaces.Dict({OWN: seen, **more})
        return central if mask is None else spaces.Dict({"observation": central, _MASK: mask})

    def _added(self, observations: Mapping[Any, Any]) -> dict[str, Any]:
        """What every agent's observation gets, of those that are there."""
        if self._kind == "state":
            return {"state": self.env.state()}
        agents = self.env.possible_agents
        everything = {
            str(agent): _parts(observations[agent])[0]
            if agent in observations
            else blank(_parts(self.env.observation_space(agent))[0])
            for agent in agents
        }
        return {"all": everything, "present": np.array([agent in observations for agent in agents], np.int8)}

    def _shown(self, agent: object, obs: SpaceValue, added: Mapping[str, Any]) -> SpaceValue:
        seen, mask = _parts(obs)
        if (mask is None) != (_parts(self.env.observation_space(agent))[1] is None):
            raise EnvOutputError(
                f"agent {agent!r}: its space has {_MASK!r} and its observation has not, or the other way"
            )
        central = {OWN: seen, **added}
        return central if mask is None else {"observation": central, _MASK: mask}


class ParallelCentralObservations(_Central):
    """A parallel environment.

    Args:
        env: The environment.
        kind: "all" or "state".
    """

    def reset(self, **options: object) -> ResetResult:
        """As the environment's, with more in the observations."""
        obs, infos = self.env.reset(**options)
        return self._all_shown(obs), infos

    def step(self, actions: Mapping[object, SpaceValue]) -> StepResult:
        """As the environment's, with more in the observations."""
        obs, rewards, terminateds, truncateds, infos = self.env.step(actions)
        return self._all_shown(obs), rewards, terminateds, truncateds, infos

    def _all_shown(self, obs: Mapping[Any, Any]) -> dict[Any, Any]:
        added = self._added(obs)
        return {agent: self._shown(agent, one, added) for agent, one in obs.items()}


class TurnCentralObservations(_Central):
    """A turn-based environment.

    Args:
        env: The environment.
        kind: "all" or "state".
    """

    def observe(self, agent: object) -> Any:
        """As the environment's, with more in the observation."""
        return self._shown(agent, self.env.observe(agent), self._added(self._seen()))

    def last(self, observe: bool = True) -> StepResult:
        """As the environment's, with more in the observation."""
        obs, reward, terminated, truncated, info = self.env.last(observe=observe)
        if obs is not None:
            obs = self._shown(self.env.agent_selection, obs, self._added(self._seen()))
        return obs, reward, terminated, truncated, info

    def _seen(self) -> dict[Any, Any]:
        return {agent: self.env.observe(agent) for agent in self.env.agents} if self._kind == "all" else {}


def _parts(observation: Any) -> ResetResult:
    """An observation, or its space, without its mask of actions, and the mask; ``None``: there is none."""
    parts = getattr(observation, "spaces", observation)
    if not isinstance(parts, Mapping) or _MASK not in parts:
        return observation, None
    rest = {name: part for name, part in parts.items() if name != _MASK}
    if set(rest) == {"observation"}:
        return rest["observation"], parts[_MASK]
    return (type(observation)(rest) if hasattr(observation, "spaces") else rest), parts[_MASK]
