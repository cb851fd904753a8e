"""Recurrent learners, their batches, and PPO's loss as a plain loop over single sequences; imports no framework."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete

from learner_core_algorithms import PPOConfig

__all__ = ["LENGTH", "loss_by_loops", "recurrent_config", "sequence_batch"]

LENGTH = 5
MODEL = {"hidden": [4], "activation": "tanh", "recurrent": "lstm", "recurrent_size": 3}


def recurrent_config(backend: str, *, model: dict[str, Any] | None = None, **training: Any) -> Any:
    """PPO with a small memory, three numbers seen, three actions; plain gradient descent at rate 1 unless told."""
    settings: dict[str, Any] = {
        "train_batch_size": 8 * LENGTH,
        "minibatch_size": 8 * LENGTH,
        "num_epochs": 1,
        "max_seq_len": LENGTH,
        "lr": 1.0,
        "optimizer": "sgd",
        "grad_clip": None,
        "use_kl_loss": False,
        "normalize_advantages": "off",
        "entropy_coeff": 0.1,
    }
    config = PPOConfig().environment(observation_space=Box(-9, 9, (3,), np.float32), action_space=Discrete(3))
    config.framework(backend, compile=False, precision="float64")
    return config.training(**{**settings, **training}).rl_module(model={**MODEL, **(model or {})})


def sequence_batch(
    sequences: int, state: dict[str, np.ndarray], *, length: int = LENGTH, seed: int = 0, pad: bool = False
) -> dict[str, Any]:
    """A plausible PPO batch [B, T], episodes ending inside; with ``pad`` sequences of several lengths."""
    rng = np.random.default_rng(seed)
    shape = (sequences, length)
    batch: dict[str, Any] = {
        "obs": rng.normal(size=(*shape, 3)),
        "actions": rng.integers(0, 3, shape),
        "action_logp": rng.uniform(-1.5, -0.7, shape),
        "action_dist_inputs": rng.normal(size=(*shape, 3)),
        "advantages": rng.normal(size=shape),
        "value_targets": rng.normal(size=shape),
        "vf_preds": rng.normal(size=shape),
        "resets": rng.uniform(size=shape) < 0.2,
        "state_in": {leaf: rng.normal(size=(sequences, *value.shape)) for leaf, value in state.items()},
    }
    if pad:
        lengths = rng.integers(1, length + 1, sequences)
        batch["loss_mask"] = (np.arange(length) < lengths[:, None]).astype(np.float64)
    return batch


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def _step(params: dict[str, np.ndarray], name: str, x: np.ndarray, state: dict[str, np.ndarray]) -> Any:
    """One step of one sequence: (output, next state)."""
    w_ih, w_hh, b_ih, b_hh = (
        params[f"{name}_core.{part}_l0"] for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    h = state[f"{name}_h"]
    size = len(h)
    if f"{name}_c" in state:
        i, f, g, o = np.split(w_ih @ x + b_ih + w_hh @ h + b_hh, 4)
        c = _sigmoid(f) * state[f"{name}_c"] + _sigmoid(i) * np.tanh(g)
        h = _sigmoid(o) * np.tanh(c)
        return h, {f"{name}_h": h, f"{name}_c": c}
    left, right = w_ih @ x + b_ih, w_hh @ h + b_hh
    r, z = _sigmoid(left[:size] + right[:size]), _sigmoid(left[size : 2 * size] + right[size : 2 * size])
    n = np.tanh(left[2 * size :] + r * right[2 * size :])
    h = (1.0 - z) * n + z * h
    return h, {f"{name}_h": h}


def loss_by_loops(
    params: dict[str, np.ndarray], batch: dict[str, Any], *, burn_in: int = 0, frozen: dict[str, np.ndarray]
) -> float:
    """PPO's loss (clip 0.2, half the value loss, entropy 0.1) of separate policy and value networks.

    Every sequence is walked by itself and only as far as it is real; ``frozen`` parameters warm the state up.
    """
    losses: list[float] = []
    mask = batch.get("loss_mask", np.ones(batch["actions"].shape))
    for row in range(len(mask)):
        state = {leaf: value[row] for leaf, value in batch["state_in"].items()}
        for t in range(int(mask[row].sum()) if burn_in == 0 else mask.shape[1]):
            if batch["resets"][row, t]:
                state = {leaf: np.zeros_like(value) for leaf, value in state.items()}
            now = frozen if t < burn_in else params
            out = {}
            for name in ("pi", "vf"):
                own = {leaf: value for leaf, value in state.items() if leaf.startswith(name)}
                x = np.tanh(now[f"{name}.0.weight"] @ batch["obs"][row, t] + now[f"{name}.0.bias"])
                x, own = _step(now, name, x, own)
                state = {**state, **own}
                out[name] = now[f"{name}_head.0.weight"] @ x + now[f"{name}_head.0.bias"]
            if t < burn_in or not mask[row, t]:
                continue
            logits = out["pi"]
            if "action_mask" in batch:
                logits = np.where(batch["action_mask"][row, t], logits, -1e9)
            log_probs = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
            ratio = np.exp(log_probs[batch["actions"][row, t]] - batch["action_logp"][row, t])
            advantage = batch["advantages"][row, t]
            policy = -min(advantage * ratio, advantage * np.clip(ratio, 0.8, 1.2))
            entropy = -float(np.exp(log_probs) @ log_probs)
            value = (out["vf"][0] - batch["value_targets"][row, t]) ** 2
            losses.append(policy + 0.5 * value - 0.1 * entropy)
    return float(np.mean(losses))
