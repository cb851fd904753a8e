"""Reduces the results of several updates to one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

__all__ = ["Results", "merge_results"]

Results: TypeAlias = dict[str, Any]
"""{module_id: {metric: value}, "__all__": {...}}; with "_state" and "_weights" where those were asked for."""

_SUMMED = frozenset({"num_minibatch_steps", "num_nonfinite_steps", "num_modules_updated", "num_learners_restarted"})
_LATEST = frozenset({"compiled", "num_updates"})


def merge_results(results: Sequence[dict[str, dict[str, float]]]) -> Results:
    """{module: {metric: value}}: counts added, metrics averaged over the updates weighted by their minibatch steps."""
    if not results:
        return {}
    merged: Results = {}
    for module_id in dict.fromkeys(key for result in results for key in result):
        parts = [result[module_id] for result in results if module_id in result]
        entry: dict[str, float] = {}
        for name in dict.fromkeys(name for part in parts for name in part):
            values = [(part[name], part.get("num_minibatch_steps", 1.0)) for part in parts if name in part]
            if name in _SUMMED:
                entry[name] = sum(value for value, _ in values)
            elif name in _LATEST:
                entry[name] = values[-1][0]
            else:
                weight = sum(w for _, w in values)
                entry[name] = sum(v * w for v, w in values) / weight if weight else values[-1][0]
        merged[module_id] = entry
    return merged
