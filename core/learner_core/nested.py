"""Nested dicts, tuples and lists of arrays; what the arrays are does not matter here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["map_tree"]


def map_tree(f: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Apply a function to the leaves of equally built dicts, tuples and lists.

    Args:
        f: Called with one leaf of each tree.
        tree: The tree whose structure counts; ``None`` is an empty tree, all else is a leaf.
        rest: Trees of the same structure.

    Returns:
        The results in ``tree``'s structure.
    """
    if tree is None:
        return None
    if isinstance(tree, Mapping):
        return {key: map_tree(f, tree[key], *(other[key] for other in rest)) for key in tree}
    if isinstance(tree, (tuple, list)):
        mapped = [map_tree(f, *branches) for branches in zip(tree, *rest, strict=True)]
        if hasattr(tree, "_fields"):  # a namedtuple
            return type(tree)(*mapped)
        return type(tree)(mapped)
    return f(tree, *rest)
