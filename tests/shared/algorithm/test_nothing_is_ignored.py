"""What a user sets, and what a user's module returns, is heard or refused: never ignored in silence."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

import learner_core as lc
from learner_core.cli.main import main
from learner_core.errors import BatchError, ConfigError, SpaceError
from learner_core.learning.actor_critic import ActorCriticModule

from support.algorithms import small_ppo
from support.parallel_envs import make_signals
from support.told import Watched, make_told, told


@pytest.mark.fast_on_torch
def test_train_saves_as_often_as_it_is_told(training_backend_name: str, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    with told("ppo", training_backend_name).checkpointing(every=2, keep=2, folder=folder).build() as algo:
        for _ in range(6):
            algo.train()
    assert sorted(os.listdir(folder)) == ["checkpoint-00000004.lcstate", "checkpoint-00000006.lcstate"]
    with lc.Algorithm.from_checkpoint(folder / "checkpoint-00000006.lcstate", env=make_told) as again:
        again.set_config(checkpoint_every=1)
        again.train()
    assert sorted(os.listdir(folder)) == ["checkpoint-00000006.lcstate", "checkpoint-00000007.lcstate"]
    # A file that lies elsewhere does not choose where files are written.
    os.rename(folder / "checkpoint-00000007.lcstate", tmp_path / "moved")
    with lc.Algorithm.from_checkpoint(tmp_path / "moved", env=make_told) as moved:
        assert moved.config.checkpoint_folder is None
        with pytest.warns(UserWarning, match="saves nothing without a folder"):
            moved.train()
    # Nor is another run's folder written into.
    with told("ppo", training_backend_name).checkpointing(every=1, folder=folder).build() as other:
        with pytest.raises(ConfigError, match="later iteration than this run, which is at 0"):
            other.train()
        assert other.iteration == 0


def test_saving_without_a_folder_is_said_once(training_backend_name: str) -> None:
    with told("ppo", training_backend_name).checkpointing(every=1, keep=3).build() as algo:
        with pytest.warns(UserWarning, match=r"checkpointing\(every=1, keep=3\): train\(\) saves nothing"):
            algo.train()
        algo.train()  # a second warning would be an error
    with pytest.raises(ConfigError, match="says where to save and not when"):
        told("ppo", training_backend_name).checkpointing(folder="x").build()


def test_the_command_line_has_a_folder_of_its_own(training_backend_name: str, tmp_path: Path, capsys: Any) -> None:
    words = ["train", "ppo", "--env", "CartPole-v1", "--backend", training_backend_name, "--out", str(tmp_path / "run")]
    assert main([*words, "--set", "checkpoint_every=1", "--set", f"checkpoint_folder={tmp_path}"]) == 2
    assert "the run's folder, which --out names" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("space", "model", "message"),
    [
        ({}, {"conv_filters": [[4, 3, 2]]}, "conv_filters.*needs an image"),
        ({"obs": "dict"}, {"conv_filters": [[4, 3, 2]]}, "conv_filters.*needs an image"),
        ({}, {"conv_activation": "relu"}, "conv_activation.*needs an image"),
        ({"obs": "image"}, {"conv_filters": [], "conv_activation": "relu"}, "no convolutions"),
        ({}, {"recurrent_size": 8}, "recurrent_size.*needs 'recurrent'"),
        ({}, {"free_log_std": True}, "no log_std"),
        ({}, {"log_std_init": -1.0}, "log_std_init.*needs"),
        ({"actions": "bounded"}, {"log_std_init": -1.0, "free_log_std": False}, "log_std_init.*needs"),
    ],
)
def test_a_network_setting_without_a_use_is_refused(
    training_backend_name: str, space: dict[str, str], model: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        small_ppo(training_backend_name, **space).rl_module(model={"hidden": [4], **model}).build()


def test_none_says_that_there_are_no_convolutions_to_choose(training_backend_name: str) -> None:
    small_ppo(training_backend_name).rl_module(model={"hidden": [4], "conv_filters": None}).build().stop()


class Stubborn(ActorCriticModule):
    """Acts on its own: always 1, of which it says that the log-probability is -0.25."""

    logp: float | None = -0.25
    keeps_inputs = True

    def forward_exploration(self, params: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
        xp, out = self.xp, self.forward_train(params, batch)
        ones = xp.ones_like(out["vf_preds"])
        out["actions"] = xp.astype(ones, xp.int64)
        if self.logp is not None:
            out["action_logp"] = ones * self.logp
        return out if self.keeps_inputs else {name: out[name] for name in ("actions", "vf_preds")}


class Silent(Stubborn):
    """Does not say how likely its actions were."""

    logp = None


class WithoutActions(ActorCriticModule):
    """Says how likely actions were that it does not name."""

    def forward_exploration(self, params: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
        out = self.forward_train(params, batch)
        return {**out, "action_logp": out["vf_preds"]}


class OutOfSpace(Stubborn):
    """Acts outside of the space."""

    def forward_exploration(self, params: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
        out = super().forward_exploration(params, batch)
        return {**out, "actions": out["actions"] * 7}


def _with_module(module: Any, backend: str, inference: str) -> Any:
    return told("ppo", backend).rl_module(rl_module_spec=lc.RLModuleSpec(module)).env_runners(inference=inference)


@pytest.mark.parametrize("inference", ["numpy", "backend"])
@pytest.mark.parametrize("module", [Stubborn, Silent])
def test_a_modules_own_actions_are_taken(training_backend_name: str, module: Any, inference: str) -> None:
    with _with_module(module, training_backend_name, inference).build() as algo:
        watched = Watched(algo)
        algo.train()
        columns = watched.fragments[0].columns
        assert (watched.take() == 1).all()
        if module is Stubborn:
            assert (columns["action_logp"] == -0.25).all()
        else:
            inputs = columns["action_dist_inputs"].astype(np.float64)
            expected = inputs[..., 1] - np.log(np.exp(inputs).sum(-1))
            np.testing.assert_allclose(columns["action_logp"], expected, atol=1e-5)
        # forward_inference is forward_train here, which leaves actions to the distribution.
        assert algo.evaluate(1)["num_episodes"] == 1


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [(WithoutActions, ConfigError, "'actions'"), (OutOfSpace, BatchError, r"actions must be in Discrete\(2\)")],
)
def test_own_actions_that_cannot_be_taken_are_refused(
    training_backend_name: str, module: Any, error: Any, message: str
) -> None:
    with _with_module(module, training_backend_name, "numpy").build() as algo, pytest.raises(error, match=message):
        algo.train()


def test_settings_of_the_algorithms_network_beside_a_users_own_are_refused(training_backend_name: str) -> None:
    config = told("ppo", training_backend_name).rl_module(
        rl_module_spec=lc.RLModuleSpec(_network(training_backend_name))
    )
    with pytest.raises(ConfigError, match=r"RLModuleSpec\(model=\.\.\.\)"):
        config.build()


def _network(backend: str) -> Any:
    if backend == "torch":
        import torch

        return lambda: torch.nn.Linear(2, 2)
    import keras

    return lambda: keras.layers.Dense(2)


def test_a_shared_setting_counts_for_the_modules_that_have_a_use_for_it(training_backend_name: str) -> None:
    config = told("ppo", training_backend_name).environment(make_signals, env_config={})
    specs = {
        "speaker": lc.RLModuleSpec(model={"hidden": [3]}),
        "listener": lc.RLModuleSpec(),
    }
    config.multi_agent(policies=specs).rl_module(model={"hidden": [4], "log_std_init": -1.0})
    with pytest.raises(ConfigError, match="log_std_init"):  # nobody has
        config.build()


RECURRENT = {"hidden": [3], "recurrent": "gru", "recurrent_size": 3}


@pytest.mark.parametrize("setting", ["max_seq_len", "burn_in"])
def test_settings_of_a_memory_need_a_module_that_has_one(training_backend_name: str, setting: str) -> None:
    def config(model: Any) -> Any:
        found = told("ppo", training_backend_name, **{"max_seq_len": 5, setting: 2}).rl_module(model=model)
        return found.training(minibatch_size=None, train_batch_size=20)

    words = f"{setting}=2 would have no effect: it needs a module with a memory"
    with pytest.raises(ConfigError, match=words):
        config({"hidden": [3]}).training(max_seq_len=2 if setting == "max_seq_len" else 16).build()
    config(RECURRENT).build_learner()
    # Known when modules are built: a stored setting that never counted opens, and is refused when it is set in a run.
    stored = told("ppo", training_backend_name).training(**{setting: 2}).to_dict()
    learner = lc.AlgorithmConfig.from_dict(stored, env=make_told).build_learner()
    with pytest.raises(ConfigError, match=words):
        learner.set_config(**{setting: 2})
    learner.set_config(lr=0.1)
    assert learner.config.lr == 0.1


@pytest.mark.slow
def test_learners_in_processes_say_it_too(training_backend_name: str) -> None:
    config = told("ppo", training_backend_name, max_seq_len=5, burn_in=2).learners(num_learners=1)
    with pytest.raises(ConfigError, match="would have no effect: it needs a module with a memory"):
        config.build_learner_group()


def test_a_run_keeps_what_it_switches_off(training_backend_name: str, tmp_path: Path) -> None:
    with told("ppo", training_backend_name, kl_target=0.05).build() as algo:
        algo.set_config(use_kl_loss=False)
        with pytest.raises(ConfigError, match=r"kl_target=0\.07 would have no effect: it needs use_kl_loss=True"):
            algo.set_config(kl_target=0.07)
        assert algo.config.kl_target == 0.05
        assert "kl_coeff" not in algo.train()["learners"]["default_policy"]
        algo.save(tmp_path / "checkpoint")
    with lc.Algorithm.from_checkpoint(tmp_path / "checkpoint", env=make_told) as again:
        again.set_config(use_kl_loss=True)
        assert again.config.kl_target == 0.05
        assert "kl_coeff" in again.train()["learners"]["default_policy"]
        again.set_config(kl_target=0.07, use_kl_loss=True)


@pytest.mark.parametrize("setting", ["policies_to_train", "settings"])
def test_a_module_that_there_is_not_is_named_without_policies_too(training_backend_name: str, setting: str) -> None:
    value: Any = ["typo"] if setting == "policies_to_train" else {"typo": {"lr": 0.1}}
    with pytest.raises(ConfigError, match=r"unknown module_id 'typo'\. There is: default_policy"):
        told("ppo", training_backend_name).multi_agent(**{setting: value}).build()


def test_spaces_beside_an_environment_that_has_others(training_backend_name: str) -> None:
    with pytest.raises(SpaceError, match=r"action_space=Discrete\(7\)\): the environment has Discrete\(2\), which"):
        told("ppo", training_backend_name).environment(action_space=spaces.Discrete(7)).build()
    told("ppo", training_backend_name).environment(action_space=spaces.Discrete(2)).build().stop()
    own = told("ppo", training_backend_name).environment(make_signals, env_config={}, action_space=spaces.Discrete(2))
    with pytest.raises(SpaceError, match="the environment has the spaces of its agents"):
        own.multi_agent(policies=["speaker", "listener"]).build()
    alone = told("ppo", training_backend_name).environment(None, env_config={}, action_mask_in_info=True)
    alone.environment(observation_space=spaces.Box(-1, 1, (2,)), action_space=spaces.Discrete(2))
    with pytest.raises(ConfigError, match="action_mask_in_info=True: the spaces are given by hand"):
        alone.build_learner()
