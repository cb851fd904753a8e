"""The losses of PPO, SAC and BC in plain numpy, float64, written from the papers and not from the library.

Gradients are finite differences of these functions, so nothing of the library's own differentiation is trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

__all__ = ["adam", "adaptive_kl", "bc_loss", "finite_differences", "mlp", "ppo_loss", "sac_losses", "standardise"]

Params = Mapping[str, np.ndarray]


def mlp(params: Params, name: str, x: np.ndarray) -> np.ndarray:
    """Hidden layers ``{name}.0 ...`` with tanh, the last one linear."""
    last = max(int(key.split(".")[1]) for key in params if key.startswith(f"{name}."))
    for layer in range(last + 1):
        x = x @ params[f"{name}.{layer}.weight"].T + params[f"{name}.{layer}.bias"]
        x = np.tanh(x) if layer < last else x
    return x


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _categorical(logits: np.ndarray, actions: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray]:
    logp = _log_softmax(logits)
    return logp[np.arange(len(logp)), actions - start], -(np.exp(logp) * logp).sum(-1)


def _gaussian(inputs: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, log_std = np.split(inputs, 2, -1)
    z = (actions.reshape(mean.shape) - mean) / np.exp(log_std)
    logp = (-0.5 * z**2 - log_std - 0.5 * np.log(2 * np.pi)).sum(-1)
    return logp, (log_std + 0.5 * np.log(2 * np.pi * np.e)).sum(-1)


def _kl(old: np.ndarray, new: np.ndarray, discrete: bool) -> np.ndarray:
    if discrete:
        p, q = _log_softmax(old), _log_softmax(new)
        return (np.exp(p) * (p - q)).sum(-1)
    (m0, s0), (m1, s1) = np.split(old, 2, -1), np.split(new, 2, -1)
    return (s1 - s0 + (np.exp(2 * s0) + (m0 - m1) ** 2) / (2 * np.exp(2 * s1)) - 0.5).sum(-1)


def standardise(advantages: np.ndarray) -> np.ndarray:
    """By the population's standard deviation."""
    return (advantages - advantages.mean()) / max(np.sqrt(((advantages - advantages.mean()) ** 2).mean()), 1e-8)


