"""IMPALA and APPO with several agents, agents that come and go, recurrent modules, and every kind of action."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import learner_core as lc
from learner_core_algorithms import APPOConfig, IMPALAConfig

from support.algorithms import make_random_env
from support.learners import assert_states_equal
from support.parallel_envs import make_crossing, make_signals


def small(config: Any, backend: str, **training: Any) -> Any:
    """Fragments of five steps of two environments, batches of four sequences."""
    return (
        config.framework(backend, compile=False)
        .env_runners(num_envs_per_env_runner=2, rollout_fragment_length=5)
        .training(**{"train_batch_size": 20, "timesteps_per_iteration": 60, **training})
        .rl_module(model={"hidden": [8]})
    )


def test_two_modules_learn(training_backend_name: str) -> None:
    config = small(IMPALAConfig(), training_backend_name).environment(make_signals)
    config.multi_agent(policies={"speaker": lc.RLModuleSpec(model={"hidden": [4]}), "listener": None})
    with config.build() as algo:
        before = algo.learner_group.get_weights()
        results = algo.train()
        after = algo.learner_group.get_weights()
    for module_id in ("speaker", "listener"):
        assert results["learners"][module_id]["num_minibatch_steps"] > 0
        # No lag, so pi is mu: sequences, actions and log-probabilities belong together.
        assert results["learners"][module_id]["behaviour_kl"] < 1e-3
        assert any(not np.array_equal(before[module_id][n], after[module_id][n]) for n in before[module_id])


@pytest.mark.fast_on_torch
def test_agents_that_come_and_go_and_a_frozen_module(training_backend_name: str, tmp_path: Any) -> None:
    config = small(APPOConfig(), training_backend_name, circular_buffer_num_batches=2).environment(make_crossing)
    config.multi_agent(policies=["m", "old"], policy_mapping_fn=_sides, policies_to_train=["m"])
    with config.build() as algo:
        before = algo.learner_group.get_weights()
        for _ in range(2):
            results = algo.train()
        algo.save(tmp_path / "checkpoint")
        state = algo.get_state()
        after = algo.learner_group.get_weights()
    assert results["learners"]["m"]["num_minibatch_steps"] > 0
    assert results["learners"]["m"]["num_nonfinite_steps"] == 0
    assert_states_equal(before["old"], after["old"])
    with lc.Algorithm.from_checkpoint(tmp_path / "checkpoint", policy_mapping_fn=_sides, env=make_crossing) as again:
        restored = again.get_state()["extra"]
    assert restored["throughput"] == state["extra"]["throughput"]
    assert_states_equal(restored["waiting"]["m"]["batch"] or {}, state["extra"]["waiting"]["m"]["batch"] or {})


def _sides(agent: str, episode: int) -> str:
    return "old" if agent == "a" and episode % 2 else "m"


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_recurrent_module(training_backend_name: str, kind: str) -> None:
    """The state travels from fragment to fragment: with one batch per fragment and no lag, pi is mu to round-off."""
    config = small(IMPALAConfig(), training_backend_name, train_batch_size=10, lr=0.05).environment("CartPole-v1")
    config.rl_module(model={"hidden": [4], "recurrent": kind, "recurrent_size": 4})
    with config.build() as algo:
        learners = algo.train()["learners"]["default_policy"]
    assert learners["num_minibatch_steps"] >= 6
    assert learners["behaviour_kl"] < 1e-10
    assert learners["mean_rho"] == pytest.approx(1.0, abs=1e-5)
    assert learners["gradient_norm"] > 0


@pytest.mark.parametrize("actions", ["multi_discrete", "multi_binary", "bounded"])
def test_every_kind_of_action(training_backend_name: str, actions: str) -> None:
    config = small(APPOConfig(), training_backend_name, circular_buffer_num_batches=1, use_kl_loss=True)
    config.environment(make_random_env, env_config={"obs": "dict", "actions": actions})
    with config.build() as algo:
        learners = algo.train()["learners"]["default_policy"]
    assert learners["num_minibatch_steps"] > 0 and learners["num_nonfinite_steps"] == 0
