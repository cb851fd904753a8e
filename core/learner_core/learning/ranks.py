"""A learner's place among several: which rows of a minibatch are its own, and the sum over all of them.

Learners that compute one update together either all have the whole batch (``WholeBatch``), and each takes a slice of
every minibatch; or each has rows of its own (``OwnRows``), which are its data shards, and they tell each other before
every update how many these are, or that one refuses its batch. So all know the plan, and either all update or none
does. An update is written against what the two have in common; a learner that is alone is one of one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ..config.algorithm_settings import AlgorithmSettings
from ..errors import ConfigError
from ..xp import Array
from .blueprint import Blueprint
from .plan import MinibatchPlan
from .rank_exchange import RankExchange, number_of

__all__ = ["ALONE", "Columns", "OwnRows", "Ranks", "RowsHere", "WholeBatch"]

#: module id -> column -> array.
Columns = dict[str, dict[str, np.ndarray]]


class Reduce(Protocol):
    """The sum over all learners of a vector of the backend, called by all of them; ``Collective.allreduce_flat_``."""

    def __call__(self, flat: Array, *, name: str = "") -> Array: ...


def _alone(flat: Array, *, name: str = "") -> Array:
    return flat


@dataclass
class RowsHere:
    """What one learner has to train on.

    Attributes:
        columns: of the modules whose rows are read.
        shards: module id -> rows of each data shard.
        updated: module id -> whether it learns from these rows, of the modules that have some.
    """

    columns: Columns
    shards: dict[str, list[int]]
    updated: dict[str, bool]


@dataclass(frozen=True)
class Ranks:
    """Learners that compute one update together.

    Attributes:
        rank: this learner.
        size: number of learners.
        reduce: the sum over all learners of a vector of the backend.
    """

    rank: int = 0
    size: int = 1
    reduce: Reduce = _alone

    def total(self, flat: Array) -> Array:
        """The sum over all learners of a short vector, besides the gradients'."""
        # Under a name of its own for every length: collectives remember what they know of a name.
        return self.reduce(flat, name=f"rows_{flat.shape[0]}")

    # ------------------------------------------------------------------ how the two differ

    def sum(self, array: np.ndarray) -> np.ndarray:
        """The sum over all learners of what each has counted in the rows that it holds."""
        raise NotImplementedError

    def agree(
        self,
        blueprint: Blueprint,
        num_shards: int,
        prepare: Callable[[], RowsHere],
        said: Mapping[str, object],
    ) -> RowsHere:
        """What all learners have to train on.

        Args:
            blueprint: of this learner.
            num_shards: data shards of all learners together.
            prepare: finds out what there is here; what it raises ends the update on all ranks.
            said: what every rank must have said alike, by name.

        Returns:
            Columns of every module that has rows anywhere, none where this learner has none; rows of every data shard
            of all learners; and of modules that share rows, whether they learn from those of any rank.

        Raises:
            LearnerGroupError: another rank refused, or the ranks were not told the same.
        """
        raise NotImplementedError

    def num_shards(self, config: AlgorithmSettings) -> int:
        """Data shards of all learners together.

        Raises:
            ConfigError: they cannot be dealt out evenly.
        """
        return config.data_shards

    def shards_here(self, num_shards: int) -> int:
        """Data shards that this learner holds."""
        return num_shards

    def own_shards(self, num_shards: int) -> tuple[int, int] | None:
        """(first, one after the last) shard that this learner holds; ``None``: it has the whole batch."""
        return None

    def held_plan(self, own: MinibatchPlan, whole: MinibatchPlan) -> MinibatchPlan:
        """The plan that points into the rows that this learner holds: of its share, or of all."""
        return whole

    def held_rows(self, batch: int) -> int:
        """Rows of a usual batch that this learner holds."""
        return batch

    def most_rows(self, shards: Sequence[int]) -> int:
        """Most rows of a batch that any learner holds; ``shards``: rows of every data shard."""
        return sum(shards)

    def room(self, minibatch: int) -> int:
        """Rows that a compiled step of one learner is made for."""
        return self.width(minibatch)

    @property
    def have_own_rows(self) -> bool:
        """Whether each learner has rows of its own: some may have none, and their shares of a minibatch differ."""
        return False

    # ------------------------------------------------------------------ slices of a minibatch

    def width(self, minibatch: int) -> int:
        """Rows that one learner takes of a minibatch when the learners' shares are even, rounded up."""
        return -(-minibatch // self.size)

    def bounds(self, plan: MinibatchPlan) -> tuple[np.ndarray, np.ndarray]:
        """This learner's slice of every line: (first, one after the last), int64[steps] each."""
        edges = self._edges(plan)
        return edges[:, self.rank], edges[:, self.rank + 1]

    def extent(self, plan: MinibatchPlan) -> tuple[np.ndarray, np.ndarray]:
        """(fewest, most) rows that any learner takes of every line; the same on all of them."""
        counts = np.diff(self._edges(plan), axis=1)
        return counts.min(axis=1), counts.max(axis=1)

    def share(self, plan: MinibatchPlan) -> MinibatchPlan:
        """This learner's slice of every line of a plan, which may be empty."""
        if self.size == 1:
            return plan
        first, last = self.bounds(plan)
        rows = last - first
        width = max(self.width(plan.indices.shape[1]), int(rows.max(initial=0)))
        columns = np.minimum(first[:, None] + np.arange(width), plan.indices.shape[1] - 1)
        indices = np.take_along_axis(plan.indices, columns, axis=1) if plan.num_steps else plan.indices[:, :width]
        # Padding points to row 0, as in every plan.
        return MinibatchPlan(np.where(np.arange(width) < rows[:, None], indices, 0), rows)

    def _edges(self, plan: MinibatchPlan) -> np.ndarray:
        """int64[steps, size + 1]: where the learners' slices of every line begin and end."""
        edges: np.ndarray = np.arange(self.size + 1) * plan.rows[:, None] // self.size
        return edges


@dataclass(frozen=True)
class WholeBatch(Ranks):
    """All learners have the whole batch; a slice of a minibatch is the ``rank``-th of ``size`` equal ones."""

    def sum(self, array: np.ndarray) -> np.ndarray:
        """What is here is all."""
        return array

    def agree(
        self,
        blueprint: Blueprint,
        num_shards: int,
        prepare: Callable[[], RowsHere],
        said: Mapping[str, object],
    ) -> RowsHere:
        """What is here is all."""
        return prepare()


@dataclass(frozen=True)
class OwnRows(Ranks):
    """Each learner has rows of its own; a slice of a minibatch is what the plan takes from its data shards.

    Attributes:
        exchange: where learners tell each other what must be known of all rows.
    """

    exchange: RankExchange = field(kw_only=True)

    def sum(self, array: np.ndarray) -> np.ndarray:
        """Over all learners."""
        return self.exchange.sum(array)

    def num_shards(self, config: AlgorithmSettings) -> int:
        """The setting; where it is 1, one for each learner."""
        shards = config.data_shards
        if shards == 1:
            return self.size
        if shards % self.size:
            raise ConfigError(
                f"data_shards={shards}: {self.size} learners that each hold rows of their own hold equally many "
                f"shards: use a multiple of {self.size}, or fewer learners"
            )
        return shards

    def shards_here(self, num_shards: int) -> int:
        """As many on each learner."""
        return num_shards // self.size

    def own_shards(self, num_shards: int) -> tuple[int, int]:
        """(first, one after the last) shard that this learner holds."""
        each = self.shards_here(num_shards)
        return self.rank * each, (self.rank + 1) * each

    def held_plan(self, own: MinibatchPlan, whole: MinibatchPlan) -> MinibatchPlan:
        """That of its share."""
        return own

    def held_rows(self, batch: int) -> int:
        """A part of it."""
        return self.room(batch)

    def most_rows(self, shards: Sequence[int]) -> int:
        """Of the learner whose shards have most."""
        return int(np.reshape(shards, (self.size, -1)).sum(axis=1).max())

    def room(self, minibatch: int) -> int:
        """An even share, and an eighth more: learners hardly ever have equally many rows."""
        even = self.width(minibatch)
        return min(even + -(-even // 8), minibatch)

    @property
    def have_own_rows(self) -> bool:
        """They have."""
        return True

    def agree(
        self,
        blueprint: Blueprint,
        num_shards: int,
        prepare: Callable[[], RowsHere],
        said: Mapping[str, object],
    ) -> RowsHere:
        """Learners tell each other how many rows of every module their shards have, or that they refuse the batch."""
        modules, each = sorted(blueprint.feeds), self.shards_here(num_shards)
        said = {"the set of modules": sorted(blueprint.plans), **said}
        sharing = [mid for kind, mid in blueprint.table.ints if kind == "updated"]
        here = RowsHere({}, {}, {})
        words: list[float] = []
        error: Exception | None = None
        try:
            here = prepare()
            words = [number_of(value) for value in said.values()]
            words += [float(here.updated.get(mid, False)) for mid in sharing]
            for mid in modules:
                words += [float("loss_mask" in here.columns.get(mid, {})), *here.shards.get(mid, [0] * each)]
        except Exception as problem:
            error = problem
        answers = self.exchange.gather("update_from_batch", np.array(words), error=error)
        self.exchange.compare("update_from_batch", said, answers)
        heads, tails = np.split(np.stack(answers)[:, len(said) :], [len(sharing)], axis=1)
        anywhere = {mid: bool(said_so) for mid, said_so in zip(sharing, np.any(heads, axis=0), strict=True)}
        table = tails.reshape(self.size, len(modules), 1 + each)
        shards: dict[str, list[int]] = {}
        columns: Columns = {}
        for position, mid in enumerate(modules):
            rows = table[:, position, 1:].astype(np.int64).reshape(-1).tolist()
            if not sum(rows):
                continue
            shards[mid] = rows
            specs = blueprint.columns(mid)
            own = here.columns.get(mid) or {
                name: np.zeros((0, *spec.shape), blueprint.dtype_of(spec)) for name, spec in specs.items()
            }
            if table[:, position, 0].any() and "loss_mask" not in own:
                shape = (len(next(iter(own.values()))), *blueprint.plans[mid].row_shape)
                own = {**own, "loss_mask": np.ones(shape, blueprint.float_dtype)}
            columns[mid] = own
        return RowsHere(columns, shards, {**here.updated, **anywhere})

    def _edges(self, plan: MinibatchPlan) -> np.ndarray:
        if plan.shares is None:
            return super()._edges(plan)
        ends = np.pad(np.cumsum(plan.shares, axis=1), ((0, 0), (1, 0)))
        return ends[:, :: plan.shares.shape[1] // self.size]


#: The place of a learner that has no others beside it.
ALONE = WholeBatch()
