"""Rows of one module whose agents wait: what they have done is known, what it led to is not.

Needs nothing. Refuses states that are not of the module that is to go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import BatchError, StateError
from ..spaces import check_actions
from ..state.schema import COUNT, TEXT, Anything, Array, Items, ListOf, MapOf, Nullable, Record, Schema, refuse
from ..state.tree import Plain, Tree, describe
from .agent_game import Lane
from .agent_player import Player
from .columns import Columns, columns_schema, tree_map, tree_paths

__all__ = ["OpenRows", "check_owners", "open_rows_schema"]


@dataclass(frozen=True, slots=True)
class OpenRows:
    """Rows [B, ...].

    Attributes:
        lanes: (copy, agent) of each.
        rewards: float64[B], what they have been paid so far.
        obs: What the policy saw.
        answer: What it answered, by column.
        after: Its recurrent state then; None without one.
    """

    lanes: tuple[Lane, ...]
    rewards: np.ndarray
    obs: Columns
    answer: dict[str, Columns]
    after: Columns | None

    def to_plain(self) -> dict[str, Plain]:
        """Plain data and copies of the arrays, for a state."""
        return {
            "lanes": [list(lane) for lane in self.lanes],
            "rewards": self.rewards.copy(),
            "obs": tree_map(np.array, self.obs),
            "answer": tree_map(np.array, self.answer),
            "after": None if self.after is None else tree_map(np.array, self.after),
        }

    @classmethod
    def from_plain(cls, plain: Tree) -> OpenRows:
        """Back from ``to_plain``'s data."""
        lanes = tuple((int(copy), str(agent)) for copy, agent in plain["lanes"])
        after = plain["after"]
        return cls(
            lanes,
            np.array(plain["rewards"], np.float64),
            tree_map(np.array, plain["obs"]),
            {name: tree_map(np.array, column) for name, column in plain["answer"].items()},
            None if after is None else tree_map(np.array, after),
        )


def open_rows_schema(player: Player, num_envs: int) -> Schema:
    """What ``from_plain`` takes, of a module that this player plays in so many copies."""
    columns = player.rollout_columns((None,))
    state = columns_schema(player.initial_state, (None,)) if player.initial_state else None
    answers = {name: columns[name] for name in _ANSWERS if name in columns}
    if state is not None:
        answers["state_in"] = state

    def rule(plain: Tree, path: str) -> None:
        lanes = [tuple(lane) for lane in plain["lanes"]]
        if len(set(lanes)) != len(lanes) or not lanes or any(copy >= num_envs for copy, _ in lanes):
            refuse(f"{path}/lanes", f"agents of {num_envs} environments, each once", repr(lanes)[:100])
        columns["obs"].check(plain["obs"], f"{path}/obs")
        Record(answers, [name for name in answers if name != "actions"]).check(plain["answer"], f"{path}/answer")
        try:
            check_actions(player.action_space, np.asarray(plain["answer"]["actions"]))
        except BatchError as error:
            raise StateError(str(error.args[0]), path=f"{path}/answer/actions") from None
        if (state is not None) != (plain["after"] is not None):
            refuse(f"{path}/after", "a state of the recurrent module, None without", describe(plain["after"]))
        if state is not None:
            state.check(plain["after"], f"{path}/after")
        for part in ("rewards", "obs", "answer", "after"):
            for at, leaf in tree_paths(plain[part] if plain[part] is not None else {}, f"{path}/{part}"):
                if np.shape(leaf)[:1] != (len(lanes),):
                    refuse(at, f"{len(lanes)} rows", f"shape {np.shape(leaf)}")

    fields: dict[str, Schema] = {
        "lanes": ListOf(Items([COUNT, TEXT])),
        "rewards": Array((None,), np.float64, most=_MOST),
        "obs": Anything(),
        "answer": MapOf(Anything()),
        "after": Nullable(Anything()),
    }
    return Record(fields, rule=rule, what="rows of agents that wait")


def check_owners(waiting: Tree, copies: Sequence[Tree], path: str) -> None:
    """Refuse open rows of agents that do not wait in a saved game, or are played by another module there."""
    for module_id, rows in waiting.items():
        for copy, agent in rows["lanes"]:
            played = {name: module for name, module, *_ in copies[copy]["agents"]}
            waits = [name for name, _ in copies[copy].get("waiting", ())]
            if agent not in waits or played.get(agent) != module_id:
                known = [name for name in waits if played.get(name) == module_id]
                refuse(f"{path}/{module_id}/lanes", f"agents that wait in environment {copy}: {known}", repr(agent))


#: Squares of such rewards, and sums of those, still fit float32.
_MOST = 1e15
_ANSWERS = ("actions", "action_logp", "action_dist_inputs", "vf_preds", "action_mask", "resets")
