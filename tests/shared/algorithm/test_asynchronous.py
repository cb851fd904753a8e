"""The loop of IMPALA and APPO without processes: deterministic, resumed bit for bit, every step accounted for."""

from __future__ import annotations

from typing import Any

import pytest

import learner_core as lc
from learner_core_algorithms import APPOConfig, IMPALAConfig

from support.algorithms import assert_same, make_random_env


def small(config: Any, backend: str, **training: Any) -> Any:
    """Fragments of five steps of three lanes, batches of four sequences."""
    return (
        config.environment("CartPole-v1")
        .framework(backend, compile=False)
        .env_runners(num_envs_per_env_runner=3, rollout_fragment_length=5)
        .training(**{"train_batch_size": 20, "timesteps_per_iteration": 45, "lr": [[0, 1e-2], [300, 1e-3]], **training})
        .rl_module(model={"hidden": [8]})
    )


def impala(backend: str) -> Any:
    return small(IMPALAConfig(), backend, broadcast_interval=3)


def appo(backend: str) -> Any:
    return small(
        APPOConfig(), backend, circular_buffer_num_batches=3, use_kl_loss=True, target_network_update_freq=0.5, tau=0.5
    )


@pytest.mark.parametrize("make", [impala, appo])
def test_resuming_is_bit_identical(training_backend_name: str, make: Any, tmp_path: Any) -> None:
    with make(training_backend_name).build() as algo:
        for _ in range(2):
            algo.train()
        algo.save(tmp_path / "checkpoint")
        algo.evaluate(1)  # does not disturb
        for _ in range(3):
            last = algo.train()
        uninterrupted = algo.get_state()
    with lc.Algorithm.from_checkpoint(tmp_path / "checkpoint") as again:
        again.evaluate(1)
        for _ in range(3):
            resumed_last = again.train()
        resumed = again.get_state()
    assert_same(uninterrupted, resumed)
    assert last["learners"] == resumed_last["learners"]
    assert last["env_runners"] == resumed_last["env_runners"]


def test_every_step_is_learned_from_once(training_backend_name: str) -> None:
    with impala(training_backend_name).build() as algo:
        for _ in range(4):
            throughput = algo.train()["throughput"]
            waiting = algo.get_extra_state()["waiting"]["default_policy"]["batch"]
            rows = 0 if waiting is None else waiting["loss_mask"].sum()
            trained = throughput["num_env_steps_trained_lifetime"]
            assert algo.num_env_steps_sampled_lifetime == trained + rows
        assert throughput["num_updates_lifetime"] == algo.learner_group.get_state()["counters"]["num_updates"]
        assert throughput["num_env_steps_dropped_lifetime"] == throughput["queue_depth"] == 0
        assert 0 < throughput["learner_utilization"] <= 1


def test_lag_is_counted_in_updates(training_backend_name: str) -> None:
    """Weights go out after every third update; the sequences of a fragment may become parts of two batches."""
    config = small(IMPALAConfig(), training_backend_name, broadcast_interval=3, timesteps_per_iteration=200)
    config.env_runners(num_envs_per_env_runner=4).environment(make_random_env, env_config={"obs": "box"})
    with config.build() as algo:
        throughput = algo.train()["throughput"]
        # A fragment is a batch: updates 0, 1, 2 with weights 0, then 3, 4, 5 with weights 3, ...: ten of them.
        assert throughput["num_updates"] == 10
        assert throughput["policy_lag_max"] == 2
        assert throughput["policy_lag_mean"] == pytest.approx((3 * (0 + 1 + 2) + 0) / 10)
        assert throughput["num_broadcasts_lifetime"] == 3


def test_circular_replay_uses_each_batch_as_often_as_configured(training_backend_name: str) -> None:
    config = small(APPOConfig(), training_backend_name, circular_buffer_num_batches=2, timesteps_per_iteration=200)
    config.env_runners(num_envs_per_env_runner=4).environment(make_random_env, env_config={"obs": "box"})
    with config.build() as algo:
        results = algo.train()
        stored = algo.get_extra_state()["replay"]["batches"]
        left = sum(uses * batch["default_policy"]["loss_mask"].sum() for batch, _, uses in stored)
        assert results["throughput"]["num_env_steps_trained_lifetime"] == 2 * 200 - left
        assert results["learners"]["default_policy"]["num_minibatch_steps"] == results["throughput"]["num_updates"]


def test_nothing_to_train_is_said(training_backend_name: str) -> None:
    config = small(IMPALAConfig(), training_backend_name).multi_agent(policies_to_train=[])
    with config.build() as algo:
        results = algo.train()
        assert results["learners"] == {"__all__": {"num_modules_updated": 0.0}}
        assert results["num_env_steps_sampled_lifetime"] >= 45
