"""Which actions an environment allows: found in its observations, kept out of what a network sees.

An environment says it as PettingZoo and RLlib have it: its observation is a Dict with ``action_mask`` beside the rest,
1 where an action is allowed. The mask becomes the batch's column ``action_mask`` bool [..., K], with K entries in the
order of the logits (for MultiDiscrete the choices one after the other, as one vector or as a Tuple of them); the rest
is the observation. Refuses masks of another size, and masks of continuous actions.
docs/decisions/observations-and-actions.md says why.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..errors import SpaceError, StateError
from ..spaces import AnySpace
from ..xp import ArrayTree, Columns

__all__ = ["MASK", "ActionMask", "split_mask"]

MASK = "action_mask"
#: Names of an observation that stands alone beside its mask: it is taken out of the Dict.
_ALONE = ("observation", "observations", "obs")


def split_mask(observation_space: AnySpace, action_space: AnySpace) -> tuple[AnySpace, ActionMask | None]:
    """The space of what a network sees, and the mask beside it.

    Args:
        observation_space: gymnasium space, or ``None``.
        action_space: gymnasium space, or ``None``.

    Returns:
        (observation space without the mask, ActionMask), or (the same space, ``None``) where there is no mask.

    Raises:
        SpaceError: the mask does not fit the actions, or nothing is left beside it.
    """
    if type(observation_space).__name__ != "Dict" or MASK not in observation_space.spaces or action_space is None:
        return observation_space, None
    from gymnasium import spaces

    rest = {key: space for key, space in observation_space.spaces.items() if key != MASK}
    if not rest:
        raise SpaceError(f"observation space {observation_space}: there is nothing to observe beside {MASK!r}")
    alone = next(iter(rest)) if len(rest) == 1 else None
    if alone not in _ALONE:
        alone = None
    mask = ActionMask(action_space, alone)
    mask.check_space(observation_space.spaces[MASK])
    return (rest[alone] if alone is not None else spaces.Dict(rest)), mask


class ActionMask:
    """The mask of one action space.

    Args:
        action_space: Discrete, MultiDiscrete or MultiBinary.
        alone: key of the only other observation beside the mask, or ``None`` where there are several.

    Raises:
        SpaceError: other actions.
    """

    def __init__(self, action_space: AnySpace, alone: str | None = None) -> None:
        kind = type(action_space).__name__
        if kind not in ("Discrete", "MultiDiscrete", "MultiBinary"):
            raise SpaceError(f"{MASK}: actions of {action_space} cannot be masked, only discrete ones")
        self._alone = alone
        self._action_space = action_space
        if kind == "Discrete":
            self.choices: tuple[int, ...] = (int(action_space.n),)
        elif kind == "MultiDiscrete":
            self.choices = tuple(int(n) for n in np.asarray(action_space.nvec).ravel())
        else:
            # A bit that may not be set is 0: nothing can be forbidden altogether.
            self.choices = ()
        self.size: int = sum(self.choices) or int(np.prod(action_space.shape))
        #: The least value of every choice.
        self.start: np.ndarray = np.asarray(getattr(action_space, "start", 0)).ravel()

    def check_space(self, mask_space: AnySpace) -> None:
        """Refuse an environment's mask that does not fit.

        Args:
            mask_space: a Box or MultiBinary [K], or a Tuple of one for each choice.

        Raises:
            SpaceError: another number of entries.
        """
        parts = mask_space.spaces if type(mask_space).__name__ == "Tuple" else (mask_space,)
        sizes = [int(np.prod(part.shape)) for part in parts]
        if sum(sizes) != self.size or (len(sizes) > 1 and tuple(sizes) != self.choices):
            raise SpaceError(f"{MASK}: {mask_space} does not fit {self._action_space}, which needs {self.size} entries")

    def observation(self, columns: Columns) -> ArrayTree:
        """What a network sees of observations [..., *shape] in the form of columns."""
        if self._alone is not None:
            return columns[self._alone]
        return {key: value for key, value in columns.items() if key != MASK}

    def mask(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """bool[N, K] of observations [N, *shape] in the form of columns."""
        given = columns[MASK]
        parts = list(given.values()) if isinstance(given, Mapping) else [given]
        masks = [np.asarray(part).reshape(len(part), -1) != 0 for part in parts]
        return masks[0] if len(masks) == 1 else np.concatenate(masks, axis=-1)

    def forbidden(self, mask: np.ndarray) -> np.ndarray:
        """bool[N]: rows of bool[N, K] in which a choice has no allowed action."""
        if not self.choices:
            return np.zeros(len(mask), np.bool_)
        starts = np.cumsum((0, *self.choices[:-1]))
        return np.asarray(~np.logical_or.reduceat(mask, starts, axis=-1).all(axis=-1))

    def check(self, mask: np.ndarray, path: str) -> None:
        """Refuse a saved mask, bool[K], that allows nothing.

        Raises:
            StateError: says the path.
        """
        if self.forbidden(mask[np.newaxis]).any():
            raise StateError("allows no action: the state was changed or damaged; take an earlier one", path=path)

    def allows(self, mask: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """bool[N]: whether actions [N, ...] of the space keep to bool[N, K]."""
        flat = actions.reshape(len(actions), -1) - self.start
        if not self.choices:
            return np.asarray((mask | (flat == 0)).all(axis=-1))
        places = flat + np.cumsum((0, *self.choices[:-1]))
        return np.asarray(np.take_along_axis(mask, places, axis=-1).all(axis=-1))
