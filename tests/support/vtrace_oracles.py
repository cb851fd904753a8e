"""IMPALA's and APPO's losses in plain numpy, float64, written from the papers and not from the library.

Every sequence is walked with loops, episode by episode, so that what the library does by masks and shifts is done here
by stopping.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from support.oracles import _categorical, _gaussian, _kl, mlp

__all__ = ["appo_loss", "impala_loss", "vtrace_by_sums"]

Params = Mapping[str, np.ndarray]
Batch = Mapping[str, np.ndarray]


def vtrace_by_sums(
    log_rhos: np.ndarray, values: np.ndarray, last_values: np.ndarray, batch: Batch, settings: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Espeholt et al. 2018, equation 1 and the advantage below equation 4, as sums over the rest of the episode.

    Args:
        log_rhos, values: float[B, T].
        last_values: float[B], of the observation after the last step.
        batch: ``rewards terminateds truncateds bootstrap_values loss_mask`` [B, T].
        settings: ``gamma`` and the three bounds.
    """
    bound = {name: _bound(settings[f"vtrace_clip_{name}_threshold"]) for name in ("rho", "c", "pg_rho")}
    counts = batch["loss_mask"] > 0
    targets, advantages = np.zeros_like(values), np.zeros_like(values)
    for b in range(values.shape[0]):
        length = values.shape[1]

        def after(t: int, b: int = b, length: int = length) -> tuple[float, bool]:
            """(value of what follows row t, whether row t + 1 goes on from it)."""
            if t == length - 1:
                return (0.0 if batch["terminateds"][b, t] else last_values[b]), False
            if batch["terminateds"][b, t]:
                return 0.0, False
            if batch["truncateds"][b, t]:
                return batch["bootstrap_values"][b, t], False
            return values[b, t + 1], bool(counts[b, t + 1])

        rhos = np.exp(log_rhos[b])
        for s in range(length):
            if not counts[b, s]:
                continue
            total, weight, t = values[b, s], 1.0, s
            while True:
                following, goes_on = after(t)
                delta = batch["rewards"][b, t] + settings["gamma"] * following - values[b, t]
                total += weight * min(bound["rho"], rhos[t]) * delta
                if not goes_on:
                    break
                weight *= settings["gamma"] * min(bound["c"], rhos[t])
                t += 1
            targets[b, s] = total
        for s in range(length):
            if not counts[b, s]:
                continue
            following, goes_on = after(s)
            following = targets[b, s + 1] if goes_on else following
            error = batch["rewards"][b, s] + settings["gamma"] * following - values[b, s]
            advantages[b, s] = min(bound["pg_rho"], rhos[s]) * error
    return targets, advantages


def _bound(value: float | None) -> float:
    return np.inf if value is None else value


def _outputs(params: Params, batch: Batch, settings: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(distribution inputs [B, T, K], log-probabilities [B, T], entropies [B, T])."""
    shape = batch["rewards"].shape
    obs = batch["obs"].reshape(-1, batch["obs"].shape[-1])
    actions = batch["actions"].reshape(obs.shape[0], *batch["actions"].shape[2:])
    inputs = mlp(params, "pi", obs)
    if "log_std" in params:
        inputs = np.concatenate([inputs, np.broadcast_to(params["log_std"], inputs.shape)], -1)
        logp, entropy = _gaussian(inputs, actions)
    else:
        logp, entropy = _categorical(inputs, actions, settings.get("start", 0))
    return inputs, logp.reshape(shape), entropy.reshape(shape)


def _values(params: Params, obs: np.ndarray) -> np.ndarray:
    return mlp(params, "vf", obs.reshape(-1, obs.shape[-1]))[:, 0].reshape(obs.shape[:-1])


def _mean(x: np.ndarray, batch: Batch) -> float:
    return float(x[batch["loss_mask"] > 0].sum() / max((batch["loss_mask"] > 0).sum(), 1))


def impala_loss(params: Params, stopped: Params, batch: Batch, settings: Mapping[str, Any]) -> float:
    """-mean(log pi A) + vf_loss_coeff * mean((V - vs)^2) / 2 - entropy_coeff * mean(H).

    Args:
        params: ``pi.* vf.*`` and maybe ``log_std``: what the loss is differentiated by.
        stopped: the same names: what targets and advantages are made of.
        batch: columns [B, T], ``bootstrap_obs`` [B, ...].
        settings: by the names of IMPALAConfig.
    """
    _, logp, entropy = _outputs(params, batch, settings)
    _, stopped_logp, _ = _outputs(stopped, batch, settings)
    targets, advantages = vtrace_by_sums(
        stopped_logp - batch["action_logp"],
        _values(stopped, batch["obs"]),
        _values(stopped, batch["bootstrap_obs"]),
        batch,
        settings,
    )
    policy = -_mean(logp * advantages, batch)
    value = 0.5 * _mean((_values(params, batch["obs"]) - targets) ** 2, batch)
    return policy + settings["vf_loss_coeff"] * value - settings["entropy_coeff"] * _mean(entropy, batch)


def appo_loss(params: Params, stopped: Params, target: Params, batch: Batch, settings: Mapping[str, Any]) -> float:
    """As above, with min(A r, A clip(r)) for log pi A, r = min(mu / pi_target, 2) * pi / mu, and V-trace by pi_target.

    Args:
        params, stopped, batch, settings: as above, ``kl_coeff`` the current one.
        target: parameters of the target network.
    """
    inputs, logp, entropy = _outputs(params, batch, settings)
    old_inputs, old_logp, _ = _outputs(target, batch, settings)
    targets, advantages = vtrace_by_sums(
        old_logp - batch["action_logp"],
        _values(stopped, batch["obs"]),
        _values(stopped, batch["bootstrap_obs"]),
        batch,
        settings,
    )
    ratio = np.clip(np.exp(batch["action_logp"] - old_logp), 0.0, 2.0) * np.exp(logp - batch["action_logp"])
    clip = settings["clip_param"]
    policy = -_mean(np.minimum(ratio * advantages, np.clip(ratio, 1 - clip, 1 + clip) * advantages), batch)
    value = 0.5 * _mean((_values(params, batch["obs"]) - targets) ** 2, batch)
    loss = policy + settings["vf_loss_coeff"] * value - settings["entropy_coeff"] * _mean(entropy, batch)
    if settings.get("use_kl_loss"):
        kl = _kl(old_inputs, inputs, "log_std" not in params).reshape(logp.shape)
        loss += settings["kl_coeff"] * _mean(kl, batch)
    return loss
