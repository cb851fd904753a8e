"""The two updates that are measured, and the loop that a peer serves. Needs numpy only."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["WORKS", "Work", "batch", "memory_mb", "serve"]


@dataclasses.dataclass(frozen=True)
class Work:
    """One update of PPO: separate tanh actor and critic, discrete actions.

    Attributes:
        name: as in the table.
        obs, actions, hidden: of the networks.
        batch, minibatch, epochs: of the update; ``minibatch`` is that of all learners together.
        rounds: updates of each peer.
    """

    name: str
    obs: int
    actions: int
    hidden: tuple[int, ...]
    batch: int
    minibatch: int
    epochs: int
    rounds: int

    @property
    def num_steps(self) -> int:
        """Minibatch steps of an update."""
        return self.epochs * self.batch // self.minibatch


WORKS = {
    w.name: w
    for w in (
        Work("20k", 4, 2, (96, 96), batch=4096, minibatch=1024, epochs=2, rounds=40),
        Work("20M", 376, 17, (2960, 2960), batch=256, minibatch=128, epochs=1, rounds=6),
    )
}


def batch(work: Work) -> dict[str, np.ndarray]:
    """Columns [batch, ...] of a rollout; advantages are standardised, so that no peer has to."""
    rng = np.random.default_rng(1)
    rows = work.batch
    logits = 0.02 * rng.normal(size=(rows, work.actions))
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    actions = rng.integers(0, work.actions, rows)
    advantages = rng.normal(size=rows)
    columns = {
        "obs": rng.normal(size=(rows, work.obs)),
        "action_logp": np.take_along_axis(logp, actions[:, None], 1)[:, 0],
        "action_dist_inputs": logits,
        "advantages": (advantages - advantages.mean()) / advantages.std(),
        "value_targets": rng.normal(size=rows),
        "vf_preds": rng.normal(size=rows),
    }
    return {**{name: value.astype(np.float32) for name, value in columns.items()}, "actions": actions}


def memory_mb(pid: int) -> dict[str, float]:
    """Resident memory of a process, and its share of it (pages that several have count in parts)."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        for name in ("Rss", "Pss"):
            if line.startswith(f"{name}:"):
                found[name.lower()] = float(line.split()[1]) / 1024
    return found


def serve(peer: Any) -> None:
    """Answer lines on standard input: {"do": name of a method, ...arguments}; what is printed goes to stderr."""
    out, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        request = json.loads(line)
        began = time.perf_counter()
        answer = getattr(peer, request.pop("do"))(**request) or {}
        answer.setdefault("seconds", time.perf_counter() - began)
        out.write(json.dumps(answer) + "\n")
        out.flush()
    peer.close()
