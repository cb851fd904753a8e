"""Every kind of space trains through the whole Algorithm, and the loops count what they did."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import learner_core as lc

from support.algorithms import ACTIONS, OBSERVATIONS, small_ppo, small_sac


@pytest.mark.parametrize("actions", sorted(ACTIONS))
def test_ppo_trains_on_every_action_space(training_backend_name: str, actions: str) -> None:
    with small_ppo(training_backend_name, actions=actions).build() as algo:
        before = algo.learner_group.get_weights()["default_policy"]
        results = algo.train()
        after = algo.learner_group.get_weights()["default_policy"]
    assert np.isfinite(results["learners"]["default_policy"]["total_loss"])
    assert any(np.any(before[name] != after[name]) for name in before)


@pytest.mark.parametrize("obs", sorted(OBSERVATIONS))
def test_ppo_trains_on_every_observation_space(training_backend_name: str, obs: str) -> None:
    with small_ppo(training_backend_name, obs=obs).build() as algo:
        results = algo.train()
        assert results["num_env_steps_sampled_lifetime"] == 24
        assert algo.evaluate(2)["episode_return_mean"] == 5.0
    assert np.isfinite(results["learners"]["default_policy"]["total_loss"])


@pytest.mark.parametrize("obs", ["box", "dict", "image"])
def test_sac_trains_on_vectors_dicts_and_images(training_backend_name: str, obs: str) -> None:
    with small_sac(training_backend_name, obs=obs).build() as algo:
        results = algo.train()
        # 14 steps, the first 10 of them random; one gradient step for each from the tenth on.
        assert results["num_env_steps_sampled_lifetime"] == 14
        assert results["learners"]["default_policy"]["num_minibatch_steps"] == 5
        assert len(algo.replay) == 14
        results = algo.train()
        assert results["learners"]["default_policy"]["num_minibatch_steps"] == 14


def test_sac_refuses_discrete_actions(training_backend_name: str) -> None:
    with pytest.raises(lc.SpaceError, match="SAC needs a bounded Box"):
        small_sac(training_backend_name, actions="discrete").build()


def test_sac_takes_n_step_targets_and_several_environments(training_backend_name: str) -> None:
    config = small_sac(training_backend_name).training(n_step=3, updates_per_step=0.5)
    config.env_runners(num_envs_per_env_runner=2)
    with config.build() as algo:
        assert "discounts" in algo.learner_group.foreach_learner(lambda learner: learner.batch_spec())[0]
        results = algo.train()
    assert results["learners"]["default_policy"]["num_minibatch_steps"] == 3


def test_results_have_the_documented_form(training_backend_name: str) -> None:
    config = small_ppo(training_backend_name).evaluation(interval=2, num_episodes=3)
    with config.build() as algo:
        first, second = algo.train(), algo.train()
    assert first["training_iteration"] == 1
    assert "evaluation" not in first
    assert second["evaluation"]["num_episodes"] == 3
    assert second["env_runners"]["episode_return_mean"] == 5.0
    assert second["env_runners"]["num_episodes"] == 4
    assert {"sample", "learn", "sync_weights", "total"} <= set(second["timers"])


def test_normalisation_is_learned_and_saved(training_backend_name: str, tmp_path: Any) -> None:
    config = small_ppo(training_backend_name).env_runners(normalize_observations=True, normalize_rewards=True)
    with config.build() as algo:
        algo.train()
        state = algo.get_state()
        assert state["env_runner"]["observations"] is not None
        assert state["env_runner"]["rewards"] is not None
        algo.save(tmp_path / "checkpoint")
    with lc.Algorithm.from_checkpoint(tmp_path / "checkpoint", env=config.env) as again:
        np.testing.assert_equal(again.get_state()["env_runner"]["observations"], state["env_runner"]["observations"])


def test_a_stopped_algorithm_refuses(training_backend_name: str) -> None:
    algo = small_ppo(training_backend_name).build()
    algo.stop()
    algo.stop()
    with pytest.raises(lc.ConfigError, match="stopped"):
        algo.train()


def test_backend_inference_gives_the_same_actions_as_numpy(training_backend_name: str) -> None:
    rows = {}
    for inference in ("numpy", "backend"):
        config = small_ppo(training_backend_name).env_runners(inference=inference)
        with config.build() as algo:
            rows[inference] = algo.runner.sample(6).rows()
    np.testing.assert_array_equal(rows["numpy"]["actions"], rows["backend"]["actions"])
    np.testing.assert_allclose(rows["numpy"]["vf_preds"], rows["backend"]["vf_preds"], atol=1e-6)


def test_prioritized_replay_draws_by_td_error(training_backend_name: str) -> None:
    config = small_sac(training_backend_name).training(prioritized_replay=True, priority_beta=[[0, 0.4], [100, 1.0]])
    with config.build() as algo:
        algo.train()
        state = algo.replay.get_state()["priorities"]
        assert len(np.unique(state[state > 0])) > 1
        batch = algo.replay.sample(8, 0)
        indices = batch.pop("indices")
        errors = algo.learner_group.foreach_learner(lambda learner: learner.td_errors(batch))[0]
        assert errors.shape == (8,)
        assert (errors >= 0).all()
        algo.replay.update_priorities(indices, np.where(indices == indices[0], 1e9, 1e-9))
        assert (algo.replay.sample(8, 1)["indices"] == indices[0]).all()
