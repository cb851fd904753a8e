"""What the runner sees of N environments, whatever steps them and whatever they do at an episode's end.

Needs gymnasium's observations: arrays, or nested dicts and tuples of them. Gymnasium's autoreset modes
(https://farama.org/Vector-Autoreset-Mode) all end in the same ``Step``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from .columns import Columns

__all__ = ["DISABLED", "NEXT_STEP", "SAME_STEP", "Lanes", "Step", "lose", "write"]

NEXT_STEP, SAME_STEP, DISABLED = "NextStep", "SameStep", "Disabled"


@dataclass(slots=True)
class Step:
    """What one step of N lanes gave.

    ``rewards`` float[N]; ``terminateds``, ``truncateds`` bool[N]; ``valid`` bool[N] or None when every row is valid;
    ``finals`` {lane: final observation} for lanes that were reset in this very step (elsewhere the observation
    written is the true next one); ``lost`` lanes whose episode was given up because the environment raised.
    """

    rewards: np.ndarray
    terminateds: np.ndarray
    truncateds: np.ndarray
    valid: np.ndarray | None = None
    finals: dict[int, Columns] = field(default_factory=dict)
    lost: Sequence[int] = ()


class Lanes(Protocol):
    """What the runner needs of N environments."""

    num_envs: int
    observation_space: Any
    action_space: Any
    autoreset: str
    num_restarts: int

    def reset(self, seeds: Sequence[int], out: Columns) -> None:
        """Start N episodes; observations are written to ``out`` ([N, ...] leaves)."""
        ...

    def step(self, actions: Any, out: Columns) -> Step:
        """Step all lanes; the observations to act on next are written to ``out``."""
        ...

    def environments(self) -> list[Any]:
        """The Python objects whose state can be saved: N environments, one vector environment, or none."""
        ...

    def get_state(self) -> dict[str, Any]:
        """What the lanes themselves carry from step to step: plain values, among them their ``kind``."""
        ...

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Take back the state of lanes of the same kind."""
        ...

    def close(self) -> None:
        """Release environments and processes; safe to call twice."""
        ...


def write(out: Columns, obs: Any, lane: int | None = None) -> None:
    """Copy an observation (of one lane, or of all) into preallocated columns."""
    if isinstance(out, dict):
        values = obs.values() if isinstance(obs, Mapping) else obs
        if isinstance(obs, Mapping):
            for name, (key, column) in zip(obs, out.items(), strict=True):
                write(column, obs[key if key in obs else name], lane)  # keys of other types became strings
        else:
            for column, value in zip(out.values(), values, strict=True):
                write(column, value, lane)
    elif lane is None:
        out[...] = obs
    else:
        out[lane] = obs


def lose(step: Step, lanes: Sequence[int], count: int) -> None:
    """Mark lanes as given up: their row says nothing, and nothing may be propagated across it."""
    if step.valid is None:
        step.valid = np.ones(count, np.bool_)
    for lane in lanes:
        step.valid[lane] = False
        step.truncateds[lane] = True
    step.lost = [*step.lost, *lanes]
