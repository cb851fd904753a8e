"""What of a state that does not fit whole can still be taken over: ``set_state(state, strict=False)``.

The learner's own state is the frame. Every entry of the other state that has the same path and shape replaces its
counterpart; everything else keeps the learner's value and is reported with its path and the reason. An optimizer's
moments and step count belong together, so an optimizer is taken over whole or not at all. The result is a state that
fits, which is then set strictly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..errors import StateError, did_you_mean
from ..state.schema import Record, reason_of
from ..state.tree import join

__all__ = ["Skipped", "fit_state"]


class Skipped(NamedTuple):
    """An entry that was left as it is, or one that has no place here.

    Attributes:
        path: of the entry in the state, such as ``rl_module/default_policy/pi.2.weight``.
        reason: why, in words.
    """

    path: str
    reason: str


def fit_state(
    current: Mapping[str, Any], given: Mapping[str, Any], schema: Record
) -> tuple[dict[str, Any], list[Skipped]]:
    """Lay what fits of one state over another.

    Args:
        current: a complete state of the learner.
        given: any part of a state of the same schema.
        schema: what a complete state must be.

    Returns:
        (a complete state, what was left out). Arrays are those of the two states, not copies.
    """
    skipped: list[Skipped] = []
    return _fit(current, given, schema, "", skipped), skipped


def _fit(own: Mapping[str, Any], came: Any, schema: Record, path: str, skipped: list[Skipped]) -> dict[str, Any]:
    """Every entry of a dict that fits; what does not keeps the own value."""
    result = dict(own)
    if not isinstance(came, Mapping):
        skipped.append(Skipped(path, f"expected a dict, got {type(came).__name__}"))
        return result
    for key, expected in schema.fields.items():
        place = join(path, key)
        is_optimizer = path.startswith("optimizer/")
        if key not in came:
            skipped.append(Skipped(place, "missing: it keeps its value"))
        elif isinstance(expected, Record) and not is_optimizer:
            result[key] = _fit(own[key], came[key], expected, place, skipped)
        else:
            try:
                expected.check(came[key], place)
            except StateError as error:
                # The innermost place: of an optimizer, which is taken over whole, what does not fit about it.
                keeps = ": the optimizer keeps its moments and step" if is_optimizer else ""
                skipped.append(Skipped(error.path or place, reason_of(error) + keeps))
            else:
                result[key] = {**own[key], **came[key]} if place == "timesteps" else came[key]
    for key in came:
        if key not in schema.fields:
            place = join(path, str(key))
            skipped.append(Skipped(place, f"unknown entry.{did_you_mean(str(key), schema.fields)}"))
    return result
