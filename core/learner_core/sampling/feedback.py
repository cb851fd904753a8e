"""What a memory is told of its own last step: the leaves of its state that are not the network's to fill.

Needs the state that a module begins with and its action space. Refuses leaves of these names that have another shape.
docs/decisions/recurrent-modules.md says why.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .. import numpy_xp
from ..errors import ConfigError
from ..maths.action_inputs import PREV_ACTION, PREV_REWARD, ActionInputs
from ..spaces import AnySpace

__all__ = ["Feedback"]


class Feedback:
    """Fills in ``prev_action`` and ``prev_reward`` (``learner_core.maths.action_inputs``), where the state has them.

    Args:
        initial_state: The state before an episode's first step, by leaf.
        action_space: Of the module.

    Raises:
        ConfigError: A leaf of that name has another shape.
    """

    def __init__(self, initial_state: Mapping[str, np.ndarray], action_space: AnySpace) -> None:
        self._actions: ActionInputs | None = None
        self.rewarded: bool = PREV_REWARD in initial_state
        if PREV_ACTION in initial_state:
            self._actions = ActionInputs(action_space)
        for leaf, size in ((PREV_ACTION, self._actions.size if self._actions else 0), (PREV_REWARD, 1)):
            if leaf in initial_state and np.shape(initial_state[leaf]) != (size,):
                raise ConfigError(
                    f"initial_state(): {leaf!r} is what the step before was, of shape {[size]}; got "
                    f"{list(np.shape(initial_state[leaf]))}"
                )

    def __bool__(self) -> bool:
        """Whether there is anything to fill in."""
        return self.rewarded or self._actions is not None

    def told(
        self, state: Mapping[str, np.ndarray], actions: np.ndarray, rewards: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """The state after a step, with what the step was.

        Args:
            state: Leaves [N, ...] that the network answered with.
            actions: [N, *shape], as they were sampled.
            rewards: float[N], as a learner gets them; ``None``: not known yet, zeros for now.

        Returns:
            A new dict; leaves that are not filled in are the given ones.
        """
        out = dict(state)
        if self._actions is not None:
            out[PREV_ACTION] = self._actions.encode(numpy_xp, np.asarray(actions), numpy_xp.float32)
        if self.rewarded:
            paid = np.zeros(len(actions)) if rewards is None else rewards
            out[PREV_REWARD] = np.asarray(paid, np.float32)[:, np.newaxis]
        return out
