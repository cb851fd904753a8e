"""Loops that see what a compiled one sees, static shapes and padding, and run uncompiled: cheap, whatever the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

__all__ = ["StaticLoops"]


class StaticLoops:
    """Stands in for what a backend compiles for several learners.

    Args:
        monkeypatch: undoes it.
        backend_class: whose loops they are.
        after: minibatch steps after which ``compile=None`` takes one.

    Attributes:
        made: how many executables were made, by all learners together.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, backend_class: type, *, after: int = 0) -> None:
        self.made = 0
        monkeypatch.setattr(backend_class, "make_split_loop", self._maker())
        monkeypatch.setattr(backend_class, "compile_after", lambda backend, config: after)

    def _maker(self) -> Callable[..., Any]:
        def make_split_loop(
            backend: Any, gradient: Any, apply: Any, reduce: Any, *, example: Any, config: Any
        ) -> _StaticLoop:
            self.made += 1
            return _StaticLoop(backend, gradient, apply, reduce, example)

        return make_split_loop


class _StaticLoop:
    def __init__(self, backend: Any, gradient: Any, apply: Any, reduce: Any, example: Any) -> None:
        self._gradient, self._apply, self._reduce = gradient, apply, reduce
        self._shapes = [self._shapes_of(arrays) for arrays in example]
        carry, inputs = example
        with backend.scope():
            gradient(0, carry, inputs)  # the vector's layout is found out by the first call, as a trace does

    @staticmethod
    def _shapes_of(arrays: Any) -> dict[str, Any]:
        return {name: (tuple(array.shape), array.dtype) for name, array in arrays.items()}

    def __call__(self, carry: Any, inputs: Any, start: int, stop: int) -> Any:
        for step in range(start, stop):
            assert [self._shapes_of(arrays) for arrays in (carry, inputs)] == self._shapes
            carry = self._apply(step, carry, inputs, self._reduce(self._gradient(step, carry, inputs)))
        return carry
