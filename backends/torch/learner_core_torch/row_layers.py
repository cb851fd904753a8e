"""BatchNorm over the rows of all learners that share a minibatch.

Needs Torch's own BatchNorm classes; a subclass with a forward pass of its own is not known here. In training a layer
takes the count, the sum, and then the squared deviations of its input from every learner, so that mean, variance and
running statistics are those of the whole minibatch; gradients flow back through the same sums. The numbers are those of
``torch.nn.functional.batch_norm`` but for rounding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from learner_core.learning.framework_modules import RowTotals

__all__ = ["over_all_rows", "row_layers"]

_KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def row_layers(network: nn.Module) -> dict[str, _BatchNorm]:
    """Torch's name -> layer that normalises by the rows of a minibatch in training."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and type(module) in _KINDS
    }


@contextlib.contextmanager
def over_all_rows(layers: dict[str, _BatchNorm], rows: RowTotals | None, *, hold: bool) -> Iterator[None]:
    """While it is open, these layers look at all learners' rows, or (``hold``) at their running statistics alone."""
    if rows is None and not hold:
        yield
        return
    try:
        for layer in layers.values():
            # An attribute of the instance, which nn.Module calls in place of the class's method.
            object.__setattr__(layer, "forward", _held(layer) if rows is None else _summed(layer, rows))
        yield
    finally:
        for layer in layers.values():
            vars(layer).pop("forward", None)


def _held(layer: _BatchNorm) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        if layer.running_mean is None:
            return x
        return functional.batch_norm(
            x, layer.running_mean, layer.running_var, layer.weight, layer.bias, False, 0.0, layer.eps
        )

    return forward


def _summed(layer: _BatchNorm, rows: RowTotals) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        if not layer.training:
            plain: torch.Tensor = type(layer).forward(layer, x)
            return plain
        layer._check_input_dim(x)
        wide = x if x.dtype == torch.float64 else x.float()
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        own = wide.numel() // wide.shape[1] if rows.has_rows else 0
        # A learner without rows computes on one that does not count; it must take part in every sum.
        weight = float(rows.has_rows)
        sums = _Total.apply(torch.cat([weight * wide.sum(axes), wide.new_full((1,), float(own))]), rows)
        count = sums[-1].detach()
        if float(count) <= 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}")
        mean = sums[:-1] / count
        apart = wide - mean.view(shape)
        variance = _Total.apply(weight * apart.square().sum(axes), rows) / count
        _update(layer, mean.detach(), variance.detach() * (count / (count - 1)))
        out = apart * torch.rsqrt(variance + layer.eps).view(shape)
        if layer.affine:
            out = out * layer.weight.view(shape) + layer.bias.view(shape)
        found: torch.Tensor = out.to(x.dtype)
        return found

    return forward


def _update(layer: _BatchNorm, mean: torch.Tensor, variance: torch.Tensor) -> None:
    """Move the running statistics, in place as the layer itself does."""
    if not layer.track_running_stats or layer.running_mean is None:
        return
    momentum = layer.momentum
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
        if momentum is None:  # the mean over all minibatches so far
            momentum = 1.0 / float(layer.num_batches_tracked)
    with torch.no_grad():
        for running, new in ((layer.running_mean, mean), (layer.running_var, variance)):
            assert running is not None and momentum is not None
            running.mul_(1.0 - momentum).add_(momentum * new.to(running.dtype))


class _Context(FunctionCtx):
    """What the backward pass finds of the forward one."""

    rows: RowTotals


class _Total(torch.autograd.Function):
    """The sum over the learners; every learner's loss depends on it, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(context: _Context, flat: torch.Tensor, rows: RowTotals) -> torch.Tensor:
        context.rows = rows
        total: torch.Tensor = rows.total(flat.detach().clone().contiguous())
        return total

    @staticmethod
    def backward(context: _Context, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return context.rows.total(gradient.detach().clone().contiguous()), None
