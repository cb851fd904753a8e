"""The rule by which PPO's and APPO's penalty follows the KL divergence."""

from __future__ import annotations

__all__ = ["adapted_kl_coeff"]

#: Beyond these the rule goes no further. A policy that cannot come near the old one drives the coefficient up with
#: every update: without an upper end the loss overflows float32, after about 220 updates, and no step is applied ever
#: again. One that has come down to zero could never rise.
_LOWEST, _HIGHEST = 1e-10, 1e10


def adapted_kl_coeff(coeff: float, *, mean_kl: float, kl_target: float) -> float:
    """The coefficient after an update: up by half above twice the target, down by half under half of it.

    Args:
        coeff: the coefficient of the update.
        mean_kl: the update's mean KL divergence, in nats.
        kl_target: what it is steered to.

    Returns:
        The next coefficient. It does not leave 1e-10 to 1e10; a coefficient that is outside does not go further out.
    """
    if mean_kl > 2.0 * kl_target:
        return min(coeff * 1.5, max(coeff, _HIGHEST))
    if mean_kl < 0.5 * kl_target:
        return max(coeff * 0.5, min(coeff, _LOWEST))
    return coeff
