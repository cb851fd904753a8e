"""What the runner sees of N environments, whatever steps them and whatever they do at an episode's end.

Needs gymnasium's observations: arrays, or nested dicts and tuples of them. Gymnasium's autoreset modes
(https://farama.org/Vector-Autoreset-Mode) all end in the same ``Step``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from ..spaces import AnySpace
from ..state.schema import COUNT, SEED, Array, ListOf, Record, Schema, Text
from ..state.tree import Plain, Tree
from .actions import EnvActions
from .columns import Columns

if TYPE_CHECKING:
    from gymnasium import Env
    from gymnasium.vector import VectorEnv
    from pettingzoo import AECEnv, ParallelEnv

__all__ = ["DISABLED", "NEXT_STEP", "SAME_STEP", "Lanes", "LanesSchema", "Step", "lose"]

NEXT_STEP, SAME_STEP, DISABLED = "NextStep", "SameStep", "Disabled"

#: Kinds of lanes whose environments are stepped one by one; a vector environment's is "<class>/<autoreset mode>".
_STEPPED_HERE = ("sync", "parallel")


def _is_kind(text: str) -> bool:
    name, _, mode = text.partition("/")
    return text in _STEPPED_HERE or (bool(name) and mode in (NEXT_STEP, SAME_STEP, DISABLED))


#: Environments of gymnasium, of whatever observations and actions.
AnyEnv: TypeAlias = "Env[Any, Any]"
AnyVectorEnv: TypeAlias = "VectorEnv[Any, Any, Any]"
#: The same of PettingZoo: with turns, and with them or in parallel.
TurnBasedEnv: TypeAlias = "AECEnv[Any, Any, Any]"
AgentsEnv: TypeAlias = "ParallelEnv[Any, Any, Any] | AECEnv[Any, Any, Any]"


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
    """What the runner needs of N environments.

    What the environments give is copied at once, and compared with their spaces (``observations``, ``answers``): both
    methods raise ``EnvOutputError`` for what does not fit, and nothing of it has been learned from by then.
    """

    num_envs: int
    observation_space: AnySpace
    action_space: AnySpace
    autoreset: str
    num_restarts: int
    num_steps: int

    def reset(self, seeds: Sequence[int], out: Columns) -> None:
        """Start N episodes; observations are written to ``out`` ([N, ...] leaves)."""
        ...

    def step(self, actions: EnvActions, out: Columns) -> Step:
        """Step all lanes; the observations to act on next are written to ``out``."""
        ...

    def begin_again(self, lanes: Sequence[int], out: Columns) -> bool:
        """Give up the running episodes of some lanes, and begin new ones; their observations are written to ``out``.

        Returns:
            False, and nothing is done: these environments can only be reset all together.
        """
        ...

    def environments(self) -> list[AnyEnv | AnyVectorEnv]:
        """The Python objects whose state can be saved: N environments, one vector environment, or none."""
        ...

    def get_state(self) -> dict[str, Plain]:
        """What the lanes themselves carry from step to step: plain values, among them their ``kind``."""
        ...

    def set_state(self, state: Tree) -> None:
        """Take back the state of lanes of the same kind."""
        ...

    def close(self) -> None:
        """Release environments and processes; safe to call twice."""
        ...


class LanesSchema(Schema):
    """What the state of N lanes must be, whatever their kind; of another kind they begin anew.

    Args:
        num_envs: N; ``None``: any number.
    """

    def __init__(self, num_envs: int | None) -> None:
        self._num_envs = num_envs

    @property
    def expected(self) -> str:
        """In words."""
        return "the state of environments, with their kind"

    def check(self, value: Plain, path: str) -> None:
        """As ``Schema.check``."""
        kind = Text('a kind of environments: "sync", "parallel" or "<class>/<autoreset mode>"', _is_kind)
        Record({"kind": kind, "num_restarts": COUNT}, is_open=True, what=self.expected).check(value, path)
        fields: dict[str, Schema] = {"kind": kind, "num_restarts": COUNT}
        if value["kind"] in _STEPPED_HERE:
            fields["seeds"] = ListOf(SEED, self._num_envs)
        else:
            fields |= {"seed": SEED, "was_done": Array((self._num_envs,), np.bool_)}
        Record(fields).check(value, path)


def lose(step: Step, lanes: Sequence[int], count: int) -> None:
    """Mark lanes as given up: their row says nothing, and nothing may be propagated across it."""
    if step.valid is None:
        step.valid = np.ones(count, np.bool_)
    for lane in lanes:
        step.valid[lane] = False
        step.truncateds[lane] = True
    step.lost = [*step.lost, *lanes]
