"""What one step of a game of several agents was, the same for both of PettingZoo's interfaces."""

from __future__ import annotations

from dataclasses import dataclass, field

from .columns import Columns

__all__ = ["AgentStep"]


@dataclass(slots=True)
class AgentStep:
    """What one step of one copy gave; observations are copies, in the form of columns.

    Attributes:
        obs: {agent that acts next: observation}, of a new episode if this one is ``over``.
        rewards: By agent, those of agents that did not act included. Of a turn-based environment an agent's since its
            last turn, once it has its next one.
        ended: {agent: (terminated, truncated)} of those that go no further.
        finals: Their last observations, where there was one.
        over: Nobody is left; the next episode has begun.
        lost: The episode was given up.
    """

    obs: dict[str, Columns]
    rewards: dict[str, float] = field(default_factory=dict)
    ended: dict[str, tuple[bool, bool]] = field(default_factory=dict)
    finals: dict[str, Columns] = field(default_factory=dict)
    over: bool = False
    lost: bool = False
