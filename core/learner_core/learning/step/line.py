"""One step of an update's loop: where it stands, what it goes on from, and its line of every table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...xp import Array, Namespace
from ..arrays import Carry, StepInputs

__all__ = ["StepLine", "table_line"]


@dataclass(frozen=True, slots=True)
class StepLine:
    """What a step has.

    Attributes:
        s: line of the tables, int or 0-d int64.
        carry: what it goes on from.
        inputs: what all steps read.
        floats: its line of ``inputs.floats``.
        ints: its line of ``inputs.ints``.
        masked: rows beyond the step's own count are padding; ``False`` when every row given is real.
        sizes: module id -> true number of rows, to run a step without padding; the uncompiled loop alone gives them.
    """

    s: int | Array
    carry: Carry
    inputs: StepInputs
    floats: Array
    ints: Array
    masked: bool = True
    sizes: Mapping[str, int] | None = None

    @classmethod
    def of(
        cls,
        xp: Namespace,
        s: int | Array,
        carry: Carry,
        inputs: StepInputs,
        *,
        masked: bool = True,
        sizes: Mapping[str, int] | None = None,
    ) -> StepLine:
        """Step ``s``."""
        floats, ints = table_line(xp, inputs.floats, s), table_line(xp, inputs.ints, s)
        return cls(s, carry, inputs, floats, ints, masked, sizes)


def table_line(xp: Namespace, table: Array, s: int | Array) -> Array:
    """Line ``s`` of a table; an index on the device is gathered, so that nothing synchronises."""
    if isinstance(s, int):
        return table[s]
    return xp.squeeze(xp.take(table, xp.reshape(s, (1,)), 0), 0)
