"""Masks of actions that an environment gives beside its observations, moved into them.

Gymnasium's toy environments put ``action_mask`` into ``info`` (Taxi), PettingZoo's parallel ones into
``infos[agent]``, its turn-based ones into what ``last()`` tells, sb3-contrib's have a method ``action_masks()``. What
samples looks for masks in observations alone (``learner_core.maths.action_masks``), so that batches, checkpoints and
vector environments know one place; these wrappers put them there. Needs discrete actions. Refuses an observation to act
on without a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from learner_core.errors import ConfigError, EnvOutputError
from learner_core.maths.action_masks import ActionMask

from ..spaces import AnySpace, ResetResult, SpaceValue, StepResult
from .agents import has_agents, is_turn_based
from .foreign_arrays import as_numpy

__all__ = ["AgentInfoMasks", "Forwards", "InfoMasks", "TurnInfoMasks", "with_info_masks"]

_KEY = "action_mask"


def with_info_masks(env: Any) -> Any:
    """The environment with its masks in its observations: ``{"observation": ..., "action_mask": int8[K]}``.

    A Dict observation gets ``action_mask`` beside the rest; one that has it already is left alone.

    Args:
        env: A gymnasium environment, or one of PettingZoo's.

    Raises:
        ConfigError: A vector environment, whose infos differ from one to the next.
        SpaceError: Actions that cannot be masked.
    """
    if hasattr(env, "num_envs"):
        raise ConfigError(
            f"action_mask_in_info=True takes single environments, got {type(env).__name__}, one of several; let "
            ".env_runners(num_envs_per_env_runner=...) step them together"
        )
    if has_agents(env):
        return TurnInfoMasks(env) if is_turn_based(env) else AgentInfoMasks(env)
    return env if _has_mask(env.observation_space) else InfoMasks(env)


class Forwards:
    """Everything else is the inner environment's."""

    def __init__(self, env: Any) -> None:
        self.env = env

    def __getattr__(self, name: str) -> Any:
        if name == "env" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.env, name)


class InfoMasks(Forwards):
    """A gymnasium environment.

    Args:
        env: The environment.
    """

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.action_space: AnySpace = env.action_space
        self.observation_space: AnySpace = _masked_space(env.observation_space, env.action_space)

    def reset(self, **options: object) -> ResetResult:
        """As the environment's, with the mask in the observation."""
        obs, info = self.env.reset(**options)
        return self._shown(obs, info, ended=False), info

    def step(self, action: SpaceValue) -> StepResult:
        """As the environment's, with the mask in the observation."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._shown(obs, info, ended=terminated or truncated), reward, terminated, truncated, info

    def _shown(self, obs: SpaceValue, info: Mapping[str, Any], *, ended: bool) -> SpaceValue:
        given = info.get(_KEY)
        if given is None and (method := _method(self.env)) is not None:
            given = method()
        return _with_mask(obs, given, self.action_space, whose=type(self.env.unwrapped).__name__, ended=ended)


class _AgentMasks(Forwards):
    """An environment of PettingZoo's; agents whose actions cannot be masked are shown what they were."""

    def observation_space(self, agent: object) -> AnySpace:
        """The agent's, with the mask in it."""
        space = self.env.observation_space(agent)
        return _masked_space(space, self.env.action_space(agent)) if self._masks(agent) else space

    def _masks(self, agent: object) -> bool:
        kind = type(self.env.action_space(agent)).__name__
        return kind in ("Discrete", "MultiDiscrete", "MultiBinary") and not _has_mask(self.env.observation_space(agent))

    def _shown(self, agent: object, obs: SpaceValue, info: Any, *, ended: bool) -> SpaceValue:
        if not self._masks(agent):
            return obs
        given = (info or {}).get(_KEY)
        return _with_mask(obs, given, self.env.action_space(agent), whose=f"agent {agent!r}", ended=ended)


class AgentInfoMasks(_AgentMasks):
    """A parallel environment.

    Args:
        env: The environment.
    """

    def reset(self, **options: object) -> ResetResult:
        """As the environment's, with the masks in the observations."""
        obs, infos = self.env.reset(**options)
        return {agent: self._shown(agent, one, infos.get(agent), ended=False) for agent, one in obs.items()}, infos

    def step(self, actions: Mapping[object, SpaceValue]) -> StepResult:
        """As the environment's, with the masks in the observations."""
        obs, rewards, terminateds, truncateds, infos = self.env.step(actions)
        shown = {
            agent: self._shown(agent, one, infos.get(agent), ended=agent not in self.env.agents)
            for agent, one in obs.items()
        }
        return shown, rewards, terminateds, truncateds, infos


class TurnInfoMasks(_AgentMasks):
    """A turn-based environment.

    Args:
        env: The environment.
    """

    def last(self, **options: object) -> StepResult:
        """As the environment's, with the mask in the observation."""
        obs, reward, terminated, truncated, info = self.env.last(**options)
        ended = bool(terminated or truncated)
        return self._shown(self.env.agent_selection, obs, info, ended=ended), reward, terminated, truncated, info


def _has_mask(space: AnySpace) -> bool:
    return type(space).__name__ == "Dict" and _KEY in space.spaces


def _masked_space(space: AnySpace, action_space: AnySpace) -> Any:
    from gymnasium import spaces

    mask = spaces.MultiBinary(ActionMask(action_space).size)
    parts = dict(space.spaces) if isinstance(space, spaces.Dict) else {"observation": space}
    return spaces.Dict({**parts, _KEY: mask})


def _method(env: Any) -> Callable[[], Any] | None:
    """sb3-contrib's ``action_masks()``, wherever among the wrappers it is."""
    while env is not None:
        if callable(method := getattr(type(env), "action_masks", None)):
            found: Callable[[], Any] = method.__get__(env)
            return found
        env = vars(env).get("env")
    return None


def _with_mask(obs: SpaceValue, given: Any, action_space: AnySpace, *, whose: str, ended: bool) -> Any:
    size, given = ActionMask(action_space).size, as_numpy(given)
    if given is None:
        if not ended:
            raise EnvOutputError(
                f"{whose}: action_mask_in_info=True, but info has no {_KEY!r} (nor the environment action_masks()) for "
                "an observation that is to be acted on"
            )
        given = np.ones(size, np.int8)  # nobody acts on the last observation of an episode
    parts = given if isinstance(given, tuple | list) else (given,)
    mask = np.concatenate([np.asarray(part).reshape(-1) != 0 for part in parts]).astype(np.int8)
    if mask.size != size:
        raise EnvOutputError(f"{whose}: info[{_KEY!r}] has {mask.size} entries; {action_space} needs {size}")
    return {**(obs if isinstance(obs, Mapping) else {"observation": obs}), _KEY: mask}
