"""What a runner hands over: a fragment of T steps of N lanes.

Needs nothing but numpy. All columns are [T, N, ...] (time first), owned by the rollout: the runner never writes to
them again. ``obs`` and ``next_obs`` may share memory, so treat them as read-only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TypeAlias

import numpy as np

from ..state.schema import Anything, Array, ListOf, MapOf, Record, Schema, as_array, refuse
from ..state.tree import Plain, Tree, describe
from .actions import ActionDoor
from .columns import Columns, columns_schema, tree_map, tree_paths
from .episodes import EPISODE, Episode

__all__ = ["Rollout", "Sampled", "join_lanes", "per_module", "rollout_columns", "rollout_schema"]

#: The module of a single-agent rollout; the learner knows it by the same name.
_ONLY_MODULE = "default_policy"


@dataclass(slots=True)
class Rollout:
    """A fragment of experience.

    Attributes:
        columns: ``obs actions rewards terminateds truncateds next_obs action_logp action_dist_inputs vf_preds valid``,
            each [T, N, ...]; the policy's outputs only if it gave them (random warm-up actions have none). ``next_obs``
            is the true next observation, also where an episode ended. ``valid`` is False on rows that are no
            experience: resets of NEXT_STEP environments, and episodes given up because the environment raised.
            Observations and rewards are normalised, if they are, or for a replay buffer as the environments gave them.
        bootstrap_values: float32[T, N], the value of ``next_obs`` where it may be bootstrapped from, 0 where the
            episode terminated; None if the policy gives no values.
        episodes: Episodes that finished within the fragment.
    """

    columns: dict[str, Columns]
    bootstrap_values: np.ndarray | None = None
    episodes: list[Episode] = field(default_factory=list)

    @property
    def num_steps(self) -> int:
        """T: steps of the vector environment."""
        return int(self.columns["valid"].shape[0])

    @property
    def num_envs(self) -> int:
        """N: lanes."""
        return int(self.columns["valid"].shape[1])

    @property
    def num_env_steps(self) -> int:
        """Rows that are experience: at most T * N."""
        return int(np.count_nonzero(self.columns["valid"]))

    @property
    def ends(self) -> np.ndarray:
        """bool[T, N]: nothing may be propagated backwards over this row: terminated, truncated or end of fragment."""
        ends: np.ndarray = self.columns["terminateds"] | self.columns["truncateds"]
        ends[-1] = True
        return ends

    def to_plain(self) -> dict[str, Plain]:
        """Plain data and arrays, for a state; shares memory with the rollout."""
        plain = {part.name: getattr(self, part.name) for part in fields(self)}
        return {**plain, "episodes": [episode.to_plain() for episode in self.episodes]}

    @classmethod
    def from_plain(cls, plain: Tree) -> Rollout:
        """Back from ``to_plain``'s data."""
        return cls(**{**plain, "episodes": [Episode.from_plain(episode) for episode in plain["episodes"]]})

    def rows(self, extra: Mapping[str, Columns] | None = None) -> dict[str, Columns]:
        """The valid rows as one batch.

        Args:
            extra: More columns [T, N, ...] (advantages, say) to flatten in the same way.

        Returns:
            Columns [B, ...] without ``valid``, in order of time, then lane; B is ``num_env_steps``.
        """
        columns = {**self.columns, **(extra or {})}
        valid = columns.pop("valid").ravel()
        if valid.all():
            return {name: tree_map(_flatten, column) for name, column in columns.items()}
        keep = np.flatnonzero(valid)
        return {name: tree_map(lambda leaf: _flatten(leaf)[keep], column) for name, column in columns.items()}


#: What a runner hands over: a fragment, or {module_id: its fragment} of a multi-agent runner.
Sampled: TypeAlias = Rollout | Mapping[str, Rollout]


