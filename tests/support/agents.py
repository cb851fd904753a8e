"""Runners of several agents that cross, and what is looked at in their fragments and states."""

from __future__ import annotations

from typing import Any

import numpy as np

from learner_core.state.format import decode, encode

from .parallel_envs import make_agents_runner, make_crossing

__all__ = ["MODULES", "bytes_of", "copied", "crossing", "rows_of", "who"]

#: a and c are played by one module, b by another.
MODULES = {"m": "a", "n": "b"}


def who(agent: str) -> str:
    return "n" if agent == "b" else "m"


def rows_of(rollout: Any, lane: int) -> list[tuple[Any, ...]]:
    """The valid rows of a lane: (step, obs, reward, next_obs, terminated, truncated)."""
    columns = rollout.columns
    names = ("obs", "rewards", "next_obs", "terminateds", "truncateds")
    return [(t, *[columns[n][t, lane].tolist() for n in names]) for t in np.flatnonzero(columns["valid"][:, lane])]


def bytes_of(tree: Any) -> bytes:
    encoded = encode(tree)
    return encoded if isinstance(encoded, bytes) else b"".join(bytes(part) for part in encoded)


def copied(tree: Any) -> Any:
    """A state that has been written and read."""
    return decode(bytes_of(tree))


def crossing(num_envs: int = 2, **settings: Any) -> Any:
    return make_agents_runner(make_crossing, MODULES, num_envs, policy_mapping_fn=who, **settings)
