"""Which data shards a batch consists of, as its caller says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import BatchError, did_you_mean
from .plan import even_shards
from .ranks import Columns

__all__ = ["ShardRows", "shards_of"]

#: Rows of each data shard, of the only module or by module id.
ShardRows = Mapping[str, Sequence[int]] | Sequence[int]


def shards_of(columns: Columns, num_shards: int, given: ShardRows | None) -> dict[str, list[int]]:
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


def _checked(given: object, module_id: str, count: int, num_shards: int) -> list[int]:
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
