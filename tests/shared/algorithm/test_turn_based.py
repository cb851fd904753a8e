"""Turn-based games through a configuration: trained with default settings, saved in mid-game, taken up exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import learner_core as lc
from learner_core_algorithms import IMPALAConfig, PPOConfig

from support.learners import states_differ
from support.turn_envs import make_duel, make_masked_duel


def ppo(backend: str, **environment: Any) -> Any:
    config = PPOConfig().training(train_batch_size=30, minibatch_size=16, num_epochs=2)
    return _duels(config, backend, **environment)


def impala(backend: str, **environment: Any) -> Any:
    config = IMPALAConfig().training(train_batch_size=40, timesteps_per_iteration=60)
    config.env_runners(rollout_fragment_length=10)
    return _duels(config, backend, **environment)


def _duels(config: Any, backend: str, env: Any = make_duel, length: int = 7, **environment: Any) -> Any:
    config.environment(env, env_config={"length": length}, **environment).framework(backend)
    config.multi_agent(policies=["a", "b"]).rl_module(model={"hidden": [4]})
    return config.env_runners(num_envs_per_env_runner=3).debugging(seed=3)


@pytest.mark.fast_on_torch
@pytest.mark.parametrize("make", [ppo, impala])
def test_default_runs_train_both_sides(training_backend_name: str, make: Any) -> None:
    with make(training_backend_name).build() as algo:
        before = algo.learner_group.get_weights()
        for _ in range(3):
            results = algo.train()
        after = algo.learner_group.get_weights()
        for side in ("a", "b"):
            assert any(not np.array_equal(before[side][name], value) for name, value in after[side].items())
        # Of seven turns a has four: 20 + 40 + 60 for b's, 100 at last; b is paid 10 + 30 + 50 + 70 and loses 100.
        assert results["env_runners"]["agent_episode_return_mean"] == {"a": 220.0, "b": 60.0}
        assert results["env_runners"]["episode_len_mean"] == 7
        assert algo.evaluate(3)["agent_episode_return_mean"] == {"a": 220.0, "b": 60.0}


@pytest.mark.parametrize("processes", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("make", [ppo, pytest.param(impala, marks=pytest.mark.slow)])
def test_a_run_saved_while_players_wait_goes_on_exactly(
    training_backend_name: str, make: Any, processes: int, tmp_path: Path
) -> None:
    if make is impala and processes:
        pytest.skip("an asynchronous run with runner processes is not repeatable")
    config = make(training_backend_name).env_runners(num_env_runners=processes)
    config.framework(training_backend_name, compile=False)
    with config.build() as algo:
        algo.train()
        path = tmp_path / "run.lcstate"
        algo.save(path)
        for _ in range(2):
            expected = algo.train()
        state = algo.learner_group.get_state()
    saved = lc.load_state(path)
    assert '"waiting"' in repr(saved).replace("'", '"')
    with lc.Algorithm.from_checkpoint(path, env=make_duel) as algo:
        for _ in range(2):
            found = algo.train()
        assert not states_differ(state, algo.learner_group.get_state())
        assert found["env_runners"]["episode_return_mean"] == expected["env_runners"]["episode_return_mean"]


def test_masks_of_a_turn_based_environment(training_backend_name: str) -> None:
    """The environment asserts that no forbidden action is taken."""
    config = ppo(training_backend_name, env=make_masked_duel, action_mask_in_info=True)
    with config.framework(training_backend_name, compile=False).build() as algo:
        algo.train()
        assert algo.evaluate(2)["num_episodes"] == 2


def test_tic_tac_toe_by_name(training_backend_name: str) -> None:
    config = PPOConfig().environment("pettingzoo:classic/tictactoe_v3").framework(training_backend_name, compile=False)
    config.training(train_batch_size=60, minibatch_size=30, num_epochs=1).rl_module(model={"hidden": [8]})
    with config.env_runners(num_envs_per_env_runner=4).build() as algo:
        results = algo.train()
        assert 5 <= results["env_runners"]["episode_len_mean"] <= 9
        returns = results["env_runners"]["agent_episode_return_mean"]
        assert returns["player_1"] == -returns["player_2"]
