"""In which order a network's layers see the elements of flattened images.

Runs the network once and follows every element: convolutions and pooling produce maps [N, C, H, W] (or [N, C, L]) whose
elements are numbered channels last; moving, reshaping and joining move the numbers along; operations that keep the
shape keep them. A linear or normalising layer whose input carries numbers out of order has its columns stored in
order, so that the same weights fit a network that flattens channels last.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["column_orders"]

#: Operations that move elements without changing them; "reshape" stands for all that only change the shape.
_RESHAPES = ("view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy", "view_copy")
_MOVES = ("permute", "transpose", "t", "unsqueeze", "squeeze", "slice", "select", "expand", "flip", "roll", "numpy_T")
#: Operations after which an element is no longer one element of the input, though the shape may be the same.
_MIXES = ("addmm", "mm", "bmm", "baddbmm", "linear", "einsum", "sort", "cumsum", "lstm", "gru", "attention", "topk")
_MAPS = ("convolution", "pool", "upsample", "batch_norm", "group_norm", "instance_norm", "pad")


def column_orders(network: nn.Module, obs: Any) -> tuple[Any, dict[str, np.ndarray | str]]:
    """Run ``network(obs)`` and find the layers whose columns are out of order.

    Args:
        network: in evaluation mode.
        obs: array or nested dict of arrays, two rows.

    Returns:
        (outputs, {Torch's path of a layer: for each of its columns the number it has channels last}); a text in place
        of an order says why there is none.
    """
    numbers = _Numbers()
    found: dict[str, np.ndarray | str] = {}

    def look(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        shadow = numbers.of(args[0]) if args and isinstance(args[0], torch.Tensor) else None
        if shadow is None or shadow.ndim != 2 or not isinstance(module, nn.BatchNorm1d | nn.Linear | nn.LayerNorm):
            return
        order = shadow[0].numpy()
        if not np.array_equal(np.sort(order), np.arange(len(order))):
            return
        known = found.get(name)
        if known is not None and not np.array_equal(known, order):
            found[name] = "called on inputs flattened in different orders"
        else:
            found[name] = order

    handles = [
        module.register_forward_pre_hook(lambda m, args, name=name: look(name, m, args))
        for name, module in network.named_modules()
    ]
    try:
        numbers.start(obs)
        with numbers:
            outputs = network(obs)
    finally:
        for handle in handles:
            handle.remove()
    in_order = [n for n, o in found.items() if not isinstance(o, str) and np.array_equal(o, np.arange(len(o)))]
    return outputs, {name: order for name, order in found.items() if name not in in_order}


class _Numbers(TorchDispatchMode):
    """Carries a tensor of element numbers along with every tensor that has one."""

    def __init__(self) -> None:
        super().__init__()
        # The tensor itself is kept: an id alone could come back as another tensor's.
        self._known: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def start(self, obs: Any) -> None:
        """Number the observations in the order they come in."""
        if isinstance(obs, torch.Tensor):
            self._set(obs, torch.arange(obs[0].numel()).reshape(1, *obs.shape[1:]).expand(obs.shape))
        else:
            for value in obs.values():
                self.start(value)

    def of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        entry = self._known.get(id(tensor))
        return entry[1] if entry is not None else None

    def _set(self, tensor: torch.Tensor, shadow: torch.Tensor) -> None:
        if shadow.shape == tensor.shape:
            self._known[id(tensor)] = (tensor, shadow)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        first = outputs[0] if isinstance(outputs, tuple | list) and outputs else outputs
        if not isinstance(first, torch.Tensor):
            return outputs
        name = func.overloadpacket.__name__
        try:
            shadow = self._follow(name, func, args, first, outputs)
        except Exception:
            shadow = None
        if shadow is not None:
            self._set(first, shadow)
        return outputs

    def _follow(self, name: str, func: Any, args: Any, first: torch.Tensor, outputs: Any) -> torch.Tensor | None:
        if name in ("cat", "concat"):
            return self._join(args, first)
        inputs = [value for value in args if isinstance(value, torch.Tensor)]
        shadows = [shadow for value in inputs if (shadow := self.of(value)) is not None]
        if name.rstrip("_") in _MIXES or "attention" in name:
            return None
        if any(part in name for part in _MAPS) and first.ndim in (3, 4):
            if shadows and shadows[0].shape == first.shape:
                return shadows[0]
            return _channels_last(first)
        if not shadows:
            return None
        if name in _RESHAPES:
            return shadows[0].reshape(first.shape)
        if name in _MOVES:
            moved: torch.Tensor = func(shadows[0], *args[1:])
            return moved
        # Elementwise, whatever it is called: the shape is kept (of the larger operand).
        return next((shadow for shadow in shadows if shadow.shape == first.shape), None)

    def _join(self, args: Any, first: torch.Tensor) -> torch.Tensor | None:
        parts, axis = args[0], (args[1] if len(args) > 1 else 0)
        if first.ndim != 2 or axis % 2 != 1 or not any(self.of(part) is not None for part in parts):
            return None
        joined, start = [], 0
        for part in parts:
            shadow = self.of(part)
            if shadow is None:
                shadow = torch.arange(part.shape[1]).expand(part.shape)
            joined.append(shadow + start)
            start += part.shape[1]
        return torch.cat(joined, 1)


def _channels_last(maps: torch.Tensor) -> torch.Tensor:
    """Numbers of maps [N, C, ...spatial], as if channels came last."""
    _, channels, *spatial = maps.shape
    numbers = torch.arange(int(np.prod(spatial)) * channels).reshape(*spatial, channels).movedim(-1, 0)
    return numbers.expand(maps.shape)