def ppo_loss(params: Params, batch: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> float:
    """Schulman et al. 2017, with the options of RLlib (vf_clip_param, KL) and of SB3 (vf_clip_range).

    Args:
        params: ``pi.*``, ``vf.*`` and, for continuous actions, ``log_std``.
        batch: columns; advantages ready for use unless ``normalize_advantages`` is "minibatch".
        settings: coefficients and options by the names of PPOConfig; ``kl_coeff`` the current one; ``start``.
    """
    discrete = "log_std" not in params
    inputs = mlp(params, "pi", batch["obs"])
    if not discrete:
        inputs = np.concatenate([inputs, np.broadcast_to(params["log_std"], inputs.shape)], -1)
    if discrete:
        logp, entropy = _categorical(inputs, batch["actions"], settings.get("start", 0))
    else:
        logp, entropy = _gaussian(inputs, batch["actions"])
    advantages = batch["advantages"]
    if settings.get("normalize_advantages") == "minibatch":
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    ratio = np.exp(logp - batch["action_logp"])
    clip = settings["clip_param"]
    surrogate = np.minimum(ratio * advantages, np.clip(ratio, 1 - clip, 1 + clip) * advantages)
    loss = -surrogate.mean() - settings["entropy_coeff"] * entropy.mean()
    if settings.get("use_critic", True):
        values = mlp(params, "vf", batch["obs"])[:, 0]
        error = (values - batch["value_targets"]) ** 2
        if settings.get("vf_clip_range") is not None:
            bound = settings["vf_clip_range"]
            near = batch["vf_preds"] + np.clip(values - batch["vf_preds"], -bound, bound)
            error = np.maximum(error, (near - batch["value_targets"]) ** 2)
        if settings.get("vf_clip_param") is not None:
            error = np.clip(error, 0.0, settings["vf_clip_param"])
        loss += settings["vf_loss_coeff"] * error.mean()
    if settings.get("use_kl_loss", True):
        loss += settings["kl_coeff"] * _kl(batch["action_dist_inputs"], inputs, discrete).mean()
    return float(loss)


def adaptive_kl(coefficient: float, kl: float, target: float) -> float:
    """RLlib's rule."""
    if kl > 2.0 * target:
        return coefficient * 1.5
    return coefficient * 0.5 if kl < 0.5 * target else coefficient


def _squashed(params: Params, obs: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sampled actions in (-1, 1) and their log-probabilities."""
    mean, log_std = np.split(mlp(params, "pi", obs), 2, -1)
    log_std = np.clip(log_std, -20.0, 2.0)
    u = mean + np.exp(log_std) * noise
    logp = (-0.5 * noise**2 - log_std - 0.5 * np.log(2 * np.pi)).sum(-1) + 2 * np.log(np.cosh(u)).sum(-1)
    return np.tanh(u), logp


def _q(params: Params, name: str, obs: np.ndarray, actions: np.ndarray) -> np.ndarray:
    return mlp(params, name, np.concatenate([obs, actions], -1))[:, 0]


def sac_losses(
    live: Params,
    stopped: Params,
    targets: Params,
    batch: Mapping[str, np.ndarray],
    noise: Mapping[str, np.ndarray],
    settings: Mapping[str, Any],
) -> dict[str, float]:
    """Haarnoja et al. 2018. ``live`` is what each loss is differentiated by, ``stopped`` what it takes as constant.

    Args:
        live: ``pi.*``, ``qf.*``, ``qf_twin.*`` and ``log_alpha``.
        stopped: the same names.
        targets: ``qf.*``, ``qf_twin.*``.
        batch: transitions, with ``discounts`` when there are several steps.
        noise: "actions" and "next_actions", float[B, A].
        settings: ``gamma``, ``q_loss``, ``twin_q``, ``target_entropy``.
    """
    names = ["qf", "qf_twin"] if settings["twin_q"] else ["qf"]
    alpha = np.exp(stopped["log_alpha"])
    next_actions, next_logp = _squashed(stopped, batch["next_obs"], noise["next_actions"])
    next_q = np.min([_q(targets, name, batch["next_obs"], next_actions) for name in names], axis=0)
    discounts = batch.get("discounts", settings["gamma"])
    target = batch["rewards"] + discounts * (1.0 - batch["terminateds"]) * (next_q - alpha * next_logp)
    losses = {}
    for name in names:
        error = np.abs(_q(live, name, batch["obs"], batch["actions"]) - target)
        huber = np.where(error <= 1.0, 0.5 * error**2, error - 0.5)
        losses[name] = float((0.5 * error**2 if settings["q_loss"] == "mse" else huber).mean())
    actions, logp = _squashed(live, batch["obs"], noise["actions"])
    q = np.min([_q(stopped, name, batch["obs"], actions) for name in names], axis=0)
    losses["policy"] = float((alpha * logp - q).mean())
    _, logp = _squashed(stopped, batch["obs"], noise["actions"])
    losses["alpha"] = float((-live["log_alpha"] * (logp + settings["target_entropy"])).mean())
    return losses


def bc_loss(params: Params, batch: Mapping[str, np.ndarray]) -> float:
    """Negative log-likelihood of discrete actions."""
    return float(-_categorical(mlp(params, "pi", batch["obs"]), batch["actions"], 0)[0].mean())


def adam(
    params: Params, gradients: Params, state: dict[str, Any], *, lr: float, eps: float = 1e-8
) -> dict[str, np.ndarray]:
    """Kingma and Ba 2014, algorithm 1: eps is added outside the root. ``state`` is updated in place."""
    state["t"] = state.get("t", 0) + 1
    out = {}
    for name, gradient in gradients.items():
        m = state[name, "m"] = 0.9 * state.get((name, "m"), 0.0) + 0.1 * gradient
        v = state[name, "v"] = 0.999 * state.get((name, "v"), 0.0) + 0.001 * gradient**2
        m_hat, v_hat = m / (1 - 0.9 ** state["t"]), v / (1 - 0.999 ** state["t"])
        out[name] = params[name] - lr * m_hat / (np.sqrt(v_hat) + eps)
    return out


def finite_differences(
    function: Callable[[dict[str, np.ndarray]], float], params: Params, step: float = 1e-5
) -> dict[str, np.ndarray]:
    """Gradient by central differences of fourth order: exact to about 1e-11 here."""
    out = {}
    for name, value in params.items():
        gradient = np.zeros(np.shape(value))
        for index in np.ndindex(*np.shape(value)):
            total = 0.0
            for multiple, weight in ((1, 8.0), (-1, -8.0), (2, -1.0), (-2, 1.0)):
                moved = np.array(value, np.float64)
                moved[index] += multiple * 1e2 * step
                total += weight * function({**params, name: moved})
            gradient[index] = total / (12.0 * 1e2 * step)
        out[name] = gradient
    return out
