"""Batches that are used a few times each, mixed with those that came before and after them.

Needs batches of plain arrays, which it keeps without a copy. Refuses nothing. What is drawn is a function of the seed
and of how much was drawn before, so a restored run draws the same. docs/decisions/asynchronous-algorithms.md says why.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from ..maths import noise
from ..state.schema import COUNT, Array, Int, Items, ListOf, Record, Schema
from ..state.tree import Plain, Tree
from .columns import Columns, tree_map

__all__ = ["CircularReplay", "StoredBatch"]


#: Uses that a batch of a run with another setting may have left.
_MOST_USES = 100


@dataclass
class StoredBatch:
    """A batch, what is known of it, and how many more times it may be used."""

    batch: dict[str, Columns]
    info: dict[str, Plain]
    uses_left: int


class CircularReplay:
    """The newest ``num_batches`` batches, each for ``num_uses`` updates, drawn at random among those with uses left.

    Drawing begins once ``num_batches`` batches have come, so that uses of one batch do not follow each other; with one
    batch they do.

    Args:
        num_batches: batches that are kept.
        num_uses: updates that each is used for.
        seed: of the draws.

    References:
        Luo et al., IMPACT, https://arxiv.org/abs/1912.00167
    """

    def __init__(self, num_batches: int, num_uses: int, seed: int) -> None:
        self._num_batches = num_batches
        self._num_uses = num_uses
        self._seed = seed
        self._stored: list[StoredBatch] = []
        self._num_added = 0
        self._num_drawn = 0

    def __len__(self) -> int:
        """Batches with uses left."""
        return len(self._stored)

    def set_size(self, num_batches: int, num_uses: int) -> None:
        """Other numbers from now on; what is stored keeps its uses, and what is too much makes room one by one."""
        self._num_batches, self._num_uses = num_batches, num_uses

    def keep(self, modules: Collection[str]) -> None:
        """Let go of what was stored of modules that are gone or do not learn any more."""
        for stored in self._stored:
            stored.batch = {mid: columns for mid, columns in stored.batch.items() if mid in modules}
        self._stored = [stored for stored in self._stored if stored.batch]

    def add(self, batch: dict[str, Columns], info: dict[str, Plain]) -> StoredBatch | None:
        """Take in a batch.

        Args:
            batch: {module_id: columns}.
            info: kept beside it; plain data.

        Returns:
            The oldest batch, if it had to make room with uses left.
        """
        evicted = self._stored.pop(0) if len(self._stored) >= self._num_batches else None
        self._stored.append(StoredBatch(batch, info, self._num_uses))
        self._num_added += 1
        return evicted

    def draw(self) -> StoredBatch | None:
        """A batch for one update; None while there is none to be had."""
        if not self._stored or self._num_added < self._num_batches:
            return None
        number, self._num_drawn = self._num_drawn, self._num_drawn + 1
        place = int(noise.permutation(self._seed, number, "circular_replay", len(self._stored))[0])
        drawn = self._stored[place]
        drawn.uses_left -= 1
        if not drawn.uses_left:
            del self._stored[place]
        return drawn

    def get_state(self) -> dict[str, Plain]:
        """Everything needed to go on; the batches are not copied."""
        return {
            "batches": [[stored.batch, stored.info, stored.uses_left] for stored in self._stored],
            "num_added": self._num_added,
            "num_drawn": self._num_drawn,
        }

    def state_schema(self, batch: Schema) -> Record:
        """What ``set_state`` takes.

        Args:
            batch: What a batch must be.
        """
        info = Record({"versions": Array((None,), np.int64, least=0, exactly=(np.int64,)), "num_timesteps": COUNT})
        fields = {
            "batches": ListOf(Items([batch, info, Int(1, max(self._num_uses, _MOST_USES))])),
            "num_added": COUNT,
            "num_drawn": COUNT,
        }
        return Record(fields, what="the state of a circular buffer")

    def set_state(self, state: Tree) -> None:
        """Go on from what ``get_state`` returned; of more batches than fit here, the newest are kept."""
        batches = state["batches"][-self._num_batches :]
        self._stored = [
            StoredBatch(tree_map(np.asarray, batch), dict(info), int(uses)) for batch, info, uses in batches
        ]
        self._num_added = int(state["num_added"])
        self._num_drawn = int(state["num_drawn"])
