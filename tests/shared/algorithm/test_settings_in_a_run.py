"""Settings that are changed in a run count everywhere at once, a checkpoint carries them, and the rest is refused."""

from __future__ import annotations

import enum
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import learner_core as lc
from learner_core.cli.main import main
from learner_core.cli.settings import read_file
from learner_core.errors import ConfigError

from support.parallel_envs import make_signals
from support.told import Batches, make_told, told, told_to

#: What a reward of 1 at each of five steps is worth, discounted by a half.
HALVES = [1.0, 1.5, 1.75, 1.875, 1.9375]


def _by_algorithm(algo: Any, **settings: Any) -> None:
    algo.set_config(**settings)


def _by_group(algo: Any, **settings: Any) -> None:
    algo.learner_group.set_config(**settings)


def _by_learner(algo: Any, **settings: Any) -> None:
    algo.learner_group.foreach_learner(methodcaller("set_config", **settings))


WAYS = pytest.mark.parametrize("change", [_by_algorithm, _by_group, _by_learner], ids=["algorithm", "group", "learner"])


@WAYS
def test_the_discount_reaches_advantages_and_checkpoints(
    training_backend_name: str, change: Any, tmp_path: Path
) -> None:
    with told("ppo", training_backend_name, use_critic=False, normalize_advantages="off").build() as algo:
        batches = Batches(algo)
        algo.set_weights(told_to(algo.learner_group.get_weights(), 1.0))
        algo.train()
        assert batches.targets()[:2] == pytest.approx([1.0, 1.99])
        change(algo, gamma=0.5)
        algo.train()
        assert batches.targets() == HALVES
        change(algo, gamma=0.25)
        algo.save(tmp_path / "checkpoint")
        assert algo.config.gamma == 0.25
    env = algo.config.env
    with lc.Algorithm.from_checkpoint(tmp_path / "checkpoint", env=env) as again:
        assert again.config.gamma == 0.25
        assert again.learner_group.learner_settings()["gamma"] == 0.25
        batches = Batches(again)
        again.train()
        assert batches.targets()[:2] == [1.0, 1.25]


def test_lambda_sizes_and_fragments(training_backend_name: str) -> None:
    with told("ppo", training_backend_name).build() as algo:
        batches = Batches(algo)
        algo.train()
        algo.set_config(lambda_=0.0, train_batch_size=40, rollout_fragment_length=10, minibatch_size=20, num_epochs=3)
        results = algo.train()
        # One-step errors: what follows is the value of the next row, where the episode goes on.
        batch = batches.seen[-1]
        assert len(batch["rewards"]) == 40 and results["learners"]["default_policy"]["num_minibatch_steps"] == 6
        going_on = ~batch["terminateds"][:-1]
        expected = batch["rewards"][:-1] + 0.99 * batch["vf_preds"][1:] - batch["vf_preds"][:-1]
        np.testing.assert_allclose(batch["advantages"][:-1][going_on], expected[going_on], atol=1e-5)


def test_samplers_in_processes_follow(training_backend_name: str) -> None:
    config = told("ppo", training_backend_name).env_runners(num_env_runners=2, normalize_rewards=True)
    with config.build() as algo:
        algo.train()
        algo.set_config(gamma=0.5)
        assert algo.env_runners.foreach_runner(lambda runner: runner._scaler.gamma) == [0.5, 0.5]
        assert algo.runner._scaler.gamma == 0.5
        algo.learner_group.set_config(gamma=0.25)
        algo.train()
        assert algo.env_runners.foreach_runner(lambda runner: runner._scaler.gamma) == [0.25, 0.25]


@pytest.mark.fast_on_torch
def test_replay_looks_ahead_as_far_as_it_is_told(training_backend_name: str) -> None:
    with told("sac", training_backend_name).build() as algo:
        algo.set_weights(told_to(algo.learner_group.get_weights(), 1.0))
        for _ in range(5):
            algo.train()
        algo.set_config(n_step=3, gamma=0.5)
        algo.train()
        drawn = algo.replay.sample(64, 0)
        assert set(drawn["discounts"].tolist()) == {0.125, 0.25, 0.5}
        assert algo.learner_group.learner_settings()["n_step"] == 3


