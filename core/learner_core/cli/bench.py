"""``learner-core bench``: how fast an update is on this machine, on every installed backend.

The full, paired comparison with other libraries needs the repository: ``make bench``.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import learner_core as lc
from learner_core.plugins import discovery

from .console import number, table
from .quiet import without_startup_messages

__all__ = ["run"]


def run(arguments: list[str]) -> int:
    """Run the subcommand; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="learner-core bench",
        description="Measure PPO's update in one thread: 4 observations, 2 actions, two 64x64 networks, 4096 rows. "
        "The comparison with other libraries is `make bench` in the repository.",
    )
    parser.add_argument("--backend", metavar="NAME", default="torch", help="default torch; one per call")
    parser.add_argument("--minibatch-size", type=int, default=64, metavar="N", help="rows per step (default 64)")
    parser.add_argument("--updates", type=int, default=10, metavar="N", help="updates to measure (default 10)")
    parser.add_argument("--debug", action="store_true", help="a traceback when something is refused")
    given = parser.parse_args(arguments)
    if given.updates < 1:
        parser.error("--updates must be at least 1")
    print(table(_measure(given.backend, given.minibatch_size, given.updates)))
    return 0


def _measure(backend: str, minibatch_size: int, updates: int) -> list[tuple[str, str]]:
    import gymnasium

    num_rows, num_epochs = 4096, 4
    config = lc.get_config("ppo").framework(backend)
    config.training(train_batch_size=num_rows, minibatch_size=minibatch_size, num_epochs=num_epochs)
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    config.environment(None, observation_space=observation_space, action_space=gymnasium.spaces.Discrete(2))
    start = time.perf_counter()
    with without_startup_messages():
        discovery.load("learner_core.backends", backend).limit_threads(1)
        learner = config.build_learner()
    built = time.perf_counter() - start
    batch = _batch(np.random.default_rng(0), num_rows)
    times = []
    for update in range(updates + 1):
        start = time.perf_counter()
        learner.update_from_batch(batch=batch, timesteps={})
        if update:  # the first one warms up
            times.append((time.perf_counter() - start) / (num_epochs * num_rows // minibatch_size) * 1e6)
    return [
        ("backend", backend),
        ("minibatch", str(minibatch_size)),
        ("build, s", number(built)),
        ("best, us a step", number(min(times))),
        ("median, us a step", number(float(np.median(times)))),
    ]


def _batch(rng: np.random.Generator, num_rows: int) -> dict[str, np.ndarray]:
    logits = rng.normal(size=(num_rows, 2)).astype(np.float32)
    actions = rng.integers(0, 2, num_rows)
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    values = rng.normal(size=num_rows).astype(np.float32)
    return {
        "obs": rng.normal(size=(num_rows, 4)).astype(np.float32),
        "actions": actions,
        "action_dist_inputs": logits,
        "action_logp": np.take_along_axis(log_probabilities, actions[:, None], 1)[:, 0].astype(np.float32),
        "advantages": rng.normal(size=num_rows).astype(np.float32),
        "value_targets": values + rng.normal(size=num_rows).astype(np.float32),
        "vf_preds": values,
    }
