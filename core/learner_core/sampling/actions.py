"""The door between a policy's actions and an environment's.

Needs a gymnasium action space that a distribution exists for (Box, Discrete, MultiDiscrete, MultiBinary, and Dicts and
Tuples of these, whose actions are one row of numbers here and nested at the environment). Refuses others. The batch
keeps what the policy sampled, whose log-probability is known; only what goes through the door is clipped to the bounds.
Discrete actions come with the space's own ``start`` already (the distribution adds it).
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np

from ..action_parts import ActionPart, NestedActions, action_parts, has_parts
from ..errors import SpaceError
from ..spaces import AnySpace

__all__ = ["ActionDoor", "EnvActions"]

#: Actions of N environments, as these take them.
EnvActions: TypeAlias = np.ndarray | NestedActions


class ActionDoor:
    """Turns batches of policy actions into what the vector environment takes, and makes random ones.

    Args:
        space: Action space of one environment.

    Raises:
        SpaceError: A space without a distribution.
    """

    def __init__(self, space: AnySpace) -> None:
        from gymnasium import spaces

        self.space = space
        self._parts: list[tuple[ActionPart, ActionDoor]] = []
        if has_parts(space):
            self._parts = [(part, ActionDoor(part.space)) for part in action_parts(space)]
            self.kind: str = "parts"
            self.shape: tuple[int, ...] = (sum(part.size for part, _ in self._parts),)
            self.dtype: np.dtype[Any] = np.dtype(np.float32)
            return
        self.shape = tuple(space.shape or ())
        self.dtype = np.dtype(space.dtype) if space.dtype is not None else np.dtype(np.int64)
        self._low: Any = None
        self._high: Any = None
        if isinstance(space, spaces.Box):
            self.kind = "box"
            if not np.issubdtype(self.dtype, np.floating):
                raise SpaceError(f"action space {space}: integer boxes are not supported; use MultiDiscrete")
            self._low, self._high = space.low, space.high
            self._bounded = bool(np.isfinite(space.low).any() or np.isfinite(space.high).any())
        elif isinstance(space, spaces.Discrete):
            self.kind = "discrete"
            self._sizes: Any = int(space.n)
            self._start: Any = int(space.start)
        elif isinstance(space, spaces.MultiDiscrete):
            self.kind = "multi_discrete"
            self._sizes = np.asarray(space.nvec)
            self._start = np.asarray(getattr(space, "start", np.zeros_like(space.nvec)))
        elif isinstance(space, spaces.MultiBinary):
            self.kind = "multi_binary"
        else:
            raise SpaceError(
                f"action space {space}: expected Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of these"
            )

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the uniform noise that ``random`` takes for one action."""
        return (math.prod(self.shape),)

    def to_env(self, actions: np.ndarray) -> EnvActions:
        """What the environments are given.

        Args:
            actions: [N, *shape], as sampled: Gaussian actions may lie outside the bounds.

        Returns:
            [N, *shape] of the space's dtype, inside its bounds; a copy, which the environments may write into. Of a
            Dict or Tuple ``NestedActions``.
        """
        if self._parts:
            rows = np.array(actions, np.float64)
            for part, door in self._parts:
                inside = np.asarray(door.to_env(part.of(actions))).reshape(len(rows), -1)
                rows[:, part.start : part.start + part.size] = inside
            return NestedActions(self.space, rows)
        if self.kind == "box":
            if self._bounded:
                actions = np.minimum(np.maximum(actions, self._low), self._high)
            if actions.dtype != self.dtype or not self._bounded:
                actions = actions.astype(self.dtype)
                if self._bounded:  # rounding to a narrower type must not step over a bound
                    np.clip(actions, self._low, self._high, out=actions)
            return actions.reshape((actions.shape[0], *self.shape))
        return actions.astype(self.dtype)

    def random(self, uniforms: np.ndarray, allowed: np.ndarray | None = None) -> np.ndarray:
        """Random actions, as ``space.sample`` distributes them, from given noise.

        Bounded dimensions are uniform; dimensions bounded on one side are exponential from the bound; unbounded ones
        standard logistic, which has one closed form in the noise and nearly the shape of a normal.

        Args:
            uniforms: float64[N, prod(shape)] in [0, 1).
            allowed: bool[N, K], False where a discrete action is forbidden; None allows all.

        Returns:
            [N, *shape]: what the batch keeps, valid for ``to_env``. Box: float32; else int64.
        """
        if self._parts:
            pieces = [door.random(uniforms[:, part.start : part.start + part.size]) for part, door in self._parts]
            return np.concatenate([piece.reshape(len(uniforms), -1).astype(np.float32) for piece in pieces], axis=1)
        rows = uniforms.reshape((uniforms.shape[0], *self.shape))
        if self.kind == "multi_binary":
            bits = rows < 0.5
            return (bits if allowed is None else bits & allowed.reshape(bits.shape)).astype(np.int64)
        if allowed is not None and self.kind != "box":
            return self._random_allowed(uniforms, allowed)
        if self.kind != "box":
            return np.asarray(np.floor(rows * self._sizes) + self._start, np.int64)
        low, high = self.space.low.astype(np.float64), self.space.high.astype(np.float64)
        has_low, has_high = np.isfinite(low), np.isfinite(high)
        floor, ceiling = np.where(has_low, low, 0.0), np.where(has_high, high, 0.0)
        upward = -np.log1p(-rows)
        logistic = np.log(np.maximum(rows, 2.0**-53)) + upward
        return np.where(
            has_low & has_high,
            floor + rows * (ceiling - floor),
            np.where(has_low, floor + upward, np.where(has_high, ceiling - upward, logistic)),
        ).astype(np.float32)

    def _random_allowed(self, uniforms: np.ndarray, allowed: np.ndarray) -> np.ndarray:
        """Discrete actions, uniform among the allowed ones of every choice."""
        flat = uniforms.reshape(len(uniforms), -1)
        sizes = np.atleast_1d(self._sizes).ravel()
        actions = np.empty(flat.shape, np.int64)
        for index, part in enumerate(np.split(allowed, np.cumsum(sizes)[:-1], axis=-1)):
            place = np.floor(flat[:, index] * part.sum(axis=-1))
            actions[:, index] = np.argmax(np.cumsum(part, axis=-1) > place[:, np.newaxis], axis=-1)
        return np.asarray(actions.reshape((len(actions), *self.shape)) + self._start, np.int64)
