"""The numbers of a whole update, as the tables a compiled loop reads: one line a step.

Nothing that changes between updates may be baked into a compiled step, so learning rates, coefficients, host
variables and row counts enter as arrays. Optimizer bias corrections have their own table, indexed by how many steps
that optimizer really applied: a step skipped on the device (a non-finite gradient, an early stop) then leaves no hole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ..maths.optimizers import OptimizerSpec

__all__ = ["CorrectionTable", "TableLayout"]


class TableLayout:
    """Column order of the float and the integer table of an update.

    Float columns: ``("config", module, field)``, ``("lr", module, optimizer)``, ``("var", module, name)``.
    Integer columns: ``("rows", module)`` valid rows on this learner, ``("count", module)`` rows (timesteps) that count
    over all learners, ``("step", module)`` lifetime minibatch steps before this one; and where modules share rows
    ``("updated", module)``, 0 for one that this update leaves alone.
    """

    def __init__(self, floats: Sequence[tuple[str, ...]], ints: Sequence[tuple[str, ...]]) -> None:
        self.floats: dict[tuple[str, ...], int] = {column: index for index, column in enumerate(floats)}
        self.ints: dict[tuple[str, ...], int] = {column: index for index, column in enumerate(ints)}

    def float_table(self, capacity: int, values: Mapping[tuple[str, ...], float], dtype: npt.DTypeLike) -> np.ndarray:
        """float[capacity, columns], the same line for every step of the update."""
        line = np.zeros(max(len(self.floats), 1), np.float64)
        for column, index in self.floats.items():
            line[index] = values[column]
        return np.tile(line.astype(dtype), (capacity, 1))

    def int_table(self, capacity: int, values: Mapping[tuple[str, ...], np.ndarray]) -> np.ndarray:
        """int64[capacity, columns]; ``values``: column -> int64[steps]."""
        table = np.zeros((capacity, max(len(self.ints), 1)), np.int64)
        for column, index in self.ints.items():
            line = values[column]
            table[: len(line), index] = line
        return table


class CorrectionTable:
    """Host-made float64 bias corrections of every optimizer for the steps an update may apply.

    Args:
        optimizers: (module, optimizer) -> specification, in carry order.
    """

    def __init__(self, optimizers: Mapping[tuple[str, str], OptimizerSpec]) -> None:
        self.index: dict[tuple[str, str], tuple[int, int, int]] = {}
        self._specs = dict(optimizers)
        start = 0
        for position, (key, spec) in enumerate(self._specs.items()):
            self.index[key] = (position, start, spec.num_corrections)
            start += spec.num_corrections
        self.width: int = max(start, 1)

    def table(self, capacity: int, steps: Mapping[tuple[str, str], int], dtype: npt.DTypeLike) -> np.ndarray:
        """float[capacity, width]: line j holds the corrections of the (steps + j + 1)-th applied step."""
        table = np.ones((capacity, self.width), np.float64)
        # Equal optimizers that have taken equally many steps share their numbers.
        known: dict[tuple[OptimizerSpec, int], np.ndarray] = {}
        for key, spec in self._specs.items():
            _, start, num = self.index[key]
            if num:
                first = steps[key] + 1
                if (spec, first) not in known:
                    known[spec, first] = spec.corrections(np.arange(first, first + capacity))
                table[:, start : start + num] = known[spec, first]
        return table.astype(dtype)
