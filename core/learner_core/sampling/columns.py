"""Nested columns: an array, or a dict of columns, all with the same leading axes.

Needs numpy arrays at the leaves. Refuses nothing itself: who owns the data checks it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np

from ..state.schema import Array, Record, Schema

__all__ = ["Columns", "columns_schema", "tree_leaves", "tree_map", "tree_paths"]

# An ndarray, or a (nested) dict of ndarrays: what stands under one batch column.
Columns: TypeAlias = Any


def tree_map(function: Callable[..., Any], tree: Columns, *rest: Columns) -> Columns:
    """Apply ``function`` to every leaf (and the matching leaves of ``rest``), keeping the structure.

    Args:
        function: Called with one leaf of each tree.
        tree: Its structure is the one followed.
        rest: Trees with at least that structure.

    Returns:
        A tree of what ``function`` returned.
    """
    if isinstance(tree, Mapping):
        return {key: tree_map(function, value, *(other[key] for other in rest)) for key, value in tree.items()}
    return function(tree, *rest)


def tree_paths(tree: Columns, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Yield ``("obs/position", leaf)`` for every leaf, in the tree's own order."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from tree_paths(value, f"{prefix}/{key}" if prefix else str(key))
    else:
        yield prefix, tree


def columns_schema(example: Columns, leading: tuple[int | None, ...] = (), *, exactly: bool = False) -> Schema:
    """What columns of a state must be to have the structure, shapes and dtypes of others.

    Args:
        example: Columns; their shapes are what follows ``leading``.
        leading: Axes before those, ``None`` where any length will do.
        exactly: They are taken over in the dtypes that they have.
    """
    if isinstance(example, Mapping):
        return Record({str(key): columns_schema(value, leading, exactly=exactly) for key, value in example.items()})
    array = np.asarray(example)
    return Array((*leading, *array.shape), array.dtype, exactly=(array.dtype,) if exactly else ())


def tree_leaves(tree: Columns) -> list[np.ndarray]:
    """All leaves, in the order of ``tree_paths``."""
    if isinstance(tree, Mapping):
        return [leaf for value in tree.values() for leaf in tree_leaves(value)]
    return [tree]
