"""A module as the agents that it plays see it.

Needs a module spec with its spaces and a policy. Refuses agents whose spaces are not those of the module.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..errors import SpaceError
from ..learning.rl_module import RLModuleSpec
from ..maths.action_masks import ActionMask, split_mask
from ..spaces import AnySpace, blank
from ..state.schema import Array, Nullable, OneOf, Record, Schema
from .actions import ActionDoor
from .columns import Columns, columns_schema, tree_map
from .feedback import Feedback
from .normalize import RunningNormalizer
from .numpy_backend import Policy
from .rollout import rollout_columns

__all__ = ["Player"]


class Player:
    """One module.

    Args:
        spec: ``RLModuleSpec`` with its spaces.
        policy: Answers observations.
        normalized: Whether its observations are normalised, by statistics of its own.

    Attributes:
        initial_state: Recurrent state of an agent before its first step, by leaf; empty without memory.
        mask: Where observations say which actions are allowed; known when the first agent has appeared.
    """

    def __init__(self, spec: RLModuleSpec, policy: Policy, *, normalized: bool) -> None:
        self.spec = spec
        self.policy = policy
        self.observation_space: AnySpace = spec.observation_space
        self.action_space: AnySpace = spec.action_space
        self.door: ActionDoor = ActionDoor(self.action_space)
        example = blank(self.observation_space)
        self.normalizer: RunningNormalizer | None = RunningNormalizer(example) if normalized else None
        self._example = tree_map(np.asarray if normalized else _narrow, example)
        initial: Mapping[str, np.ndarray] = getattr(policy, "initial_state", None) or {}
        self.initial_state: dict[str, np.ndarray] = {
            leaf: np.asarray(value, np.float32) for leaf, value in initial.items()
        }
        self._feedback = Feedback(self.initial_state, self.action_space)
        self.mask: ActionMask | None = None

    def meet(self, agent: str, observation_space: AnySpace, action_space: AnySpace, *, module_id: str) -> None:
        """Compare an agent's spaces with the module's.

        Raises:
            SpaceError: They differ.
        """
        seen, mask = split_mask(observation_space, action_space)
        pairs = (("observation_space", seen, self.observation_space), ("action_space", action_space, self.action_space))
        for name, got, expected in pairs:
            if got != expected:
                raise SpaceError(
                    f"agent {agent!r} has {name} {got}, but module {module_id!r}, which is to play it, has {expected}; "
                    "give agents of different spaces modules of their own by .multi_agent(policies=..., "
                    "policy_mapping_fn=...)"
                )
        if (mask is not None) != bool(getattr(self.spec, "masked", False)):
            which = "gives a mask of actions" if mask is not None else "gives no mask of actions"
            raise SpaceError(f"agent {agent!r} {which}, unlike what module {module_id!r} was built for")
        self.mask = mask

    def agent_schema(self) -> Record:
        """What the state of an agent that this module plays must be: ``memory``, ``obs`` and ``allowed``."""
        allowed: Schema = OneOf((None,))
        if bool(getattr(self.spec, "masked", False)):
            mask = ActionMask(self.action_space)
            allowed = Array((mask.size,), np.bool_, rule=mask.check)
        memory = Nullable(columns_schema(self.initial_state))
        return Record({"memory": memory, "obs": columns_schema(self._example), "allowed": allowed})

    def rollout_columns(self, rows: tuple[None, ...]) -> dict[str, Schema]:
        """What columns of a fragment must be to be of this module."""
        return rollout_columns(self.shown(self._example), self.door, rows)

    def take(self, columns: Columns) -> tuple[Columns, np.ndarray | None]:
        """What the policy is shown of an observation in the form of columns, and bool[K], which actions it allows."""
        allowed = None
        if self.mask is not None:
            allowed = np.array(self.mask.mask(tree_map(lambda leaf: leaf[np.newaxis], columns))[0])
            columns = self.mask.observation(columns)
        return (columns if self.normalizer is not None else tree_map(_narrow, columns)), allowed

    def shown(self, obs: Columns) -> Columns:
        """Observations [B, ...] as the policy sees them."""
        return obs if self.normalizer is None else self.normalizer.normalize(obs)

    def ask(
        self, obs: Columns, *, noise: np.ndarray | None, explore: bool, allowed: np.ndarray | None, state: Columns
    ) -> dict[str, Columns]:
        """The policy's answer; ``state_out`` among it if it is recurrent."""
        more: dict[str, Columns] = {"mask": allowed, "state": state if self.initial_state else None}
        known = {name: value for name, value in more.items() if value is not None}
        return self.policy.compute_actions(obs, noise=noise, explore=explore, **known)

    def after(self, state: Columns, actions: np.ndarray) -> Columns:
        """The recurrent state after a step, leaves [B, ...]; what the step will be paid is not known yet."""
        return self._feedback.told(state, actions) if self._feedback else state


def _narrow(leaf: np.ndarray) -> np.ndarray:
    """float64 observations are kept as float32: no learner takes more, and they are half of a rollout."""
    return leaf.astype(np.float32) if leaf.dtype == np.float64 else leaf
