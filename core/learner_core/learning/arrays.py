"""The arrays of an update: what a step carries on to the next, and what every step reads.

Inside, an array is reached by what it is: ``carry.modules[module_id].slots[optimizer][slot]``. A backend's loop takes
flat dicts instead; ``flat`` and ``unflat`` make and undo them, here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..xp import Array

__all__ = ["Carry", "Flat", "ModuleArrays", "StepInputs"]

Flat = dict[str, Array]
#: Nested dicts of arrays.
Tree = Mapping[str, Any]


@dataclass(slots=True)
class ModuleArrays:
    """One module's part of what training changes. A vector is float[size], laid out as its plan says.

    Attributes:
        params: optimizer -> vector of the parameters that it moves.
        slots: optimizer -> slot -> vector of its moments, laid out as the parameters.
        frozen: vector of the parameters that no optimizer moves; ``None``: there are none.
        targets: vector of the target copies; ``None``: there are none.
        buffers: name -> array.
    """

    params: dict[str, Array] = field(default_factory=dict)
    slots: dict[str, dict[str, Array]] = field(default_factory=dict)
    frozen: Array | None = None
    targets: Array | None = None
    buffers: dict[str, Array] = field(default_factory=dict)

    def copy(self) -> ModuleArrays:
        """Another one of the same arrays: nobody writes into an array, they are replaced."""
        slots = {optimizer: dict(vectors) for optimizer, vectors in self.slots.items()}
        return ModuleArrays(dict(self.params), slots, self.frozen, self.targets, dict(self.buffers))

    def tree(self) -> Tree:
        """As nested dicts, without what there is not."""
        single = {"frozen": self.frozen, "targets": self.targets}
        found = {
            "params": self.params,
            "slots": self.slots,
            **{name: vector for name, vector in single.items() if vector is not None},
            "buffers": self.buffers,
        }
        return {name: part for name, part in found.items() if not isinstance(part, dict) or part}

    @classmethod
    def of_tree(cls, tree: Tree) -> ModuleArrays:
        """From nested dicts, as :meth:`tree` makes them."""
        return cls(
            dict(tree.get("params", {})),
            {optimizer: dict(vectors) for optimizer, vectors in tree.get("slots", {}).items()},
            tree.get("frozen"),
            tree.get("targets"),
            dict(tree.get("buffers", {})),
        )


@dataclass(slots=True)
class Carry:
    """What a step changes and the next one goes on from.

    Attributes:
        modules: module id -> its arrays.
        applied: int64[optimizers], steps that each has taken in this run of the loop.
        stopped: bool[modules that learn], those that take no further step in this update.
        metrics: float[2, metrics], weighted sums and weights.
    """

    modules: dict[str, ModuleArrays]
    applied: Array
    stopped: Array
    metrics: Array

    def copy(self) -> Carry:
        """Another one of the same arrays."""
        modules = {module_id: arrays.copy() for module_id, arrays in self.modules.items()}
        return Carry(modules, self.applied, self.stopped, self.metrics)

    def flat(self) -> Flat:
        """name -> array, in an order that goes by the structure alone."""
        counters = {"applied": self.applied, "stopped": self.stopped, "metrics": self.metrics}
        return {**_flat({module_id: arrays.tree() for module_id, arrays in self.modules.items()}), **counters}

    def form(self) -> Carry:
        """The structure alone: it holds no array."""
        return self.unflat(dict.fromkeys(self.flat(), 0))

    def unflat(self, arrays: Mapping[str, Array]) -> Carry:
        """One of this structure, of other arrays by the same names."""
        modules = {mid: ModuleArrays.of_tree(_like(own.tree(), arrays, mid)) for mid, own in self.modules.items()}
        return Carry(modules, arrays["applied"], arrays["stopped"], arrays["metrics"])


@dataclass(slots=True)
class StepInputs:
    """What the steps of an update read; a step takes its line of every table.

    Attributes:
        indices: module id -> int64[steps, minibatch], rows of the columns.
        columns: module id -> column -> [rows, ...].
        noise: module id -> name -> float[steps, minibatch, *shape].
        statistics: module id -> column -> float[steps, 2], mean and standard deviation over the whole minibatch.
        floats: float[steps, columns], by ``TableLayout.floats``.
        ints: int64[steps, columns], by ``TableLayout.ints``.
        corrections: float[steps + 1, width], by ``CorrectionTable``.
    """

    indices: dict[str, Array]
    columns: dict[str, dict[str, Array]]
    noise: dict[str, dict[str, Array]]
    statistics: dict[str, dict[str, Array]]
    floats: Array
    ints: Array
    corrections: Array

    def tree(self) -> dict[str, Any]:
        """As nested dicts."""
        return {name: getattr(self, name) for name in self.__slots__}

    def flat(self) -> Flat:
        """name -> array, in an order that goes by the structure alone."""
        return _flat(self.tree())

    def form(self) -> StepInputs:
        """The structure alone: it holds no array."""
        return self.unflat(dict.fromkeys(self.flat(), 0))

    def unflat(self, arrays: Mapping[str, Array]) -> StepInputs:
        """One of this structure, of other arrays by the same names."""
        return StepInputs(**_like(self.tree(), arrays))


def _flat(tree: Tree) -> Flat:
    return dict(_leaves(tree, ""))


def _leaves(tree: Tree, path: str) -> Iterator[tuple[str, Array]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{name}/")
        else:
            yield f"{path}{name}", value


def _like(tree: Tree, arrays: Mapping[str, Array], path: str = "") -> dict[str, Any]:
    """Nested dicts as ``tree`` has them, of the arrays by their flat names."""
    start = f"{path}/" if path else ""
    return {
        name: _like(value, arrays, f"{start}{name}") if isinstance(value, Mapping) else arrays[f"{start}{name}"]
        for name, value in tree.items()
    }
