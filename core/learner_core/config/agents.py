"""Which module plays which agent.

Needs a config with ``policies policy_mapping_fn rl_module_spec env``. Refuses module ids that do not exist, whoever
names them, and environments of one agent.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from typing import Any, Protocol, TypeAlias, runtime_checkable

from learner_core.errors import ConfigError, EnvError, did_you_mean

__all__ = [
    "ONLY_MODULE",
    "PETTINGZOO",
    "AgentMapping",
    "EnvSource",
    "Environment",
    "check_agents",
    "has_agents",
    "is_environment",
    "is_multi_agent",
    "is_turn_based",
    "is_vector",
]

#: What environment names begin with that PettingZoo has: "pettingzoo:sisl/multiwalker-v9".
PETTINGZOO = "pettingzoo:"
#: The module of a config that names none.
ONLY_MODULE = "default_policy"


@runtime_checkable
class Environment(Protocol):
    """An environment object: gymnasium's ``Env`` and ``VectorEnv``, PettingZoo's parallel and turn-based ones."""

    def reset(self, **options: Any) -> Any:
        """Begin an episode."""

    def step(self, action: Any) -> Any:
        """Act."""

    def close(self) -> None:
        """Release it."""


#: What environments come from: a name, a callable that makes them, or one itself.
EnvSource: TypeAlias = str | Callable[..., Any] | Environment


def is_multi_agent(config: Any) -> bool:
    """Whether the config's environment is one of several agents: by its policies, or by its name."""
    if getattr(config, "policies", None) is not None or getattr(config, "policy_mapping_fn", None) is not None:
        return True
    env = getattr(config, "env", None)
    return isinstance(env, str) and env.startswith(PETTINGZOO)


def is_environment(env: Any) -> bool:
    """Whether it is an environment object, and not what makes one: a name, a function, a class."""
    return not isinstance(env, type) and callable(getattr(env, "step", None))


def has_agents(env: Any) -> bool:
    """Whether an environment object has spaces per agent, as PettingZoo's have, parallel and turn-based."""
    return is_environment(env) and callable(getattr(env, "observation_space", None))


def is_vector(env: Any) -> bool:
    """Whether an environment object is several at once: gymnasium's ``VectorEnv``, or one with its attributes."""
    return is_environment(env) and hasattr(env, "num_envs") and hasattr(env, "single_observation_space")


def is_turn_based(env: Any) -> bool:
    """Whether an environment of several agents lets one act at a time: PettingZoo's AEC interface."""
    return callable(getattr(env, "agent_iter", None)) and callable(getattr(env, "last", None))


def check_agents(env: Any) -> None:
    """Refuse what is no PettingZoo environment.

    Raises:
        EnvError: A Gymnasium environment.
    """
    if not has_agents(env):
        raise EnvError(
            f"{type(env).__name__} is no PettingZoo environment, and .multi_agent(policies=...) asks for one; "
            "leave multi_agent out for a Gymnasium environment"
        )


class AgentMapping:
    """Agents to modules.

    Args:
        function: ``policy_mapping_fn(agent_id)`` or ``policy_mapping_fn(agent_id, episode)``; the second is told the
            number of the agent's episode, which no other episode of the run has. None: agents map to the module of
            their own id, or to the only module.
        module_ids: The modules there are.
    """

    def __init__(self, function: Callable[..., Any] | None, module_ids: Collection[str]) -> None:
        self.function = function
        self.module_ids: list[str] = list(module_ids)
        self._takes_episode = function is not None and _takes_episode(function)

    def module_of(self, agent_id: Any, episode: int) -> str:
        """The module that plays an agent in an episode.

        Args:
            agent_id: PettingZoo's name of the agent.
            episode: Number of the episode.

        Raises:
            ConfigError: The function raised or named no known module; without one, no module is the agent's.
        """
        if self.function is None:
            if agent_id in self.module_ids:
                return str(agent_id)
            if len(self.module_ids) == 1:
                return self.module_ids[0]
            raise ConfigError(
                f"agent {agent_id!r}: there is no module of that name; set "
                f".multi_agent(policy_mapping_fn=...).{did_you_mean(str(agent_id), self.module_ids)}"
            )
        name = getattr(self.function, "__qualname__", repr(self.function))
        try:
            module_id = self.function(agent_id, episode=episode) if self._takes_episode else self.function(agent_id)
        except Exception as error:
            raise ConfigError(f"policy_mapping_fn {name}({agent_id!r}) raised {error!r}") from error
        if module_id not in self.module_ids:
            raise ConfigError(
                f"policy_mapping_fn {name} maps agent {agent_id!r} to {module_id!r}, which is no module."
                f"{did_you_mean(str(module_id), self.module_ids)}"
            )
        return str(module_id)


def _takes_episode(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature takes the agent alone
        return False
    return any(p.name == "episode" or p.kind is p.VAR_KEYWORD for p in parameters)
