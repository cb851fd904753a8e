"""What every peer of the PPO benchmarks trains with, and how learner-core is told."""

from __future__ import annotations

from typing import Any

__all__ = ["SETTINGS", "training"]

#: The value loss is ``value_coeff * mean((value - target)^2)``.
SETTINGS = {
    "lr": 3e-4,
    "clip_param": 0.2,
    "value_coeff": 0.5,
    "entropy_coeff": 0.01,
    "max_grad_norm": 0.5,
    "adam_eps": 1e-5,
}


def training(*, batch: int, minibatch: int, epochs: int, normalize_advantages: str) -> dict[str, Any]:
    """Keywords of ``PPOConfig().training(...)``."""
    return {
        "lr": SETTINGS["lr"],
        "clip_param": SETTINGS["clip_param"],
        "vf_loss_coeff": SETTINGS["value_coeff"],
        "entropy_coeff": SETTINGS["entropy_coeff"],
        "use_kl_loss": False,
        "normalize_advantages": normalize_advantages,
        "grad_clip": SETTINGS["max_grad_norm"],
        "optimizer": {"kind": "adam", "eps": SETTINGS["adam_eps"]},
        "train_batch_size": batch,
        "minibatch_size": minibatch,
        "num_epochs": epochs,
    }
