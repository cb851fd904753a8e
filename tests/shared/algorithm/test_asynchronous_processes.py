"""The asynchronous form with environment runners as processes: nothing is lost, also over a checkpoint."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

import learner_core as lc
from learner_core_algorithms import APPOConfig, IMPALAConfig


def small(config: Any, backend: str, **training: Any) -> Any:
    """Two runners; fragments of five steps of four lanes, batches of four sequences."""
    return (
        config.environment("CartPole-v1")
        .framework(backend, compile=False)
        .env_runners(num_env_runners=2, num_envs_per_env_runner=4, rollout_fragment_length=5)
        .training(**{"train_batch_size": 20, "timesteps_per_iteration": 200, **training})
        .rl_module(model={"hidden": [8]})
    )


def rows_that_wait(state: Any) -> int:
    """Timesteps of a checkpoint that were sampled and not learned from yet, as sequences or as fragments."""
    batch = state["extra"]["waiting"]["default_policy"]["batch"]
    rows = 0 if batch is None else int(batch["loss_mask"].sum())
    fragments = state["env_runners"]["fragments"]
    return rows + sum(int(np.count_nonzero(f["rollout"]["columns"]["valid"])) for f in fragments)


@pytest.mark.fast_on_torch
def test_nothing_is_lost_over_a_checkpoint(training_backend_name: str, tmp_path: Any) -> None:
    with small(IMPALAConfig(), training_backend_name, broadcast_interval=2).build() as algo:
        # How far the runners get ahead is the machine's affair; sooner or later they do.
        for _ in range(30):
            results = algo.train()
            if algo.iteration >= 3 and results["throughput"]["policy_lag_mean"] > 0:
                break
        algo.save(tmp_path / "checkpoint")
        state = lc.load_state(tmp_path / "checkpoint")["state"]
    assert results["throughput"]["policy_lag_mean"] > 0
    assert results["throughput"]["num_broadcasts_lifetime"] > 1
    kept = state["extra"]["throughput"]
    assert kept["num_updates_lifetime"] == state["learner"]["counters"]["num_updates"]
    sampled = state["env_runners"]["counts"]["num_env_steps_sampled_lifetime"]
    assert sampled == kept["num_env_steps_trained_lifetime"] + rows_that_wait(state)

    with lc.Algorithm.from_checkpoint(tmp_path / "checkpoint") as again:
        assert again.get_extra_state()["throughput"] == kept
        assert again.env_runners.weights_version == state["extra"]["sent"][0]
        throughput = again.train()["throughput"]
        after = again.get_state()
    # What waited is learned from, and ages: no lag is negative, the counters go on.
    assert throughput["num_updates_lifetime"] > kept["num_updates_lifetime"]
    counted = after["extra"]["throughput"]["num_env_steps_trained_lifetime"] + rows_that_wait(after)
    assert after["env_runners"]["counts"]["num_env_steps_sampled_lifetime"] == counted


class _Held:
    """Updates that begin once one has been dropped, or 0.03 s after the last."""

    def __init__(self, algo: Any, wait_for_drops: bool) -> None:
        self._algo, self._wait_for_drops = algo, wait_for_drops
        self._update = algo.learner_group._queue._update

    def __call__(self, **arguments: Any) -> Any:
        time.sleep(0.03)
        deadline = time.monotonic() + 60
        while self._wait_for_drops and not self._algo._throughput.num_updates_dropped_lifetime:
            assert time.monotonic() < deadline, "nothing was dropped"
            time.sleep(0.01)
        return self._update(**arguments)


@pytest.mark.fast_on_torch
@pytest.mark.parametrize("queue_full", ["block", "drop"])
def test_a_queue_that_is_full(training_backend_name: str, queue_full: str) -> None:
    """Blocking keeps every step and bounds the lag; dropping counts every step that is not learned from."""
    config = small(APPOConfig(), training_backend_name, circular_buffer_num_batches=1).learners(
        queue_full=queue_full, max_requests_in_flight_per_learner=2
    )
    with config.build() as algo:
        algo.learner_group._queue._update = _Held(algo, queue_full == "drop")
        algo.train()
        state = algo.get_state()
    kept = state["extra"]["throughput"]
    sampled = 2 * (state["env_runners"]["counts"]["num_env_steps_sampled_lifetime"] - rows_that_wait(state))
    assert sampled == kept["num_env_steps_trained_lifetime"] + kept["num_env_steps_dropped_lifetime"]
    assert (kept["num_updates_dropped_lifetime"] > 0) == (queue_full == "drop")
