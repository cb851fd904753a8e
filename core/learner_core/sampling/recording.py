"""Whole episodes as columns, collected while they are played.

Needs ``evaluation.Watch`` calls. Rows of one episode stand together and in order of time; episodes stand in the order
in which they finished. Observations are the environment's own, never normalised: who learns from a recording does not
have the normaliser of who made it. Episodes whose environment raised are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import BatchError
from .columns import Columns, tree_map
from .lanes import Step

__all__ = ["RECORDING_FORMAT", "EpisodeRecorder"]

RECORDING_FORMAT = "learner_core/recording"
"""What ``format`` says in a recording's file."""


class EpisodeRecorder:
    """Collects the steps of N lanes into episodes; call it as a ``Watch``."""

    def __init__(self) -> None:
        self._running: dict[int, list[dict[str, Any]]] = {}
        self._finished: list[list[dict[str, Any]]] = []

    def __call__(
        self, before: Columns, answer: Mapping[str, np.ndarray], step: Step, after: Columns, counting: np.ndarray
    ) -> None:
        """Take in one step of all lanes."""
        for lane in step.lost:
            self._running.pop(int(lane), None)
        for lane in map(int, np.flatnonzero(counting)):
            following = step.finals.get(lane)
            row = {
                "obs": _row(before, lane),
                **{name: np.array(column[lane]) for name, column in answer.items()},
                "rewards": np.float32(step.rewards[lane]),
                "terminateds": np.bool_(step.terminateds[lane]),
                "truncateds": np.bool_(step.truncateds[lane]),
                "next_obs": _row(after, lane) if following is None else tree_map(np.array, following),
            }
            episode = self._running.setdefault(lane, [])
            episode.append(row)
            if row["terminateds"] or row["truncateds"]:
                self._finished.append(self._running.pop(lane))

    @property
    def lengths(self) -> np.ndarray:
        """int64[E], steps of each finished episode; they add up to the rows of ``columns()``."""
        return np.array([len(episode) for episode in self._finished], np.int64)

    def columns(self) -> dict[str, Columns]:
        """The finished episodes, one behind the other: {column: [B, ...]}.

        Raises:
            BatchError: No episode has finished.
        """
        rows = [row for episode in self._finished for row in episode]
        if not rows:
            raise BatchError("no episode has finished: there is nothing to record")
        return {name: _stack([row[name] for row in rows]) for name in rows[0]}


def _row(columns: Columns, lane: int) -> Columns:
    return tree_map(lambda leaf: np.array(leaf[lane]), columns)


def _stack(rows: list[Columns]) -> Columns:
    if isinstance(rows[0], Mapping):
        return {key: _stack([row[key] for row in rows]) for key in rows[0]}
    return np.stack(rows)
