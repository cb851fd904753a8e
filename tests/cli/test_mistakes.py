"""What people type wrongly at first: each is one paragraph that says what to type instead."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import learner_core as lc
from learner_core.cli.main import main
from learner_core_algorithms import BCConfig, SACConfig

from support.fake_algorithm import FakeAlgorithm, register


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("train ppo --env CartPol-v1", "Environment `CartPol` doesn't exist. Did you mean 'CartPole-v1'?\n"),
        ("train ppo --env absent:Foo-v0", "can be imported. List the names with gymnasium.pprint_registry()."),
        ("train ppo --env pettingzoo:sisl/nothing-v5", "Did you mean 'sisl/pursuit-v5'?\n"),
        ("train ppo --env pettingzoo:absent.thing_v3", "No module named 'absent'. Install the package that has it"),
        ("plugins check foo", "sac, spmd, tf, torch.\n"),
    ],
)
def test_the_nearest_thing_is_named_once(arguments: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    # Not the default, Torch: this process loads TensorFlow, to read TensorBoard's files.
    assert main([*arguments.split(), *(["--backend", "tf"] if arguments.startswith("train") else [])]) == 2
    text = capsys.readouterr().err
    assert said in text
    assert ".." not in text
    assert "?." not in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("train ppo CartPole-v1", "--env CartPole-v1."),
        ("train ppo --env CartPole-v1 --learning-rate 1e-3", "CleanRL: --learning-rate; here: --set lr=1e-3."),
        ("train ppo --env CartPole-v1 --lr=1e-3", "--set lr=1e-3."),
    ],
)
def test_arguments_of_other_programs(arguments: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments.split())
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_a_folder_beside_the_one_that_was_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    register()
    monkeypatch.setitem(vars(lc), "Algorithm", FakeAlgorithm)
    run = tmp_path / "run"
    assert main(["train", "fake", "--env", "CartPole-v1", "--out", str(run), "--stop-iterations", "1"]) == 0
    capsys.readouterr()
    for inside in (run / "checkpoints", run / "checkpoints" / "checkpoint-00000001.lcstate"):
        assert main(["train", "--resume", str(inside)]) == 2
        assert f"Did you mean {run}?" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "neither a run (run.json) nor a checkpoint" in capsys.readouterr().err


def test_a_path_below_some_level(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = {"rl_module": {"default_policy": {"pi.0.weight": np.zeros((2, 3), np.float32)}}}
    config = {"settings": {"rl_module_spec": None}}
    lc.save_state(tmp_path / "a.lcstate", {"config": config, "state": {"learner": weights}, "more": 1})
    for prefix in ("rl_module/", "rl_module", "default_policy", "learner/rl_module"):  # whole names
        assert main(["inspect", str(tmp_path / "a.lcstate"), "--only", prefix, "--values"]) == 0
        text = capsys.readouterr().out
        assert "state/learner/rl_module/default_policy/pi.0.weight" in text
        assert "more" not in text
        assert "rl_module_spec" not in text
    assert main(["inspect", str(tmp_path / "a.lcstate"), "--only", "rl_mod"]) == 0  # no whole name
    assert "rl_module_spec" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "a.lcstate"), "--only", "module"]) == 2


def test_algorithms_without_a_memory_say_so(tmp_path: Path) -> None:
    memory = {"recurrent": "gru"}
    with pytest.raises(lc.ConfigError, match=r"SAC learns from single steps.*PPO, IMPALA and APPO have"):
        SACConfig().framework("tf").environment("Pendulum-v1").rl_module(model=memory).build_learner()
    columns = {"obs": np.zeros((8, 4), np.float32), "actions": np.zeros(8, np.int64)}
    lc.save_state(tmp_path / "rows.lcstate", {"format": "learner_core/recording", "columns": columns})
    config = BCConfig().framework("tf").environment("CartPole-v1").training(input_path=str(tmp_path / "rows.lcstate"))
    with pytest.raises(lc.ConfigError, match=r"learns from sequences.*holds single steps"):
        config.rl_module(model=memory).build()


def test_a_resumed_run_with_another_network_says_what_it_had(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    # Not the default, as above.
    small = "--backend tf --quiet --set train_batch_size=32 --set num_epochs=1 --set num_envs_per_env_runner=2".split()
    assert main(["train", "ppo", "--env", "CartPole-v1", "--out", str(run), "--stop-iterations", "1", *small]) == 0
    settings = (run / "config.toml").read_bytes()
    for change, said, place in (
        ("model.hidden=[32]", "model={'hidden': [64, 64]", "rl_module/default_policy/pi"),
        ("env=Acrobot-v1", "env='CartPole-v1'", "algorithm/spaces/default_policy/observation_space"),
    ):
        assert main(["train", "--resume", str(run), "--set", change, "--stop-iterations", "2"]) == 2
        text = capsys.readouterr().err
        assert "this run was started with " + said in text
        assert place in text
    assert (run / "config.toml").read_bytes() == settings


def test_an_offline_run_refuses_what_it_can_never_reach(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = {"obs": np.zeros((8, 4), np.float32), "actions": np.zeros(8, np.int64)}
    lc.save_state(tmp_path / "rows.lcstate", {"format": "learner_core/recording", "columns": columns})
    run = (
        f"train bc --env CartPole-v1 --backend tf --set input_path={tmp_path}/rows.lcstate --out {tmp_path}/run".split()
    )
    assert main([*run, "--stop-timesteps", "100"]) == 2
    assert "bc steps no environment; give --stop-iterations or --stop-seconds" in capsys.readouterr().err
    assert main([*run, "--stop-return", "100"]) == 2
    assert "--set evaluation.interval=N, or give --stop-iterations" in capsys.readouterr().err
    assert main([*run, "--stop-iterations", "2"]) == 0
    text = capsys.readouterr().out
    assert "rows" in text
    assert "timesteps" not in text
    assert not (tmp_path / "run" / "curve.png").exists()