def rollout_columns(obs: Columns, door: ActionDoor, rows: tuple[None, ...] = (None, None)) -> dict[str, Schema]:
    """What the columns of a fragment must be, of any length and any number of lanes.

    Args:
        obs: An observation as the policy sees it.
        door: Of the actions.
        rows: Axes before those of a row: [T, N, ...], or [B, ...].
    """
    flags, numbers = Array(rows, np.bool_, exactly=(np.bool_,)), Array(rows, np.float32, exactly=(np.float32,))
    # A policy answers in float32 and int64, random actions come in the space's own dtype.
    actions = (door.dtype, np.float32 if door.kind == "box" else np.int64)
    return {
        "obs": columns_schema(obs, rows, exactly=True),
        "next_obs": columns_schema(obs, rows, exactly=True),
        "actions": Array((*rows, *door.shape), door.dtype, exactly=actions),
        **dict.fromkeys(("rewards", "action_logp", "vf_preds"), numbers),
        **dict.fromkeys(("terminateds", "truncateds", "valid", "resets"), flags),
        "action_dist_inputs": Array((*rows, None), np.float32, exactly=(np.float32,)),
        "action_mask": Array((*rows, None), np.bool_, exactly=(np.bool_,)),
    }


_ALWAYS = ("obs", "next_obs", "actions", "rewards", "terminateds", "truncateds", "valid")


def rollout_schema(columns: Mapping[str, Schema], length: int | None = None) -> Record:
    """What ``Rollout.from_plain`` takes.

    Args:
        columns: What ``rollout_columns`` returned.
        length: T; ``None``: any.
    """

    def rule(plain: Tree, path: str) -> None:
        optional = [name for name in plain["columns"] if name not in _ALWAYS]
        place = f"{path}/columns"
        Record(columns, [name for name in columns if name not in _ALWAYS], is_open=True).check(plain["columns"], place)
        steps, lanes = np.shape(plain["columns"]["valid"])
        if length not in (None, steps) or not steps or not lanes:
            refuse(f"{place}/valid", f"{length or 'some'} steps of some lanes", f"{steps} of {lanes}")
        for name in (*_ALWAYS, *optional):
            if not isinstance(name, str):
                refuse(place, "names", repr(name))
            for at, leaf in tree_paths(plain["columns"][name], f"{place}/{name}"):
                found = as_array(leaf, at)
                if found.shape[:2] != (steps, lanes):
                    refuse(at, f"{steps} steps of {lanes} lanes", f"shape {found.shape}")
        values = plain["bootstrap_values"]
        if (values is None) != ("vf_preds" not in plain["columns"]):
            refuse(f"{path}/bootstrap_values", "values where the policy gives them, and only there", describe(values))
        if values is not None:
            Array((steps, lanes), np.float32).check(values, f"{path}/bootstrap_values")

    fields = {"columns": MapOf(Anything()), "bootstrap_values": Anything(), "episodes": ListOf(EPISODE)}
    return Record(fields, rule=rule, what="a fragment")


def per_module(rollout: Sampled) -> dict[str, Rollout]:
    """What a runner handed over, by module: everything that consumes rollouts asks this and nothing else.

    Args:
        rollout: A single-agent fragment, or {module_id: its fragment} of a multi-agent runner.

    Returns:
        {module_id: Rollout}; a single-agent one is "default_policy"'s.
    """
    return {_ONLY_MODULE: rollout} if isinstance(rollout, Rollout) else dict(rollout)


def join_lanes(rollouts: Sequence[Rollout]) -> Rollout:
    """Fragments of several runners side by side: as one runner with all their environments would have sampled them.

    Args:
        rollouts: of the same length T, with the same columns.

    Returns:
        [T, sum of N, ...]; the very rollout if there is but one.
    """
    if len(rollouts) == 1:
        return rollouts[0]
    columns = [rollout.columns for rollout in rollouts]
    values = [rollout.bootstrap_values for rollout in rollouts if rollout.bootstrap_values is not None]
    return Rollout(
        {name: tree_map(_side_by_side, *[part[name] for part in columns]) for name in columns[0]},
        bootstrap_values=_side_by_side(*values) if len(values) == len(rollouts) else None,
        episodes=[episode for rollout in rollouts for episode in rollout.episodes],
    )


def _side_by_side(*leaves: np.ndarray) -> np.ndarray:
    return np.concatenate(leaves, axis=1)


def _flatten(leaf: np.ndarray) -> np.ndarray:
    return leaf.reshape((leaf.shape[0] * leaf.shape[1], *leaf.shape[2:]))
