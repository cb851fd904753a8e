"""What stands between N lanes and their policy: recurrent state from step to step, and masks of actions.

Needs observations in the form of columns, as the environments gave them. Refuses an observation whose mask forbids
every action. The state of a lane begins anew with every episode; one that a NEXT_STEP environment ended is still asked
about its final observation, and begins anew after that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ..errors import EnvError
from ..maths.action_masks import ActionMask
from ..spaces import AnySpace
from ..state.schema import Array, Nullable, Record, Schema
from ..state.tree import Plain, Tree
from .columns import Columns, columns_schema, tree_map
from .feedback import Feedback
from .lanes import Step
from .numpy_backend import Policy

__all__ = ["LaneMemory"]


class LaneMemory:
    """Asks a policy for N lanes.

    Args:
        policy: answers; recurrent if it has an ``initial_state``.
        num_envs: N.
        mask: where the observations' mask is; ``None``: there is none.
        action_space: of one environment.
        whose: names a lane in an error.

    Attributes:
        state: leaves [N, ...] before the next step; empty unless the policy is recurrent.
        fresh: bool[N], the next step is the first of an episode.
    """

    def __init__(
        self,
        policy: Policy,
        num_envs: int,
        mask: ActionMask | None,
        *,
        action_space: AnySpace,
        whose: Callable[[int], str] | None = None,
    ) -> None:
        self._policy = policy
        self._num_envs = num_envs
        self._mask = mask
        self._whose = whose or (lambda lane: f"environment {lane}")
        initial: Mapping[str, np.ndarray] = getattr(policy, "initial_state", None) or {}
        self._initial = {leaf: np.asarray(value, np.float32) for leaf, value in initial.items()}
        self._feedback = Feedback(self._initial, action_space)
        self.begin()

    @property
    def recurrent(self) -> bool:
        """Whether there is a state at all."""
        return bool(self._initial)

    def begin(self) -> None:
        """Every lane begins an episode."""
        count = self._num_envs
        self.fresh: np.ndarray = np.ones(count, np.bool_)
        # The next step of the lane only resets its environment: what it is shown is the final observation.
        self._over = np.zeros(count, np.bool_)
        self.state: dict[str, np.ndarray] = {
            leaf: np.repeat(value[np.newaxis], count, axis=0) for leaf, value in self._initial.items()
        }

    def seen(self, columns: Columns) -> Columns:
        """What a network sees of the environments' observations."""
        return columns if self._mask is None else self._mask.observation(columns)

    def allowed(self, columns: Columns) -> np.ndarray | None:
        """bool[N, K], or None where there are no masks.

        Raises:
            EnvError: a lane may take no action.
        """
        if self._mask is None:
            return None
        allowed = self._mask.mask(columns)
        if self._over.any():
            allowed = allowed | self._over[:, np.newaxis]
        forbidden = self._mask.forbidden(allowed)
        if forbidden.any():
            lane = int(np.flatnonzero(forbidden)[0])
            raise EnvError(
                f"{self._whose(lane)}: action_mask allows no action in {int(forbidden.sum())} of {self._num_envs} "
                "environments; an environment that cannot go on must end its episode"
            )
        return allowed

    def ask(
        self, obs: Columns, *, noise: np.ndarray | None, explore: bool, allowed: np.ndarray | None
    ) -> dict[str, Columns]:
        """The policy's answer to what it sees; ``state_out`` among it if it is recurrent."""
        more: dict[str, Columns] = {"mask": allowed, "state": self.state if self._initial else None}
        known = {name: value for name, value in more.items() if value is not None}
        return self._policy.compute_actions(obs, noise=noise, explore=explore, **known)

    def after(self, state_out: Columns | None, actions: np.ndarray, rewards: np.ndarray) -> Columns:
        """The state after a step, before lanes begin anew: leaves [N, ...]; {} without memory.

        Args:
            state_out: What the policy answered with; ``None``: nothing, actions were random.
            actions: As they were sampled.
            rewards: float[N] of the step, as a learner gets them.
        """
        state = self.state if state_out is None else state_out
        return self._feedback.told(state, actions, rewards) if self._feedback else state

    def advance(self, step: Step, state_out: Columns | None) -> None:
        """Go on after a step of all lanes: keep the state (of ``after``), begin anew where an episode began."""
        if not self._initial and self._mask is None:
            return
        done = np.asarray(step.terminateds) | np.asarray(step.truncateds)
        fresh = np.zeros(self._num_envs, np.bool_)
        fresh[list(step.finals)] = True
        if step.valid is not None:
            fresh |= ~step.valid
        self.fresh, self._over = fresh, done & ~fresh
        if state_out is not None:
            self.state = {leaf: np.array(value, np.float32) for leaf, value in state_out.items()}
        if fresh.any():
            for leaf, value in self._initial.items():
                self.state[leaf][fresh] = value

    # ------------------------------------------------------------------------------------------------------- state

    def get_state(self) -> dict[str, Plain]:
        """Copies: ``state`` by leaf, ``fresh`` and ``over`` bool[N]."""
        return {"state": tree_map(np.array, self.state), "fresh": self.fresh.copy(), "over": self._over.copy()}

    def state_schema(self) -> Schema:
        """What ``set_state`` takes."""
        lanes = Array((self._num_envs,), np.bool_)
        fields = {"state": columns_schema(self._initial, (self._num_envs,)), "fresh": lanes, "over": lanes}
        schema = Record(fields, what="recurrent state")
        return schema if self._initial else Nullable(schema)

    def set_state(self, state: Tree | None) -> None:
        """Take back what fits ``state_schema``; ``None`` (a state from before there was memory) begins anew."""
        if state is None:
            self.begin()
            return
        self.fresh, self._over = np.array(state["fresh"], np.bool_), np.array(state["over"], np.bool_)
        self.state = {leaf: np.array(value, np.float32) for leaf, value in state["state"].items()}