@pytest.mark.fast_on_torch
def test_an_asynchronous_run_follows(training_backend_name: str) -> None:
    with told("appo", training_backend_name).build() as algo:
        batches = Batches(algo)
        algo.train()
        assert len(batches.seen[-1]["default_policy"]["rewards"]) == 2
        algo.set_config(
            train_batch_size=20, circular_buffer_num_batches=3, circular_buffer_iterations_per_batch=3,
            timesteps_per_iteration=60, queue_full="drop", max_requests_in_flight_per_learner=7,
        )  # fmt: skip
        results = algo.train()
        assert len(batches.seen[-1]["default_policy"]["rewards"]) == 4
        assert results["throughput"]["num_updates"] == 9
        assert algo.learner_group._queue._limit == 7 and not algo.learner_group._queue._block


def test_evaluation_follows(training_backend_name: str) -> None:
    with told("ppo", training_backend_name).build() as algo:
        assert "evaluation" not in algo.train()
        algo.set_config(evaluation_interval=1, evaluation_num_episodes=3)
        assert algo.train()["evaluation"]["num_episodes"] == 3


@pytest.mark.fast_on_torch
def test_a_module_that_begins_to_learn_asynchronously(training_backend_name: str) -> None:
    config = told("appo", training_backend_name, lr=0.01).environment(make_signals, env_config={})
    config.multi_agent(policies=["speaker", "listener"], policies_to_train=["speaker"])
    with config.build() as algo:
        learners = algo.train()["learners"]
        assert learners["speaker"]["num_minibatch_steps"] > 0
        assert not learners.get("listener", {}).get("num_minibatch_steps")
        algo.set_config(policies_to_train=["listener"], policy_settings={"listener": {"lr": 0.5}})
        learners = algo.train()["learners"]
        assert learners["listener"]["num_minibatch_steps"] > 0 and learners["listener"]["learning_rate"] == 0.5
        assert not learners.get("speaker", {}).get("num_minibatch_steps")
        assert algo.config.policies_to_train == ["listener"]
        # So does one that is added, as soon as it plays somebody.
        algo.add_module(module_id="other", like="listener", policies_to_train=["other"], policy_mapping_fn=_other)
        for _ in range(4):  # running episodes keep their modules
            learners = algo.train()["learners"]
        assert learners["other"]["num_minibatch_steps"] > 0


def _other(agent: str) -> str:
    return "other" if agent == "listener" else agent


@pytest.mark.fast_on_torch
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("ppo", {"seed": 3}),
        ("ppo", {"model": {"hidden": [8]}}),
        ("ppo", {"env": "CartPole-v1"}),
        ("ppo", {"env_config": {"continuous": True}}),
        ("ppo", {"framework_name": "tf"}),
        ("ppo", {"num_envs_per_env_runner": 4}),
        ("ppo", {"normalize_observations": True}),
        ("ppo", {"optimizer": "sgd"}),
        ("ppo", {"policies": ["a"]}),
        ("ppo", {"kl_coeff": 0.5}),
        ("sac", {"twin_q": False}),
        ("sac", {"buffer_capacity": 8}),
        ("sac", {"initial_alpha": 0.5}),
        ("appo", {"rollout_fragment_length": 10}),
    ],
)
def test_what_cannot_change_is_refused_by_name(training_backend_name: str, kind: str, settings: dict[str, Any]) -> None:
    with told(kind, training_backend_name).build() as algo:
        before = algo.config
        with pytest.raises(ConfigError, match=rf"\b{next(iter(settings))}\b"):
            algo.set_config(gamma=0.5, **settings)
        assert algo.config is before
        assert algo.learner_group.learner_settings()["gamma"] == 0.99
        with pytest.raises(ConfigError, match=r"algo\.set_config"):
            algo.learner_group.set_config(evaluation_interval=2)


def test_learners_that_cannot_follow_leave_everything_as_it_was(training_backend_name: str) -> None:
    config = told("ppo", training_backend_name, max_seq_len=5, minibatch_size=10)
    config.rl_module(model={"hidden": [4], "recurrent": "gru", "recurrent_size": 3})
    with config.build() as algo:
        before = algo.get_state()["learner"]
        with pytest.raises(ConfigError, match="minibatch_size=7"):
            algo.set_config(gamma=0.5, minibatch_size=7)
        assert algo.config.gamma == 0.99 and algo.config.minibatch_size == 10
        assert algo.learner_group.learner_settings()["gamma"] == 0.99
        assert algo.get_state()["learner"]["counters"] == before["counters"]
        algo.train()


