"""An evaluation ends, whatever the environment does: long episodes are cut, and counted as unfinished."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

import learner_core as lc
from learner_core.algorithm.recording import record
from learner_core.cli.main import main
from learner_core.errors import ConfigError
from learner_core.sampling import evaluation
from learner_core.state.files import load_state

from support.parallel_envs import Signals
from support.told import told
from support.vector_envs import Endless


def make_endless(env_config: dict[str, Any]) -> Endless:
    return Endless(env_config.get("ends"))


def _config(backend: str, ends: Any = None) -> Any:
    return told("ppo", backend).environment(make_endless, env_config={"ends": ends or {}})


@pytest.mark.parametrize("runners", [0, 1])
def test_the_limit_is_a_setting_and_an_argument(training_backend_name: str, runners: int) -> None:
    config = _config(training_backend_name).evaluation(interval=1, num_episodes=3, max_episode_steps=7)
    with config.env_runners(num_env_runners=runners).build() as algo:
        found = algo.train()["evaluation"]
        assert (found["num_episodes"], found["num_episodes_unfinished"]) == (3, 3)
        assert found["episode_return_mean"] == found["episode_len_mean"] == 7.0
        assert algo.evaluate(5, max_episode_steps=4)["episode_return_max"] == 4.0
        algo.set_config(evaluation_max_episode_steps=9)
        assert algo.evaluate(2)["episode_len_mean"] == 9.0


@pytest.mark.fast_on_torch
def test_figures_are_of_all_episodes_cut_ones_included(training_backend_name: str) -> None:
    """Two copies, two episodes each: one that ends after three steps, and one that does not."""
    with _config(training_backend_name, {1: 3}).build() as algo:
        found = algo.evaluate(4, max_episode_steps=10)
    assert (found["num_episodes"], found["num_episodes_unfinished"]) == (4, 2)
    assert (found["episode_return_min"], found["episode_return_max"], found["episode_return_mean"]) == (3, 10, 6.5)


@pytest.mark.fast_on_torch
def test_one_that_ends_in_its_last_step_is_finished(training_backend_name: str) -> None:
    with _config(training_backend_name, {1: 6}).build() as algo:
        assert algo.evaluate(2, max_episode_steps=6)["num_episodes_unfinished"] == 0
        assert algo.evaluate(2, max_episode_steps=5)["num_episodes_unfinished"] == 2


def test_without_a_limit_it_is_said_and_ends_all_the_same(
    training_backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert evaluation.DEFAULT_STEPS == 100_000
    monkeypatch.setattr(evaluation, "DEFAULT_STEPS", 60)
    monkeypatch.setattr(evaluation, "_NOTICED_STEPS", 20)
    words = r"not ended in 20 steps; it is cut after 60 .*\.evaluation\(max_episode_steps=N\).*--max-episode-steps"
    with _config(training_backend_name).build() as algo:
        with pytest.warns(RuntimeWarning, match=words) as told_of:
            found = algo.evaluate(4)
        assert len(told_of) == 1 and found["num_episodes_unfinished"] == 4 and found["episode_len_mean"] == 60


@pytest.mark.fast_on_torch
def test_what_is_no_number_is_refused(training_backend_name: str) -> None:
    with _config(training_backend_name).build() as algo:
        for given in ({"max_episode_steps": 0}, {"num_episodes": 0}, {"max_episode_steps": 2.5}):
            with pytest.raises(ConfigError, match=r"PPOConfig.evaluation\((num_episodes|max_episode_steps)=\.\.\.\)"):
                algo.evaluate(**given)


@pytest.mark.fast_on_torch
def test_an_environments_own_limit_counts(training_backend_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "DEFAULT_STEPS", 30)
    monkeypatch.setattr(evaluation, "_NOTICED_STEPS", 10)
    for limit in (25, 70):
        gym.registry.pop("Endless-v0", None)
        gym.register("Endless-v0", entry_point=Endless, max_episode_steps=limit)
        config = told("ppo", training_backend_name).environment("Endless-v0", env_config={})
        with config.build() as algo:
            if limit > 30:  # longer than ours: its own, and it is said that it is long
                with pytest.warns(RuntimeWarning, match="cut after 70"):
                    found = algo.evaluate(2)
            else:
                found = algo.evaluate(2)
            assert (found["episode_len_mean"], found["num_episodes_unfinished"]) == (limit, 0)


@pytest.mark.fast_on_torch
def test_several_agents(training_backend_name: str) -> None:
    config = told("ppo", training_backend_name).environment(lambda env_config: Signals(10**9), env_config={})
    config.multi_agent(policies=["speaker", "listener"])
    with config.build() as algo:
        found = algo.evaluate(5, max_episode_steps=8)
        assert (found["num_episodes"], found["num_episodes_unfinished"], found["episode_len_mean"]) == (5, 5, 8.0)
    with config.environment(lambda env_config: Signals(6)).build() as algo:
        assert algo.evaluate(3, max_episode_steps=8)["num_episodes_unfinished"] == 0


@pytest.mark.fast_on_torch
def test_with_a_memory(training_backend_name: str) -> None:
    """What is remembered of an episode that was cut is not taken into the next: equal episodes are equal again."""
    config = _config(training_backend_name).rl_module(model={"hidden": [4], "recurrent": "gru", "recurrent_size": 3})
    seen: list[Any] = []
    with config.training(max_seq_len=5).build() as algo:
        algo.runner.evaluate(
            6, max_episode_steps=4, watch=lambda before, answer, *rest: seen.append(answer["action_dist_inputs"].copy())
        )
    assert len(seen) == 12 and (seen[0] == seen[4]).all() and (seen[3] == seen[11]).all() and (seen[0] != seen[1]).any()


@pytest.mark.fast_on_torch
def test_a_recording_ends_cut_episodes_as_truncated(training_backend_name: str, tmp_path: Path) -> None:
    path = str(tmp_path / "episodes.lcstate")
    with _config(training_backend_name, {1: 3}).build() as algo:
        summary = record(algo, path, num_episodes=4, max_episode_steps=5)
    assert (summary["num_episodes"], summary["num_episodes_unfinished"], summary["num_rows"]) == (4, 2, 16)
    columns = load_state(path)["columns"]
    assert columns["terminateds"].sum() == columns["truncateds"].sum() == 2


@pytest.mark.fast_on_torch
def test_the_command_line(training_backend_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gym.registry.pop("Endless-v0", None)
    gym.register("Endless-v0", entry_point=Endless)
    path = str(tmp_path / "run.lcstate")
    with told("ppo", training_backend_name).environment("Endless-v0", env_config={}).build() as algo:
        algo.save(path)
    assert main(["evaluate", path, "--episodes", "3", "--max-episode-steps", "6", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["episode_len_mean"], said["num_episodes_unfinished"]) == (6.0, 3)
    out = str(tmp_path / "episodes.lcstate")
    assert main(["record", path, "--episodes", "2", "--max-episode-steps", "4", "--out", out]) == 0
    assert load_state(out)["episode_lengths"].tolist() == [4, 4]
    with lc.Algorithm.from_checkpoint(path, evaluation_max_episode_steps=5) as algo:
        assert algo.evaluate(1)["episode_len_mean"] == 5.0
