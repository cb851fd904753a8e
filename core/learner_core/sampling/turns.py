"""PettingZoo's turn-based interface (AEC), step by step.

Needs ``reset agents agent_selection last step``, as https://pettingzoo.farama.org/api/aec/ has them. Refuses
environments that go on choosing agents whose part is over.

One agent acts at a time. What an agent has been paid since its last turn, and whether its part is over, it is told
when it is chosen next: ``env.last()``. One whose part is over is chosen once more to be told, and leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..errors import EnvError
from .agent_step import AgentStep

__all__ = ["begin_turns", "is_turn_based", "take_turn"]

Reward = Callable[[Any, Any], float]


def is_turn_based(env: Any) -> bool:
    """Whether an environment of several agents lets one act at a time."""
    return callable(getattr(env, "agent_iter", None)) and callable(getattr(env, "last", None))


def begin_turns(env: Any, seed: Mapping[str, int], *, reward: Reward, whose: Callable[[], str]) -> dict[str, Any]:
    """Start an episode, with ``{"seed": ...}`` or without; {the agent that acts first: what it sees}.

    Raises:
        EnvError: Nobody acts.
    """
    env.reset(**seed)
    step = _until_somebody_acts(env, reward=reward, whose=whose)
    if step.over:
        raise EnvError(f"{whose()}: there is no agent after reset()")
    return step.obs


def take_turn(env: Any, action: Any, waiting: Iterable[str], *, reward: Reward, whose: Callable[[], str]) -> AgentStep:
    """The agent whose turn it is acts.

    Args:
        env: The environment.
        action: Of that agent.
        waiting: The other agents whose part goes on, so far as they have acted or been shown anything.
        reward: (agent, what the environment says) -> the number; refuses what is none.
        whose: Names the environment in an error.

    Returns:
        The step, up to the next turn; ``over`` with nothing shown if nobody is left.
    """
    acting = env.agent_selection
    env.step(action)
    step = _until_somebody_acts(env, reward=reward, whose=whose)
    for agent in (acting, *waiting):
        if agent not in env.agents and agent not in step.ended:
            step.ended[agent] = (False, True)  # gone without a word
    return step


def _until_somebody_acts(env: Any, *, reward: Reward, whose: Callable[[], str]) -> AgentStep:
    """Tell agents whose part is over, one after the other, up to one that acts."""
    step = AgentStep({})
    told = 0
    while env.agents:
        agent = env.agent_selection
        obs, paid, terminated, truncated, _ = env.last()
        step.rewards[agent] = step.rewards.get(agent, 0.0) + reward(agent, paid)
        if not (terminated or truncated):
            step.obs = {agent: obs}
            return step
        if told > len(env.agents) + len(step.ended):
            raise EnvError(f"{whose()}: agent {agent!r} is chosen again and again, though its part is over")
        told += 1
        step.ended[agent] = (bool(terminated), not terminated)
        if obs is not None:
            step.finals[agent] = obs
        env.step(None)
    step.over = True
    return step