@pytest.mark.fast_on_torch
def test_two_learners_in_processes(training_backend_name: str) -> None:
    with told("ppo", training_backend_name).learners(num_learners=2).build() as algo:
        algo.set_config(lr=0.25, minibatch_size=20)
        results = algo.train()["learners"]["default_policy"]
        assert results["learning_rate"] == 0.25 and results["num_minibatch_steps"] == 1
        assert algo.learner_group.foreach_learner(lambda learner: learner.config.lr) == [0.25, 0.25]


def test_restore_and_set_state_keep_the_receivers_settings(training_backend_name: str, tmp_path: Path) -> None:
    with told("ppo", training_backend_name).build() as algo:
        algo.set_config(lr=0.5, gamma=0.5)
        algo.train()
        algo.save(tmp_path / "checkpoint")
        algo.learner_group.save_state(tmp_path / "group")
        state = algo.get_state()
    assert sorted(lc.load_state(tmp_path / "group")) == sorted(state["learner"])
    assert "config" not in state and "config" not in state["learner"]
    with told("ppo", training_backend_name).build() as other:
        other.restore(tmp_path / "checkpoint")
        other.set_state(state)
        other.learner_group.load_state(tmp_path / "group")
        assert (other.config.lr, other.config.gamma) == (0.0, 0.99)
        assert other.train()["learners"]["default_policy"]["learning_rate"] == 0.0


class Color(enum.IntEnum):
    RED = 3


def test_data_for_the_environment_come_back_as_the_first_run_had_them(
    training_backend_name: str, tmp_path: Path
) -> None:
    given = {"continuous": np.bool_(False), "color": Color.RED, "size": (3, 4), "goal": np.zeros(2, np.float32)}
    with told("ppo", training_backend_name).environment(make_told, env_config=given).build() as algo:
        algo.train()
        algo.save(tmp_path / "checkpoint")
    with lc.Algorithm.from_checkpoint(tmp_path / "checkpoint", env=make_told) as again:
        found = again.config.env_config
    assert {name: type(value) for name, value in found.items()} == {
        "continuous": bool, "color": int, "size": tuple, "goal": np.ndarray
    }  # fmt: skip
    assert found["color"] == 3 and found["size"] == (3, 4) and found["goal"].dtype == np.float32


def test_the_run_repeated_from_its_settings_file_trains_the_same_network(
    training_backend_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--env", "CartPole-v1", "--backend", training_backend_name, "--stop-iterations", "1", "--quiet"]
    small = ["train_batch_size=16", "minibatch_size=16", "num_epochs=1", "compile=false"]
    network = ["model.hidden=[5]", "model.conv_filters=none"]
    sets = [word for one in small + network for word in ("--set", one)]
    assert main(["train", "ppo", *words, *sets, "--out", str(tmp_path / "one")]) == 0
    assert (
        main(["train", "--config", str(tmp_path / "one" / "config.toml"), *words, "--out", str(tmp_path / "two")]) == 0
    )
    files = [tmp_path / run / "checkpoints" / "checkpoint-00000001.lcstate" for run in ("one", "two")]
    first, second = (lc.load_state(path)["state"]["learner"]["rl_module"]["default_policy"] for path in files)
    assert first["pi.0.weight"].shape == (5, 4)
    for name, value in first.items():
        np.testing.assert_array_equal(second[name], value)


@pytest.mark.fast_on_torch
def test_a_resumed_run_takes_the_checkpoints_settings(
    training_backend_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    new = ["train", "ppo", "--env", "CartPole-v1", "--backend", training_backend_name, "--out", str(run)]
    small = ["train_batch_size=16", "minibatch_size=16", "num_epochs=1", "model.hidden=[4]", "compile=false", "lr=0.1"]
    settings = [word for one in small for word in ("--set", one)]
    assert main([*new, *settings, "--stop-iterations", "1"]) == 0
    with lc.Algorithm.from_checkpoint(run / "checkpoints" / "checkpoint-00000001.lcstate") as algo:
        algo.set_config(lr=0.025, gamma=0.5)
        algo.train()
        algo.save(run / "checkpoints" / "checkpoint-00000002.lcstate")
    capsys.readouterr()
    assert main(["train", "--resume", str(run), "--stop-iterations", "3", "--set", "gamma=0.75"]) == 0
    told_so = capsys.readouterr().out
    assert "config.toml says lr=0.1; the checkpoint was saved with 0.025" in told_so and "gamma=0.99" not in told_so
    assert read_file(run / "config.toml")["training"]["lr"] == 0.025
    with lc.Algorithm.from_checkpoint(run / "checkpoints" / "checkpoint-00000003.lcstate") as algo:
        assert (algo.config.lr, algo.config.gamma) == (0.025, 0.75)
