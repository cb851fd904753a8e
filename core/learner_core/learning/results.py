"""From the device's metric sums to the results of an update."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

__all__ = ["COUNTERS", "reduce_metrics"]

#: Metrics that are counts over the update, not means over its rows.
COUNTERS = frozenset({"num_minibatch_steps", "num_nonfinite_steps"})


def reduce_metrics(
    sums: np.ndarray, names: Iterable[tuple[str, str]], module_ids: Iterable[str]
) -> dict[str, dict[str, float]]:
    """{module_id: {metric: mean over rows}}.

    Args:
        sums: float[2, metrics]: weighted sums and weights.
        names: (module or "__all__", metric) in the order of ``sums``.
        module_ids: every module, so that one without rows still has its (empty) entry.
    """
    results: dict[str, dict[str, float]] = {mid: {} for mid in module_ids}
    results["__all__"] = {}
    for (module_id, name), total, weight in zip(names, sums[0].tolist(), sums[1].tolist(), strict=True):
        if name in COUNTERS:
            results[module_id][name] = total
        elif weight > 0:
            results[module_id][name] = total / weight
    return results
