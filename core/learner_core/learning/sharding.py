"""Which data shards a batch consists of, on one learner that has it all or on several that have a part each.

Learners with rows of their own meet once before every update: each tells how many rows of every module its shards
have, or that it refuses its batch. So all know the plan, and either all update or none does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BatchError, ConfigError, did_you_mean
from .meeting import number_of
from .plan import even_shards
from .ring import Ring

if TYPE_CHECKING:
    from .learner import Learner

__all__ = ["meet", "num_shards_of", "shards_of"]

Columns = dict[str, dict[str, np.ndarray]]


def num_shards_of(config: Any, ring: Ring) -> int:
    """Data shards of all learners together: the setting, and one each where every learner has rows of its own.

    Raises:
        ConfigError: they cannot be dealt out evenly.
    """
    shards: int = config.data_shards
    if ring.meeting is None:
        return shards
    if shards == 1:
        return ring.size
    if shards % ring.size:
        raise ConfigError(
            f"data_shards={shards}: {ring.size} learners that each hold rows of their own hold equally many shards: "
            f"use a multiple of {ring.size}, or fewer learners"
        )
    return shards


def shards_of(columns: Columns, num_shards: int, given: Any) -> dict[str, list[int]]:
    """module id -> rows of each of ``num_shards`` shards, which stand one after the other in the columns.

    Args:
        columns: checked columns.
        num_shards: how many there are here.
        given: ``shard_rows`` as the caller gave it: a list for the only module, {module id: list}, or ``None`` for
            shards as even as can be.

    Raises:
        BatchError: a list has the wrong length, or does not add up to the module's rows.
    """
    rows = {mid: len(next(iter(arrays.values()))) for mid, arrays in columns.items()}
    if given is None:
        return {mid: even_shards(count, num_shards) for mid, count in rows.items()}
    if not isinstance(given, Mapping):
        if len(rows) > 1:
            raise BatchError(f"shard_rows: there are rows of {', '.join(rows)}: give {{module_id: rows of each shard}}")
        given = dict.fromkeys(rows, given)
    for mid in given:
        if mid not in rows and any(given[mid]):
            raise BatchError(f"shard_rows: the batch has no rows of module {mid!r}.{did_you_mean(mid, list(rows))}")
    return {mid: _checked(given.get(mid), mid, count, num_shards) for mid, count in rows.items()}


def _checked(given: Any, module_id: str, count: int, num_shards: int) -> list[int]:
    values = list(given) if isinstance(given, (Sequence, np.ndarray)) and not isinstance(given, str) else None
    whole = values is not None and all(
        isinstance(v, (int, np.integer)) and not isinstance(v, bool) and v >= 0 for v in values
    )
    if values is None or not whole or len(values) != num_shards or sum(values) != count:
        raise BatchError(
            f"shard_rows={given!r}: expected {num_shards} whole number{'s' if num_shards > 1 else ''}, the rows of "
            f"every data shard here, which add up to {count}",
            module_id=module_id,
        )
    return [int(v) for v in values]


def meet(
    learner: Learner,
    prepare: Callable[[], tuple[Columns, dict[str, list[int]]]],
    updated: dict[str, bool],
    said: Mapping[str, object],
) -> tuple[Columns, dict[str, list[int]]]:
    """Find out what all learners have to train on.

    Args:
        learner: this one; it has rows of its own.
        prepare: ``prepare() -> (columns, shards)`` of the rows here; what it raises ends the update on all ranks.
        updated: module id -> whether it learns from the rows here, filled in by ``prepare``; afterwards, of modules
            that share rows, whether it learns from those of any rank.
        said: what every rank must have said alike, by name.

    Returns:
        (columns, shards): columns of every module that has rows anywhere, none where this learner has none; and rows of
        every data shard of all learners.

    Raises:
        LearnerGroupError: another rank refused, or the ranks were not told the same.
    """
    meeting = learner._ring.meeting
    assert meeting is not None
    modules = sorted(learner._build.step.feeds)
    each = learner._num_shards // learner._ring.size
    said = {
        "the set of modules": sorted(learner._build.plans),
        "the number of updates so far": learner._num_updates,
        **said,
    }
    sharing = [mid for kind, mid in learner._build.step.table.ints if kind == "updated"]
    columns: Columns = {}
    words: list[float] = []
    error: Exception | None = None
    try:
        columns, own = prepare()
        words = [number_of(value) for value in said.values()]
        words += [float(updated.get(mid, False)) for mid in sharing]
        for mid in modules:
            words += [float("loss_mask" in columns.get(mid, {})), *own.get(mid, [0] * each)]
    except Exception as problem:
        error = problem
    answers = meeting.gather("update_from_batch", np.array(words), error=error)
    meeting.compare("update_from_batch", said, answers)
    heads, tails = np.split(np.stack(answers)[:, len(said) :], [len(sharing)], axis=1)
    updated.update({mid: bool(said_so) for mid, said_so in zip(sharing, np.any(heads, axis=0), strict=True)})
    table = tails.reshape(learner._ring.size, len(modules), 1 + each)
    shards: dict[str, list[int]] = {}
    full: Columns = {}
    for position, mid in enumerate(modules):
        rows = table[:, position, 1:].astype(np.int64).reshape(-1).tolist()
        if not sum(rows):
            continue
        shards[mid] = rows
        specs = dict(learner._build.columns[mid])
        mask = learner._build.mask_spec(mid)
        here = columns.get(mid) or {
            name: np.zeros((0, *spec.shape), learner._build.executor.dtype_of(spec)) for name, spec in specs.items()
        }
        if table[:, position, 0].any() and "loss_mask" not in here:
            count = len(next(iter(here.values())))
            here = {**here, "loss_mask": np.ones((count, *mask.shape), learner.backend.numpy_float_dtype)}
        full[mid] = here
    return full, shards
