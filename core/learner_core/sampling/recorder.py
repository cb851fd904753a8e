"""Collects one fragment, step by step, and makes the rollout of it.

Needs the steps in order. Refuses nothing. Buffers are made once per fragment and then belong to the rollout.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .columns import Columns, tree_map
from .episodes import EpisodeTracker
from .lanes import Step
from .normalize import RewardScaler
from .rollout import Rollout

__all__ = ["Recorder"]


class Recorder:
    """The environments' side of a fragment.

    Args:
        num_steps: T.
        num_envs: N.
        scaler: Scales rewards as they come; None leaves them.
        raw: The rollout's rewards are those of the environments; the scaler only takes them in.
    """

    def __init__(self, num_steps: int, num_envs: int, scaler: RewardScaler | None, *, raw: bool = False) -> None:
        shape = (num_steps, num_envs)
        self._scaler = scaler
        self._keeps_raw = raw
        self._raw = np.empty(shape, np.float64)
        self._rewards = np.empty(shape, np.float32)
        self._terminateds = np.empty(shape, np.bool_)
        self._truncateds = np.empty(shape, np.bool_)
        self._stepped = np.ones(shape, np.bool_)
        self._finals: list[tuple[int, int, Columns]] = []
        self._lost: list[tuple[int, int]] = []

    def record(self, t: int, step: Step) -> np.ndarray:
        """Take in one step of all lanes; its final observations are kept as they are (normalised or not).

        Returns:
            float32[N]: its rewards, as the rollout has them.
        """
        self._raw[t] = step.rewards
        self._terminateds[t] = step.terminateds
        self._truncateds[t] = step.truncateds
        if step.valid is not None:
            self._stepped[t] = step.valid
        self._finals.extend((t, lane, final) for lane, final in step.finals.items())
        self._lost.extend((t, lane) for lane in step.lost)
        self._rewards[t] = step.rewards
        if self._scaler is not None:
            done = self._terminateds[t] | self._truncateds[t]
            scaled = self._scaler.scale(self._raw[t], done, step.valid)
            if not self._keeps_raw:
                self._rewards[t] = scaled
        rewards: np.ndarray = self._rewards[t]
        return rewards

    def finish(
        self,
        obs: Columns,
        outputs: dict[str, np.ndarray],
        episodes: EpisodeTracker,
        values: Callable[..., np.ndarray | None],
        after: Columns | None = None,
    ) -> Rollout:
        """Put the fragment together.

        Args:
            obs: Columns [T + 1, N, ...]; the rollout takes them over.
            outputs: The policy's columns [T, N, ...].
            episodes: Counts returns and lengths; advanced by this fragment.
            values: Observations [B, ...] (and recurrent state) -> their values float[B]; asked only if the policy
                gives values.
            after: Leaves [T, N, ...] of the recurrent state after each step, before episodes' ends clear it.

        Returns:
            The rollout.
        """
        done = self._terminateds | self._truncateds
        finished = episodes.update(self._raw, done, self._stepped, self._lost)
        valid = self._stepped.copy() if self._lost else self._stepped
        for t, lane in self._lost:
            before = np.flatnonzero(done[:t, lane])
            valid[(int(before[-1]) + 1 if before.size else 0) : t + 1, lane] = False
        next_obs = tree_map(lambda leaf: leaf[1:], obs)
        if self._finals:
            next_obs = tree_map(np.array, next_obs)
            for t, lane, final in self._finals:
                _put(next_obs, (t, lane), final)
        columns = {
            "obs": tree_map(lambda leaf: leaf[:-1], obs),
            **outputs,
            "rewards": self._rewards,
            "terminateds": self._terminateds,
            "truncateds": self._truncateds,
            "next_obs": next_obs,
            "valid": valid,
        }
        bootstrap_values = None
        if "vf_preds" in outputs:
            bootstrap_values = self._bootstrap(next_obs, outputs["vf_preds"], values, after)
        return Rollout(columns, bootstrap_values=bootstrap_values, episodes=finished)

    def _bootstrap(
        self, next_obs: Columns, values: np.ndarray, ask: Callable[..., np.ndarray | None], after: Columns | None
    ) -> np.ndarray:
        """Values of the true next observations, float32[T, N], 0 where the episode terminated.

        Where the fragment goes on they are the next row's. Only the last row and final observations that were set
        aside are asked for.
        """
        following = np.zeros(values.shape, np.float32)
        following[:-1] = values[1:]
        rows = {(t, lane) for t, lane, _ in self._finals}
        rows |= {(values.shape[0] - 1, lane) for lane in range(values.shape[1])}
        places = sorted(place for place in rows if not self._terminateds[place])
        if places:
            index = tuple(np.array(places).T)
            asked = [next_obs] if after is None else [next_obs, after]
            following[index] = ask(*[tree_map(lambda leaf: leaf[index], columns) for columns in asked])
        following[self._terminateds] = 0.0
        return following


def _put(columns: Columns, place: tuple[int, int], value: Columns) -> None:
    if isinstance(columns, dict):
        for key, column in columns.items():
            _put(column, place, value[key])
    else:
        columns[place] = value
