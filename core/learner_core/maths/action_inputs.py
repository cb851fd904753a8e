"""Actions as inputs of a network: what a memory is told of its own last step.

Needs an action space with a distribution. Holds plain Python only, so that a compiled step meets no arrays that it has
not made itself.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from ..action_parts import ActionPart, action_parts, has_parts
from ..spaces import AnySpace, SpaceEncoder
from ..xp import Array, DType, Namespace
from .unit_box import UnitBox

__all__ = ["PREV_ACTION", "PREV_REWARD", "ActionInputs"]

#: Leaves of a recurrent state that whoever steps the environment fills in: the action of the step before, encoded by
#: ``ActionInputs``, and the reward that followed it, [1]. Both are zeros in an episode's first step.
PREV_ACTION: Final = "prev_action"
PREV_REWARD: Final = "prev_reward"


class ActionInputs:
    """Encodes actions: discrete ones as one-hots; those of a Box with bounds scaled to [-1, 1], others as they are.

    Args:
        space: Action space.

    Attributes:
        size: Length of the vector.

    Raises:
        SpaceError: A space that has no actions.
    """

    def __init__(self, space: AnySpace) -> None:
        self.size: int
        self._parts: list[tuple[ActionPart, ActionInputs]] = []
        if has_parts(space):
            self._parts = [(part, ActionInputs(part.space)) for part in action_parts(space)]
            self.size = sum(inner.size for _, inner in self._parts)
            return
        self._encode = SpaceEncoder(space)
        self.size = self._encode.size
        self._box: UnitBox | None = None
        if type(space).__name__ == "Box":
            low, high = (np.asarray(bound, np.float64).ravel() for bound in (space.low, space.high))
            if bool(np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
                box = UnitBox.of(tuple(low.tolist()), tuple(high.tolist()))
                self._box = None if box.is_unit else box
        self._ndim = len(space.shape or ())

    def encode(self, xp: Namespace, actions: Array, dtype: DType) -> Array:
        """Encode actions.

        Args:
            xp: The array namespace.
            actions: [..., *shape], as a batch has them: what was sampled, in the action space's own unit.
            dtype: Of the result.

        Returns:
            dtype[..., size].
        """
        if self._parts:
            rows, pieces = tuple(xp.shape(actions)[:-1]), []
            for part, inner in self._parts:
                own = xp.reshape(actions[..., part.start : part.start + part.size], (*rows, *part.shape))
                pieces.append(inner.encode(xp, own if part.is_box else xp.astype(own, xp.int64), dtype))
            return xp.concat(pieces, -1)
        if self._box is None:
            return self._encode(xp, actions, dtype)
        shape = xp.shape(actions)
        flat = xp.reshape(actions, (*shape[: len(shape) - self._ndim], self.size)) if self._ndim != 1 else actions
        return self._box.to_unit(xp, xp.astype(flat, dtype))
