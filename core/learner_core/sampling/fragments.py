"""Fragments that wait to become a batch of sequences, each with the version of the weights that acted.

Needs rollouts of one length with the policy's log-probabilities. A fragment of T steps of N lanes is N sequences; a
batch takes the oldest ones, whoever sampled them, and what it leaves waits for the next.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from ..state.schema import Array, Nullable, Record, Schema, refuse
from ..state.tree import Plain, Tree, describe, join
from .columns import Columns, tree_map, tree_paths
from .rollout import Rollout
from .sequences import rollout_to_sequences

__all__ = ["WaitingSequences", "fragment_to_sequences", "join_sequences"]


def fragment_to_sequences(rollout: Rollout, wanted: Collection[str] | None = None) -> dict[str, Columns]:
    """A fragment as N sequences of its own length, with what a loss needs to bootstrap.

    Args:
        rollout: columns [T, N, ...].
        wanted: names of the columns to keep; ``None``: all.

    Returns:
        Columns [N, T, ...] as ``rollout_to_sequences`` makes them, ``bootstrap_obs`` [N, ...], the true observation
        after the last step, and ``bootstrap_values`` float32[N, T], what the acting policy thought of the observation
        that an episode was cut at. ``truncateds`` is also True where the next row does not go on with the episode for
        another reason: an agent that left, an environment that failed.
    """
    columns = dict(rollout.columns)
    columns["bootstrap_obs"] = tree_map(lambda leaf: leaf[-1], columns.pop("next_obs"))
    valid = columns["valid"]
    if not valid.all():
        lost = np.zeros_like(valid)
        lost[:-1] = valid[:-1] & ~valid[1:]
        columns["truncateds"] = columns["truncateds"] | (lost & ~columns["terminateds"])
    values = rollout.bootstrap_values
    columns["bootstrap_values"] = np.zeros(valid.shape, np.float32) if values is None else values
    if wanted is not None:
        columns = {name: column for name, column in columns.items() if name in wanted or name == "valid"}
    last = columns.pop("bootstrap_obs", None)
    batch = rollout_to_sequences(Rollout(columns), rollout.num_steps)
    if last is not None:
        batch["bootstrap_obs"] = tree_map(np.array, last)
    return batch


class WaitingSequences:
    """Sequences of one module, in the order they came."""

    def __init__(self) -> None:
        self._parts: list[tuple[dict[str, Columns], np.ndarray]] = []
        self._count = 0

    def __len__(self) -> int:
        """How many sequences wait."""
        return self._count

    def add(self, batch: dict[str, Columns], version: int) -> None:
        """Append sequences [B, ...] sampled with weights of this version."""
        count = len(batch["loss_mask"])
        self._parts.append((batch, np.full(count, version, np.int64)))
        self._count += count

    def take(self, count: int) -> tuple[dict[str, Columns], np.ndarray]:
        """The oldest ``count`` sequences and their versions int64[count]; there must be as many."""
        taken: list[tuple[dict[str, Columns], np.ndarray]] = []
        missing = count
        while missing:
            part, versions = self._parts.pop(0)
            if len(versions) > missing:
                rest = slice(missing, None)
                self._parts.insert(0, (_cut(part, rest), versions[rest]))
                part, versions = _cut(part, slice(missing)), versions[:missing]
            taken.append((part, versions))
            missing -= len(versions)
        self._count -= count
        return join_sequences([part for part, _ in taken]), np.concatenate([versions for _, versions in taken])

    def get_state(self) -> dict[str, Plain]:
        """Plain data; nothing waits any less for it."""
        if not self._count:
            return {"batch": None, "versions": np.zeros(0, np.int64)}
        batch, versions = self.take(self._count)
        self._parts, self._count = [(batch, versions)], len(versions)
        return {"batch": batch, "versions": versions}

    @staticmethod
    def state_schema(batch: Schema) -> Record:
        """What ``set_state`` takes.

        Args:
            batch: What sequences of the module must be, ``loss_mask`` [B, T] among them.
        """

        def rule(state: Tree, path: str) -> None:
            count, place = len(state["versions"]), join(path, "batch")
            if (state["batch"] is None) != (not count):
                refuse(place, f"{count} sequences, None for 0", describe(state["batch"]))
            for at, leaf in tree_paths(state["batch"] or {}, place):
                if np.shape(leaf)[:1] != (count,):
                    refuse(at, f"{count} sequences", f"shape {np.shape(leaf)}")

        fields = {"batch": Nullable(batch), "versions": Array((None,), np.int64, least=0)}
        return Record(fields, rule=rule, what="waiting sequences")

    def set_state(self, state: Tree) -> None:
        """Go on from what ``get_state`` returned."""
        versions = np.asarray(state["versions"], np.int64)
        self._parts = [(tree_map(np.asarray, state["batch"]), versions)] if len(versions) else []
        self._count = len(versions)


def _cut(batch: dict[str, Columns], rows: slice) -> dict[str, Columns]:
    return {name: tree_map(lambda leaf: leaf[rows], column) for name, column in batch.items()}


def join_sequences(parts: list[dict[str, Columns]]) -> dict[str, Columns]:
    """The sequences [B, ...] of several batches with the same columns, one batch after the other."""
    if len(parts) == 1:
        return parts[0]
    first, *rest = parts
    return {
        name: tree_map(lambda *leaves: np.concatenate(leaves), column, *(part[name] for part in rest))
        for name, column in first.items()
    }
