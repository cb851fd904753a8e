"""Flat vectors larger than the processor's caches, uncompiled on the CPU: block by block, in memory used again.

An operation on 20 million parameters reads 80 MB and writes 80 MB that the operating system has to map and clear
first; Adam in fifteen such operations takes longer than the backward pass. Here one block after the other goes through
all of them inside the cache, and results go into memory whose last reader is gone
(docs/decisions/torch-update-loop.md has the figures).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch.optim.adam import adam

from learner_core.backend import OptimizerRule

from . import xp as torch_xp

__all__ = ["LargeVectors", "is_large"]

#: Elements of a block: what an optimizer keeps of it at a time fits a cache of 2 MB.
_BLOCK = 1 << 15
#: Below, an operation's fixed cost is more than what its memory costs.
_LARGE = 1 << 18
#: A step number at which every beta below 1 - 1e-7 to its power is 0.
_LATE = 1e9
#: Vectors handed out after which memory that nobody asked for is given back.
_PATIENCE = 64


def is_large(vector: object) -> bool:
    """Whether it is worth it: a real vector (no tracer's stand-in) of many elements on the CPU."""
    return type(vector) is torch.Tensor and vector.numel() >= _LARGE and vector.device.type == "cpu"


class LargeVectors:
    """Elementwise maths on large vectors; the same numbers as on the whole vector, but for sums, which are exacter."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # (memory, number of the last hand-out). Free when nothing but this list refers to it: a tensor made of numpy's
        # memory holds the array until the last view of it is gone, so whoever still reads a vector keeps it.
        self._memory: list[tuple[np.ndarray, int]] = []
        self._handed_out = 0

    def squared_norm(self, vector: torch.Tensor) -> torch.Tensor:
        """Sum of squares, 0-d."""
        return torch.stack([torch.sum(torch.square(block)) for block in vector.split(_BLOCK)]).sum()

    def optimizer_update(
        self,
        spec: OptimizerRule,
        *,
        params: torch.Tensor,
        gradients: torch.Tensor,
        slots: Mapping[str, torch.Tensor],
        lr: torch.Tensor,
        corrections: list[torch.Tensor],
        clip: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """As :meth:`learner_core.backend.Backend.optimizer_update`."""
        new = self._empty_like(params)
        new_slots = {name: self._empty_like(params) for name in slots}
        step = _adam_step(spec, lr, corrections) if spec.kind in ("adam", "adamw") else None
        for block in _blocks(params.numel()):
            own = gradients[block] if clip is None else clip(gradients[block])
            if step is not None:
                kept = new[block].copy_(params[block])
                step(kept, own, *(new_slots[name][block].copy_(slots[name][block]) for name in ("m", "v")))
                continue
            updated, updated_slots = spec.update(
                torch_xp,
                params=params[block],
                gradients=own,
                slots={name: slot[block] for name, slot in slots.items()},
                lr=lr,
                corrections=corrections,
            )
            new[block] = updated
            for name, slot in updated_slots.items():
                new_slots[name][block] = slot
        return new, new_slots

    def _empty_like(self, vector: torch.Tensor) -> torch.Tensor:
        """An uninitialised vector of that size and dtype."""
        dtype = torch.empty(0, dtype=vector.dtype).numpy().dtype
        with self._lock:
            self._handed_out += 1
            kept: list[tuple[np.ndarray, int]] = []
            found: np.ndarray | None = None
            while self._memory:
                memory, last = self._memory.pop()
                # Two references: the name here and the call's own argument.
                free = sys.getrefcount(memory) == 2
                if free and found is None and memory.size == vector.numel() and memory.dtype == dtype:
                    found = memory
                elif not free or last + _PATIENCE > self._handed_out:
                    kept.append((memory, last))
            if found is None:
                found = np.empty(vector.numel(), dtype)
            self._memory = [*kept, (found, self._handed_out)]
            return torch.from_numpy(found)


def _adam_step(spec: OptimizerRule, lr: torch.Tensor, corrections: list[torch.Tensor]) -> Callable[..., None]:
    """``step(params, gradients, m, v)``, in place: Torch's kernel, which reads and writes each array once.

    It derives the bias corrections from the step number. Ours are known and enter through the rate and epsilon:
    ``lr c0 m / (sqrt(v) / c1 + eps) = (lr c0 c1) m / (sqrt(v) + eps c1)``, with its own corrections at their limit, 1.
    """
    (beta_1, beta_2), decay = spec.hyper["betas"], spec.hyper["weight_decay"]
    given, first, second = float(lr), float(corrections[0]), float(corrections[1])
    rate = given * first * second
    decoupled = spec.kind == "adamw"
    if decoupled and decay:
        # It shrinks parameters by its own rate times the decay.
        decay = decay / (first * second)

    def step(params: torch.Tensor, gradients: torch.Tensor, m: torch.Tensor, v: torch.Tensor) -> None:
        adam(
            [params], [gradients], [m], [v], [], [torch.tensor(_LATE)],
            fused=True, amsgrad=False, maximize=False, beta1=beta_1, beta2=beta_2, lr=rate, weight_decay=decay,
            eps=spec.hyper["eps"] * second, decoupled_weight_decay=decoupled,
        )  # fmt: skip

    return step


def _blocks(size: int) -> Iterator[slice]:
    return (slice(start, start + _BLOCK) for start in range(0, size, _BLOCK))
