"""Our optimizers against torch.optim: a hundred steps, float64, with a change of the learning rate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from learner_core.maths.optimizers import OptimizerSpec, clip_by_global_norm
from learner_core_torch import xp

TORCH = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
}


@pytest.mark.parametrize(
    ("kind", "hyper"),
    [
        ("adam", {}),
        ("adam", {"eps": 1e-5}),
        ("adam", {"eps": 0.1, "betas": (0.8, 0.9)}),
        ("adam", {"weight_decay": 0.1}),
        ("adamw", {}),
        ("adamw", {"eps": 1e-3, "weight_decay": 0.5}),
        ("sgd", {}),
        ("sgd", {"weight_decay": 0.1}),
        ("sgd", {"momentum": 0.9}),
        ("sgd", {"momentum": 0.9, "weight_decay": 0.1, "dampening": 0.3}),
        ("sgd", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
        ("rmsprop", {}),
        ("rmsprop", {"eps": 0.1, "alpha": 0.9, "weight_decay": 0.1}),
        ("rmsprop", {"momentum": 0.9}),
        ("rmsprop", {"centered": True}),
        ("rmsprop", {"centered": True, "momentum": 0.9, "weight_decay": 0.1, "eps": 1e-5}),
    ],
)
def test_hundred_steps(kind: str, hyper: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    target = torch.from_numpy(rng.normal(size=12))
    noise = torch.from_numpy(rng.normal(size=(100, 12)))
    ours = torch.from_numpy(rng.normal(size=12))
    theirs = ours.clone().requires_grad_()
    start = ours.clone()
    spec = OptimizerSpec(kind, **hyper)
    optimizer = TORCH[kind]([theirs], lr=1e-2, **hyper)
    slots = spec.init_slots(xp, ours)

    def gradient(p: torch.Tensor, step: int) -> torch.Tensor:
        # Follows the parameters, so that a mistake grows; sizes from 1e-3 to 10.
        return (p - target + noise[step]) * torch.logspace(-3, 1, 12, dtype=torch.float64)

    for step in range(100):
        lr = 1e-2 if step < 50 else 1e-3
        optimizer.param_groups[0]["lr"] = lr
        theirs.grad = gradient(theirs.detach(), step)
        optimizer.step()
        ours, slots = spec.update(
            xp,
            params=ours,
            gradients=gradient(ours, step),
            slots=slots,
            lr=torch.tensor(lr, dtype=torch.float64),
            corrections=torch.from_numpy(spec.corrections(step + 1)),
        )
        torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=1e-12)
    assert (ours - start).abs().min() > 1e-5


def test_global_norm_is_torchs() -> None:
    rng = np.random.default_rng(0)
    for bound in (1e-3, 1.0, 1e3):
        gradients = {name: torch.from_numpy(rng.normal(size=(3, 4))) for name in "ab"}
        parameters = [torch.nn.Parameter(torch.zeros(3, 4, dtype=torch.float64)) for _ in "ab"]
        for parameter, gradient in zip(parameters, gradients.values(), strict=True):
            parameter.grad = gradient.clone()
        clipped, norm = clip_by_global_norm(xp, gradients, bound)
        expected = torch.nn.utils.clip_grad_norm_(parameters, bound)
        torch.testing.assert_close(norm, expected, rtol=1e-14, atol=0)
        for parameter, gradient in zip(parameters, clipped.values(), strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-13, atol=0)
