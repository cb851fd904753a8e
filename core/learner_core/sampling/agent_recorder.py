"""Collects what the agents of one module did in a fragment, and makes the module's rollout of it.

Needs the steps in order. Refuses nothing. A lane of the rollout is one (copy, agent) pair that the module played in
this fragment; rows in which it did not act are not valid. An agent that has waited acts in the row after its last one,
so that what is propagated backwards over rows knows no pause. docs/decisions/several-agents.md says why.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..maths.action_inputs import PREV_REWARD
from .agent_game import Lane, stack
from .columns import Columns, tree_map
from .episodes import Episode
from .open_rows import OpenRows
from .rollout import Rollout

__all__ = ["AgentRecorder"]


class AgentRecorder:
    """One module's side of a fragment.

    Args:
        num_steps: T.
    """

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._times: list[int] = []
        #: Places of rows on the rollout's time axis.
        self._places: list[int] = []
        self._lanes: list[Lane] = []
        self._obs: list[Columns] = []
        self._answers: list[Mapping[str, Columns]] = []
        #: Recurrent state after each step.
        self._after: list[Columns] = []
        self._rewards: list[float] = []
        self._terminateds: list[bool] = []
        self._truncateds: list[bool] = []
        self._valid: list[bool] = []
        #: row -> the lane's next row, which shows what it led to; elsewhere ``_finals`` does.
        self._follow: dict[int, int] = {}
        self._finals: dict[int, Columns] = {}
        #: lane -> its newest row, while the agent's part of the episode goes on.
        self._open: dict[Lane, int] = {}
        #: Rows that the next fragment has.
        self._left: set[int] = set()
        self.episodes: list[Episode] = []

    def act(
        self, t: int, lanes: Sequence[Lane], obs: Columns, answer: Mapping[str, Columns], after: Columns | None = None
    ) -> None:
        """The module answers ``obs`` [B, ...] of these lanes in step t; ``after``: its recurrent state then."""
        for row, lane in enumerate(lanes, start=len(self._times)):
            before = self._open.get(lane)
            if before is not None:
                self._follow[before] = row
            self._places.append(t if before is None else self._places[before] + 1)
            self._open[lane] = row
        count = len(lanes)
        self._times.extend([t] * count)
        self._lanes.extend(lanes)
        self._obs.append(obs)
        # A module may answer in the same arrays every time.
        self._answers.append(tree_map(np.array, answer))
        if after is not None:
            self._after.append(tree_map(np.array, after))
        self._rewards.extend([0.0] * count)
        for flags in (self._terminateds, self._truncateds):
            flags.extend([False] * count)
        self._valid.extend([True] * count)

    def takes(self, answer: Mapping[str, Columns]) -> bool:
        """Whether an answer has the columns of those before."""
        return not self._answers or self._answers[0].keys() == answer.keys()

    def paid(self, lane: Lane, reward: float) -> None:
        """Add a reward to the lane's open row."""
        self._rewards[self._open[lane]] += reward

    def ended(self, lane: Lane, how: tuple[bool, bool], final: Columns) -> None:
        """The agent's part ends, (terminated, truncated), in the observation ``final``."""
        row = self._open.pop(lane)
        self._terminateds[row], self._truncateds[row] = how
        self._finals[row] = final

    def take_waiting(self, waits: Callable[[Lane], bool]) -> OpenRows | None:
        """Take the open rows of lanes that wait out of the fragment; None if there are none."""
        lanes = [lane for lane in self._open if waits(lane)]
        if not lanes:
            return None
        rows = np.array([self._open.pop(lane) for lane in lanes], np.int64)
        self._left.update(rows.tolist())
        return OpenRows(
            tuple(lanes),
            np.array([self._rewards[row] for row in rows]),
            tree_map(lambda leaf: leaf[rows], _concatenated(self._obs)),
            tree_map(lambda leaf: leaf[rows], _concatenated(self._answers)),
            tree_map(lambda leaf: leaf[rows], _concatenated(self._after)) if self._after else None,
        )

    def lose(self, copy: int, since: int, now: int) -> None:
        """The copy's episode, which began in step ``since`` or before the fragment, was given up in step ``now``."""
        last: dict[Lane, int] = {}
        for row, (time, lane) in enumerate(zip(self._times, self._lanes, strict=True)):
            if lane[0] == copy and since <= time <= now:
                self._valid[row] = False
                last[lane] = row
        for lane, row in last.items():
            self._open.pop(lane, None)
            if not (self._terminateds[row] or self._truncateds[row]):
                self._truncateds[row] = True

    def finish(
        self,
        *,
        last: Callable[[Lane], Columns],
        order: Callable[[Lane], tuple[int, int]],
        shown: Callable[[Columns], Columns],
        values: Callable[..., np.ndarray | None],
    ) -> Rollout | None:
        """Put the fragment together.

        Args:
            last: What an agent saw when the fragment ended.
            order: Sort key of lanes.
            shown: Observations [B, ...] as the policy sees them.
            values: Observations [B, ...] (and recurrent state) -> float[B]; asked only if the policy gives values.

        Returns:
            The rollout, [T, N, ...]; None if no row is left.
        """
        kept = np.array([row for row in range(len(self._times)) if row not in self._left], np.int64)
        if not len(kept):
            return None
        for lane, row in self._open.items():
            self._finals[row] = last(lane)
        lanes = sorted({self._lanes[row] for row in kept}, key=order)
        column = {lane: i for i, lane in enumerate(lanes)}
        shape = (self._num_steps, len(lanes))
        place = np.array([self._places[row] * shape[1] + column[self._lanes[row]] for row in kept])
        obs = _concatenated(self._obs)
        outputs = _concatenated(self._answers)
        following = tree_map(np.array, obs)
        if self._follow:
            rows = np.fromiter(self._follow.keys(), np.int64)
            next_rows = np.fromiter(self._follow.values(), np.int64)
            _put(following, rows, tree_map(lambda leaf: leaf[next_rows], obs))
        if self._finals:
            rows = np.fromiter(self._finals.keys(), np.int64)
            _put(following, rows, shown(stack(list(self._finals.values()))))

        def spread(rows: np.ndarray, fill: Any = 0) -> np.ndarray:
            rows = rows if len(rows) == len(kept) else rows[kept]
            full = np.empty((shape[0] * shape[1], *rows.shape[1:]), rows.dtype)
            if len(rows) < len(full):
                full[...] = fill
            full[place] = rows
            return full.reshape((*shape, *rows.shape[1:]))

        terminateds = np.array(self._terminateds)
        columns: dict[str, Columns] = {
            "obs": tree_map(spread, obs),
            # Where nobody acts: an action that was taken, for a zero need not be one; and everything is allowed.
            **{
                name: tree_map(
                    functools.partial(spread, fill=rows[0] if name == "actions" else name in ("action_mask", "resets")),
                    rows,
                )
                for name, rows in outputs.items()
            },
            "rewards": spread(np.array(self._rewards, np.float32)),
            "terminateds": spread(terminateds),
            "truncateds": spread(np.array(self._truncateds)),
            "next_obs": tree_map(spread, following),
            "valid": spread(np.array(self._valid)),
        }
        bootstrap = None
        if "vf_preds" in outputs:
            bootstrap = spread(self._bootstrap(following, outputs["vf_preds"], terminateds, values))
        return Rollout(columns, bootstrap_values=bootstrap, episodes=self.episodes)

    def _bootstrap(
        self,
        following: Columns,
        predictions: np.ndarray,
        terminateds: np.ndarray,
        values: Callable[..., np.ndarray | None],
    ) -> np.ndarray:
        """Values of what rows led to, float32[rows], 0 where the agent's part terminated."""
        out = np.zeros(len(predictions), np.float32)
        if self._follow:
            out[list(self._follow)] = predictions[list(self._follow.values())]
        ask = np.array([row for row in self._finals if not terminateds[row] and self._valid[row]], np.int64)
        if ask.size:
            asked = [following]
            if self._after:
                after = _concatenated(self._after)
                if PREV_REWARD in after:
                    after = {**after, PREV_REWARD: np.array(self._rewards, np.float32)[:, np.newaxis]}
                asked.append(after)
            out[ask] = values(*[tree_map(lambda leaf: leaf[ask], columns) for columns in asked])
        return out


def _put(tree: Columns, rows: np.ndarray, values: Columns) -> None:
    if isinstance(tree, dict):
        for key, leaf in tree.items():
            _put(leaf, rows, values[key])
    else:
        tree[rows] = values


def _concatenated(trees: Sequence[Columns]) -> Columns:
    first = trees[0]
    if isinstance(first, dict):
        return {key: _concatenated([tree[key] for tree in trees]) for key in first}
    return np.concatenate(trees)
