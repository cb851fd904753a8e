"""The action and the reward of the step before, as inputs of a memory.

Needs, of sequences, the columns ``actions`` and ``rewards`` and the state before their first step; of single steps the
state alone, which whoever steps the environment has filled in (``learner_core.sampling.feedback``). Both give the same
inputs: what a step was is known in its own row, and what the last row of the sequence before was, in ``state_in``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..maths.action_inputs import PREV_ACTION, PREV_REWARD, ActionInputs
from ..spaces import AnySpace
from ..xp import Array, Columns, Namespace

__all__ = ["Previous"]


class Previous:
    """What a memory is told of the step before.

    Args:
        action_space: of the module.
        action: whether it is told the action.
        reward: whether it is told the reward.

    Attributes:
        size: how many inputs these are.
    """

    def __init__(self, action_space: AnySpace, *, action: bool, reward: bool) -> None:
        self._actions = ActionInputs(action_space)
        self._sizes: dict[str, int] = {}
        if action:
            self._sizes[PREV_ACTION] = self._actions.size
        if reward:
            self._sizes[PREV_REWARD] = 1
        self.size: int = sum(self._sizes.values())

    def initial_state(self) -> dict[str, np.ndarray]:
        """Zeros: before an episode's first step nothing was done."""
        return {leaf: np.zeros(size, np.float32) for leaf, size in self._sizes.items()}

    def of_step(self, xp: Namespace, batch: Columns, like: Array) -> tuple[Array, dict[str, Array]]:
        """The inputs float[B, size] of a single step, and the state's leaves, which are for others to move on."""
        leaves = {leaf: batch["state_in"][leaf] for leaf in self._sizes}
        return xp.concat([xp.astype(value, like.dtype) for value in leaves.values()], -1), leaves

    def of_sequence(self, xp: Namespace, batch: Columns, like: Array) -> tuple[Array, dict[str, Array]]:
        """The inputs float[B, T, size] of sequences, and the state's leaves after their last step.

        A sequence without ``actions`` and ``rewards`` is one step long, and nothing is known after it.
        """
        keep = xp.expand_dims(1.0 - xp.astype(batch["resets"], like.dtype), -1)
        inputs, after = [], {}
        for leaf in self._sizes:
            first = xp.astype(batch["state_in"][leaf], like.dtype)
            before = xp.expand_dims(first, 1)
            column = "actions" if leaf == PREV_ACTION else "rewards"
            if column in batch:
                values = self._values(xp, batch[column], leaf, like.dtype)
                before = xp.concat([before, values[:, :-1]], 1)
                after[leaf] = values[:, -1]
            else:
                after[leaf] = first
            inputs.append(before * keep)
        return xp.concat(inputs, -1), after

    def _values(self, xp: Namespace, column: Any, leaf: str, dtype: Any) -> Any:
        if leaf == PREV_ACTION:
            return self._actions.encode(xp, column, dtype)
        return xp.expand_dims(xp.astype(column, dtype), -1)
