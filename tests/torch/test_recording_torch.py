"""`learner-core record`, and behaviour cloning from what it writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import learner_core as lc
from learner_core.algorithm.offline import read_recording
from learner_core.cli.main import main
from learner_core_algorithms import BCConfig, PPOConfig


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "ppo.lcstate"
    config = (
        PPOConfig()
        .environment("CartPole-v1")
        .framework("torch", compile=False)
        .env_runners(num_envs_per_env_runner=2)
        .training(train_batch_size=64, minibatch_size=32, num_epochs=1)
    )
    with config.build() as algorithm:
        algorithm.train()
        algorithm.save(str(path))
    return path


def test_a_recording_holds_whole_episodes(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "episodes.lcstate"
    assert main(["record", str(checkpoint), "--out", str(out), "--episodes", "3"]) == 0
    assert "num_episodes" in capsys.readouterr().out
    columns = read_recording(str(out))
    tree = lc.load_state(str(out))
    lengths = tree["episode_lengths"]
    assert len(lengths) == 3 == tree["info"]["num_episodes"]
    assert tree["info"]["env"] == "CartPole-v1"
    last = np.cumsum(lengths) - 1
    inside = np.setdiff1d(np.arange(lengths.sum()), last)
    assert (columns["next_obs"][inside] == columns["obs"][inside + 1]).all()
    assert (columns["terminateds"] | columns["truncateds"])[last].all()
    assert not (columns["terminateds"] | columns["truncateds"])[inside].any()
    # CartPole pays 1 a step.
    assert tree["info"]["episode_return_mean"] == pytest.approx(lengths.mean())
    # Without --explore the actions are the most likely ones.
    assert (columns["actions"] == columns["action_dist_inputs"].argmax(-1)).all()


def test_an_existing_recording_is_kept(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "episodes.lcstate"
    out.write_text("mine")
    assert main(["record", str(checkpoint), "--out", str(out), "--episodes", "1"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert main(["record", str(checkpoint), "--out", str(out), "--episodes", "1", "--explore", "--overwrite"]) == 0
    assert len(read_recording(str(out))["obs"])


def test_behaviour_cloning_learns_from_it(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "episodes.lcstate"
    assert main(["record", str(checkpoint), "--out", str(out), "--episodes", "10"]) == 0
    config = (
        BCConfig()
        .environment("CartPole-v1")
        .framework("torch", compile=False)
        .training(input_path=str(out), train_batch_size=64, minibatch_size=32, lr=1e-2, updates_per_iteration=20)
    )
    with config.build() as algorithm:
        first = algorithm.train()["learners"]["default_policy"]["mean_logp"]
        for _ in range(3):
            later = algorithm.train()["learners"]["default_policy"]["mean_logp"]
        assert later > first
        assert later > np.log(0.75)
