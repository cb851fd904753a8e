"""The workloads: sizes, initial weights and a prepared rollout, the same for every peer. Needs numpy only.

Weights are named and shaped as torch has them (Linear ``[out, in]``, convolutions ``[out, in, h, w]``); a flattened
image is height, width, channel. Peers that lay out images channels first permute what they are given.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

__all__ = ["WORKLOADS", "Workload", "initial_weights", "rollout"]


@dataclasses.dataclass(frozen=True)
class Workload:
    """One update to measure.

    Attributes:
        name: as it appears in the table.
        obs_shape: shape of an observation: (features,) float32, or (height, width, channels) uint8.
        num_actions: actions of a discrete space, or dimensions of a continuous one.
        continuous: the actions are a diagonal Gaussian's.
        hidden: layers of each tanh network, or the one relu layer over the convolutions that both heads share.
        batch, minibatch, epochs: the update.
    """

    name: str
    obs_shape: tuple[int, ...]
    num_actions: int
    continuous: bool
    hidden: tuple[int, ...]
    batch: int
    minibatch: int
    epochs: int

    @property
    def is_image(self) -> bool:
        """Whether observations go through convolutions."""
        return len(self.obs_shape) == 3

    @property
    def num_steps(self) -> int:
        """Minibatch steps of an update."""
        return self.epochs * -(-self.batch // self.minibatch)


WORKLOADS = {
    w.name: w
    for w in (
        Workload("W1-64", (4,), 2, False, (64, 64), 4096, 64, 10),
        Workload("W1-1024", (4,), 2, False, (64, 64), 4096, 1024, 10),
        Workload("W2", (376,), 17, True, (256, 256), 8192, 512, 4),
        Workload("W3", (84, 84, 4), 6, False, (512,), 1024, 256, 4),
    )
}


def initial_weights(workload: Workload, seed: int = 0) -> dict[str, np.ndarray]:
    """name -> float32 array; uniform in +-1/sqrt(inputs), output layers of the policy scaled down."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {}
    if workload.is_image:
        channels, side = workload.obs_shape[2], workload.obs_shape[0]
        for i, (out, kernel, stride) in enumerate(((32, 8, 4), (64, 4, 2), (64, 3, 1))):
            shapes[f"encoder.conv.{i}.weight"] = (out, channels, kernel, kernel)
            channels, side = out, (side - kernel) // stride + 1
        shapes["encoder.0.weight"] = (workload.hidden[0], side * side * channels)
        shapes["pi.0.weight"] = (workload.num_actions, workload.hidden[0])
        shapes["vf.0.weight"] = (1, workload.hidden[0])
    else:
        sizes = [*workload.obs_shape, *workload.hidden]
        for network, last in (("pi", workload.num_actions), ("vf", 1)):
            layers = [*sizes, last]
            for i in range(len(layers) - 1):
                shapes[f"{network}.{i}.weight"] = (layers[i + 1], layers[i])
    policy_head = [name for name in shapes if name.startswith("pi.")][-1]
    weights: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        bound = (0.05 if name == policy_head else 1.0) / math.sqrt(math.prod(shape[1:]))
        weights[name] = rng.uniform(-bound, bound, shape).astype(np.float32)
        weights[name.replace("weight", "bias")] = rng.uniform(-bound, bound, shape[0]).astype(np.float32)
    if workload.continuous:
        weights["log_std"] = np.zeros(workload.num_actions, np.float32)
    return weights


def rollout(workload: Workload, seed: int = 1) -> dict[str, np.ndarray]:
    """Columns [batch, ...] of a rollout by a policy close to the initial one, so that ratios are near 1, not 1."""
    rng = np.random.default_rng(seed)
    rows = workload.batch
    columns: dict[str, Any] = {}
    if workload.is_image:
        columns["obs"] = rng.integers(0, 256, (rows, *workload.obs_shape), dtype=np.uint8)
    else:
        columns["obs"] = rng.normal(size=(rows, *workload.obs_shape)).astype(np.float32)
    outputs = 0.02 * rng.normal(size=(rows, workload.num_actions))
    if workload.continuous:
        noise = rng.normal(size=outputs.shape)
        columns["actions"] = (outputs + noise).astype(np.float32)
        logp = -0.5 * (np.square(columns["actions"] - outputs) + math.log(2 * math.pi)).sum(-1)
        outputs = np.concatenate([outputs, np.zeros_like(outputs)], -1)
    else:
        columns["actions"] = rng.integers(0, workload.num_actions, rows)
        logits = outputs - np.log(np.exp(outputs).sum(-1, keepdims=True))
        logp = np.take_along_axis(logits, columns["actions"][:, None], 1)[:, 0]
    columns["action_logp"] = logp.astype(np.float32)
    columns["action_dist_inputs"] = outputs.astype(np.float32)
    values = 0.1 * rng.normal(size=rows)
    advantages = rng.normal(size=rows)
    columns["vf_preds"] = values.astype(np.float32)
    columns["advantages"] = advantages.astype(np.float32)
    columns["value_targets"] = (values + advantages).astype(np.float32)
    return columns


def first_rows(columns: dict[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
    """The first ``rows`` rows: one minibatch, on which all peers must find the same loss."""
    return {name: column[:rows] for name, column in columns.items()}
