"""Torch's own layers as oracles for the networks over ``xp``: outputs and gradients in float64, as numpy arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["attention", "perturbed", "recurrent"]

Arrays = dict[str, np.ndarray]


def perturbed(params: Mapping[str, np.ndarray], seed: int = 7, scale: float = 0.2) -> Arrays:
    """float64 parameters away from zero biases and unit scales: a fresh initialisation hides swapped terms."""
    rng = np.random.default_rng(seed)
    return {name: value.astype(np.float64) + scale * rng.normal(size=value.shape) for name, value in params.items()}


def recurrent(
    kind: str,
    params: Mapping[str, np.ndarray],
    x: np.ndarray,
    state: Mapping[str, np.ndarray],
    cotangent: np.ndarray,
    resets: np.ndarray | None = None,
) -> Arrays:
    """``torch.nn.LSTM`` or ``torch.nn.GRU`` step by step, its state zeroed by hand where an episode begins.

    The loss is ``sum(outputs * cotangent) + sum(last h squared)``.
    """
    import torch

    hidden = next(iter(state.values())).shape[-1]
    layer = getattr(torch.nn, kind)(x.shape[-1], hidden, batch_first=True).double()
    layer.load_state_dict({name.rpartition(".")[2]: torch.from_numpy(value) for name, value in params.items()})
    now = [torch.from_numpy(leaf)[None] for leaf in state.values()]
    inputs = torch.from_numpy(x).requires_grad_()
    outputs = []
    for t in range(x.shape[1]):
        if resets is not None:
            keep = torch.from_numpy(1.0 - resets[:, t].astype(np.float64))[None, :, None]
            now = [leaf * keep for leaf in now]
        y, last = layer(inputs[:, t : t + 1], tuple(now) if len(now) == 2 else now[0])
        now = list(last) if isinstance(last, tuple) else [last]
        outputs.append(y)
    y = torch.cat(outputs, 1)
    ((y * torch.from_numpy(cotangent)).sum() + now[0].square().sum()).backward()
    return {
        "outputs": y.detach().numpy(),
        **{f"state/{leaf}": value[0].detach().numpy() for leaf, value in zip(state, now, strict=True)},
        **{f"gradients/{name}": getattr(layer, name.rpartition(".")[2]).grad.numpy() for name in params},
        "gradients/x": inputs.grad.numpy(),
    }


def attention(
    params: Mapping[str, np.ndarray],
    num_heads: int,
    query: np.ndarray,
    memory: np.ndarray | None,
    mask: np.ndarray | None,
    cotangent: np.ndarray,
) -> Arrays:
    """``torch.nn.MultiheadAttention``; ``mask`` is True where a query may look."""
    import torch

    size = query.shape[-1]
    layer = torch.nn.MultiheadAttention(size, num_heads, batch_first=True).double()
    layer.load_state_dict({name.partition(".")[2]: torch.from_numpy(value) for name, value in params.items()})
    q = torch.from_numpy(query)
    m = q if memory is None else torch.from_numpy(memory)
    blocked: Any = None
    if mask is not None:
        blocked = torch.from_numpy(~mask)
        if blocked.ndim == 3:
            blocked = blocked.repeat_interleave(num_heads, 0)
    y, _ = layer(q, m, m, attn_mask=blocked, need_weights=False)
    (y * torch.from_numpy(cotangent)).sum().backward()
    named = dict(layer.named_parameters())
    return {
        "outputs": y.detach().numpy(),
        **{f"gradients/{name}": named[name.partition(".")[2]].grad.numpy() for name in params},
    }
