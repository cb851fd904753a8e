"""A run that was stopped and taken up computes what one that never stopped does."""

from __future__ import annotations

from typing import Any

import pytest

import learner_core as lc
from learner_core_algorithms import PPOConfig, SACConfig

from support.algorithms import assert_same, small_sac
from support.sampling_envs import SelfSamplingGame, make_self_sampling
from support.told import told


def _ppo(backend: str) -> Any:
    return (
        PPOConfig()
        .environment("CartPole-v1")
        .framework(backend, compile=False)
        .env_runners(num_envs_per_env_runner=2, normalize_observations=True)
        .training(train_batch_size=40, minibatch_size=16, num_epochs=2, lr=[[0, 1e-3], [200, 1e-4]])
        .rl_module(model={"hidden": [8]})
    )


def _sac(backend: str) -> Any:
    return (
        SACConfig()
        .environment("Pendulum-v1")
        .framework(backend, compile=False)
        .training(train_batch_size=8, learning_starts=20, timesteps_per_iteration=15, buffer_capacity=40)
        .rl_module(model={"hidden": [8], "activation": "relu"})
    )


@pytest.mark.parametrize(
    "make", [pytest.param(_ppo, id="ppo"), pytest.param(_sac, id="sac", marks=pytest.mark.fast_on_torch)]
)
@pytest.mark.parametrize("stop_after", [1, 3])
def test_resuming_is_bit_identical(training_backend_name: str, make: Any, stop_after: int, tmp_path: Any) -> None:
    with make(training_backend_name).build() as algo:
        for _ in range(stop_after):
            algo.train()
        algo.save(tmp_path / "checkpoint")
        for _ in range(2):
            last = algo.train()
        uninterrupted = algo.get_state()
    with lc.Algorithm.from_checkpoint(tmp_path / "checkpoint") as again:
        for _ in range(2):
            resumed_last = again.train()
        resumed = again.get_state()
    assert_same(uninterrupted, resumed)
    assert last["learners"] == resumed_last["learners"]
    assert last["env_runners"] == resumed_last["env_runners"]


@pytest.mark.fast_on_torch
@pytest.mark.parametrize("several", [False, True], ids=["one agent", "several"])
@pytest.mark.parametrize("num_env_runners", [0, 1])
def test_environments_that_sample_from_their_spaces_go_on_exactly(
    training_backend_name: str, several: bool, num_env_runners: int, tmp_path: Any
) -> None:
    config = (
        PPOConfig()
        .environment(SelfSamplingGame if several else make_self_sampling)
        .framework(training_backend_name, compile=False)
        .env_runners(num_env_runners=num_env_runners, num_envs_per_env_runner=2)
        .training(train_batch_size=18, minibatch_size=9, num_epochs=1)
        .rl_module(model={"hidden": [4]})
    )
    if several:
        config.multi_agent(policies=["m"])
    with config.build() as algo:
        algo.train()
        assert algo.runner.env_state == "exact"
        algo.save(tmp_path / "checkpoint")
        algo.train()
        uninterrupted = algo.get_state()
    with lc.Algorithm.from_checkpoint(tmp_path / "checkpoint", env=config.env) as again:
        again.train()
        assert_same(uninterrupted, again.get_state())
    with config.build() as another:  # and the seed says what they draw
        another.train()
        another.train()
        assert_same(uninterrupted, another.get_state())


def test_restore_obeys_an_older_state(training_backend_name: str, tmp_path: Any) -> None:
    with _ppo(training_backend_name).build() as algo:
        algo.train()
        algo.save(tmp_path / "old")
        old = algo.get_state()
        algo.train()
        algo.restore(tmp_path / "old")
        assert_same(old, algo.get_state())


def test_a_callable_environment_must_be_given_again_or_be_importable(training_backend_name: str, tmp_path: Any) -> None:
    config = small_sac(training_backend_name)
    config.environment(lambda env_config: small_sac(training_backend_name).env(env_config))
    with config.build() as algo:
        algo.save(tmp_path / "checkpoint")
    with pytest.raises(lc.ConfigError, match="env"):
        lc.Algorithm.from_checkpoint(tmp_path / "checkpoint")


def test_a_learner_state_is_no_checkpoint(training_backend_name: str, tmp_path: Any) -> None:
    with _ppo(training_backend_name).build() as algo:
        algo.learner_group.save_state(tmp_path / "learner")
        with pytest.raises(lc.StateError, match="no checkpoint of an Algorithm"):
            algo.restore(tmp_path / "learner")


@pytest.mark.fast_on_torch
@pytest.mark.parametrize("kind", ["sac", "appo"])
def test_an_iteration_is_as_long_as_ever_whatever_the_runners_have_counted(
    training_backend_name: str, kind: str
) -> None:
    """The run's own count is what counts: that of its runners starts anew with other runners."""
    config = small_sac(training_backend_name) if kind == "sac" else told("appo", training_backend_name)
    with config.build() as algo:
        steps = algo.train()["num_env_steps_sampled_lifetime"]
        state = algo.get_state()
        for lifetime in (0, steps + 1000, 2**40):
            algo.set_state({**state, "algorithm": {**state["algorithm"], "num_env_steps_sampled_lifetime": lifetime}})
            assert algo.get_state()["algorithm"]["num_env_steps_sampled_lifetime"] == lifetime
            sampled = algo.train()["num_env_steps_sampled_lifetime"] - lifetime
            assert config.timesteps_per_iteration <= sampled <= 2 * config.timesteps_per_iteration
        algo.set_state(state)
        assert algo.get_state()["algorithm"]["num_env_steps_sampled_lifetime"] == steps
