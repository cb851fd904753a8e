"""PettingZoo's turn-based interface (AEC), step by step.

Needs ``reset agents agent_selection last step``, as https://pettingzoo.farama.org/api/aec/ has them. Refuses
environments that go on choosing agents whose part is over.

One agent acts at a time. What an agent has been paid since its last turn, and whether its part is over, it is told
when it is chosen next: ``env.last()``. One whose part is over is chosen once more to be told, and leaves.
docs/decisions/several-agents.md says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import EnvError
from .agent_step import AgentStep
from .answers import step_result
from .columns import Columns
from .lanes import TurnBasedEnv

__all__ = ["TurnChecks", "begin_turns", "take_turn"]


@dataclass(frozen=True, slots=True)
class TurnChecks:
    """What is done with all that an environment says; each refuses what it must not say.

    Attributes:
        reward: (agent, what came) -> the number.
        flags: (agent, terminated, truncated) -> both as bools.
        read: (agent, observation) -> a copy, in the form of columns.
        whose: Names the environment in an error.
        as_numpy: What it said, in arrays of numpy.
    """

    reward: Callable[[str, object], float]
    flags: Callable[[str, object, object], tuple[bool, bool]]
    read: Callable[[str, object], Columns]
    whose: Callable[[], str]
    as_numpy: Callable[[Any], Any]


def begin_turns(env: TurnBasedEnv, seed: Mapping[str, int], checks: TurnChecks) -> dict[str, Columns]:
    """Start an episode, with ``{"seed": ...}`` or without; {the agent that acts first: what it sees}.

    Raises:
        EnvError: Nobody acts.
    """
    env.reset(**seed)
    step = _until_somebody_acts(env, checks)
    if step.over:
        raise EnvError(f"{checks.whose()}: there is no agent after reset()")
    return step.obs


def take_turn(env: TurnBasedEnv, action: object, waiting: Iterable[str], checks: TurnChecks) -> AgentStep:
    """The agent whose turn it is acts.

    Args:
        env: The environment.
        action: Of that agent.
        waiting: The other agents whose part goes on, so far as they have acted or been shown anything.
        checks: What is done with what it says.

    Returns:
        The step, up to the next turn; ``over`` with nothing shown if nobody is left.
    """
    acting = env.agent_selection
    env.step(action)
    step = _until_somebody_acts(env, checks)
    for agent in (acting, *waiting):
        if agent not in env.agents and agent not in step.ended:
            step.ended[agent] = (False, True)  # gone without a word
    return step


def _until_somebody_acts(env: TurnBasedEnv, checks: TurnChecks) -> AgentStep:
    """Tell agents whose part is over, one after the other, up to one that acts."""
    step = AgentStep({})
    told = 0
    while env.agents:
        agent = env.agent_selection
        said = step_result(env.last(), 0, lambda _: checks.whose(), of="last")
        obs, paid, *flags = checks.as_numpy(said[:4])
        step.rewards[agent] = step.rewards.get(agent, 0.0) + checks.reward(agent, paid)
        terminated, truncated = checks.flags(agent, *flags)
        if not (terminated or truncated):
            step.obs = {agent: checks.read(agent, obs)}
            return step
        if told > len(env.agents) + len(step.ended):
            raise EnvError(f"{checks.whose()}: agent {agent!r} is chosen again and again, though its part is over")
        told += 1
        step.ended[agent] = (terminated, not terminated)
        if obs is not None:
            step.finals[agent] = checks.read(agent, obs)  # before the next step, which may write into it
        env.step(None)
    step.over = True
    return step
