"""Notes where Python reads the value of a tensor, which no trace of a step could follow.

One uncompiled step under :class:`ValueReads` says whether the step can be compiled at all, in milliseconds and with
file and line; a trace would say so after seconds, and only when it is time to compile.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch.overrides import TorchFunctionMode

from .operations import Arguments

__all__ = ["ValueReads"]

_READS = {
    "__array__", "__bool__", "__complex__", "__float__", "__format__", "__index__", "__int__", "allclose", "equal",
    "is_nonzero", "item", "masked_select", "nonzero", "numpy", "tolist", "unique",
}  # fmt: skip
_LIBRARY = ("torch", "learner_core", "learner_core_torch")


class ValueReads(TorchFunctionMode):
    """While it is open, fills ``found`` with ``file:line: reason``, one entry per place."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(
        self, func: Callable[..., object], types: object, args: Arguments = (), kwargs: dict[str, object] | None = None
    ) -> object:
        name = getattr(func, "__name__", "")
        if name in _READS or (name == "__getitem__" and _has_mask(args[1:])):
            place = f"{_caller()}: Tensor.{name} reads the value of an array"
            if place not in self.found:
                self.found.append(place)
        return func(*args, **(kwargs or {}))

    def __enter__(self) -> list[str]:
        super().__enter__()
        return self.found


def _has_mask(indices: Arguments) -> bool:
    flat = indices[0] if indices and isinstance(indices[0], tuple) else indices
    return any(isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in flat)


def _caller() -> str:
    """``file:line`` of the innermost frame outside Torch and this package; the outermost of theirs if there is none."""
    frame = sys._getframe(2)
    while frame.f_back is not None:
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] not in _LIBRARY:
            break
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
