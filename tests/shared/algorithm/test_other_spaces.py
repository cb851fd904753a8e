"""A run goes on in an environment of the same spaces, or is told to: refused in the words of the spaces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

import learner_core as lc
from learner_core.cli.main import main
from learner_core_algorithms import PPOConfig, SACConfig

from support.env_answers import AnswerEnv, AnswerGame
from support.sampling import same_tree

SMALL, LARGE = (spaces.Box(-bound, bound, (2,), np.float32) for bound in (1.0, 10.0))
OBS = spaces.Box(-9.0, 9.0, (3,), np.float32)

#: Observation and action space of the environment that a run was saved in, of another one, and what is said.
OTHERS: list[tuple[Any, Any, Any, Any, str]] = [
    (OBS, SMALL, OBS, LARGE, r"has action_space Box\(-1.0, 1.0, .*, float32\), .* Box\(-10.0, 10.0, .*, float32\)"),
    (OBS, SMALL, spaces.Box(-9.0, 9.0, (3,), np.float64), SMALL, r"has observation_space .*float32\), .*float64\)"),
    (spaces.Discrete(4), SMALL, spaces.Discrete(4, start=1), SMALL, r"Discrete\(4\), .* Discrete\(4, start=1\)"),
    (OBS, spaces.Discrete(3), OBS, spaces.Discrete(4), r"action_space Discrete\(3\), .* Discrete\(4\)"),
    (spaces.Dict({"a": OBS, "b": OBS}), SMALL, spaces.Dict({"a": OBS, "c": OBS}), SMALL, r"Dict\(.*'b'.* Dict\(.*'c'"),
]


def config(backend: str, obs: Any, actions: Any, *, kind: Any = PPOConfig) -> Any:
    return (
        kind()
        .environment(lambda _: AnswerEnv(obs, action_space=actions))
        .framework(backend, compile=False)
        .env_runners(num_envs_per_env_runner=2)
        .training(train_batch_size=8)
        .rl_module(model={"hidden": [4]})
    )


@pytest.mark.fast_on_torch
@pytest.mark.parametrize("case", OTHERS)
def test_another_environment_is_refused_and_nothing_changes(
    training_backend_name: str, case: Any, tmp_path: Path
) -> None:
    obs, actions, other_obs, other_actions, words = case
    path = tmp_path / "checkpoint"
    with config(training_backend_name, obs, actions).build() as algo:
        algo.train()
        algo.save(path)
        state = algo.get_state()
    other = config(training_backend_name, other_obs, other_actions)
    with other.build() as algo:
        algo.train()
        before = algo.get_state()["learner"]["rl_module"]
        for take in (lambda: algo.restore(path), lambda: algo.set_state(state)):
            with pytest.raises(lc.StateError, match=words):
                take()
        assert same_tree(before, algo.get_state()["learner"]["rl_module"])
        algo.train()
    with pytest.raises(lc.StateError, match=words):
        lc.Algorithm.from_checkpoint(path, env=other.env)


@pytest.mark.fast_on_torch
@pytest.mark.parametrize("num_env_runners", [0, 1])
def test_who_means_it_goes_on_in_new_episodes(training_backend_name: str, num_env_runners: int, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    made = config(training_backend_name, OBS, SMALL).env_runners(num_env_runners=num_env_runners)
    with made.build() as algo:
        algo.train()
        algo.save(path)
        weights, steps = algo.learner_group.get_weights(), algo.num_env_steps_sampled_lifetime
    other = made.copy().environment(lambda _: AnswerEnv(OBS, action_space=LARGE))
    with lc.Algorithm.from_checkpoint(path, env=other.env, override_spaces=True) as algo:
        assert same_tree(algo.learner_group.get_weights(), weights)
        assert algo.runner.action_space == LARGE and algo.num_env_steps_sampled_lifetime == steps
        algo.train()
        algo.save(tmp_path / "again")
        with pytest.raises(lc.StateError, match="override_spaces=True"):
            algo.restore(path)
        algo.restore(path, override_spaces=True)
        assert same_tree(algo.learner_group.get_weights(), weights)
    with lc.Algorithm.from_checkpoint(tmp_path / "again", env=other.env) as algo:  # by now these are its spaces
        algo.train()


def test_several_agents(training_backend_name: str, tmp_path: Path) -> None:
    def agents(space: Any) -> Any:
        made = config(training_backend_name, OBS, SMALL).environment(lambda _: AnswerGame(space))
        return made.multi_agent(policies=["m"])

    path = tmp_path / "checkpoint"
    with agents(OBS).build() as algo:
        algo.train()
        algo.save(path)
    wide = spaces.Box(-99.0, 99.0, (3,), np.float32)
    with pytest.raises(lc.StateError, match=r"algorithm/spaces/m/observation_space: .*Box\(-9.0.*Box\(-99.0"):
        lc.Algorithm.from_checkpoint(path, env=agents(wide).env)
    with lc.Algorithm.from_checkpoint(path, env=agents(wide).env, override_spaces=True) as algo:
        algo.train()


def test_checkpoints_that_do_not_say_their_spaces_open_as_before(training_backend_name: str) -> None:
    with config(training_backend_name, OBS, SMALL, kind=SACConfig).build() as algo:
        state = algo.get_state()
        for module in state["algorithm"].pop("spaces").values():
            assert set(module) == {"observation_space", "action_space"}
        algo.set_state(state)
        with pytest.raises(lc.StateError, match="algorithm/spaces"):
            algo.set_state({**state, "algorithm": {**state["algorithm"], "spaces": {"default_policy": {}}}})


@pytest.mark.fast_on_torch
def test_the_command_line_says_so_and_has_the_option(
    training_backend_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pendulum's torque from -2 to 2, and a version of it from -1 to 1."""
    gym.register("WeakPendulum-v0", "support.weak_pendulum:WeakPendulum", max_episode_steps=20)
    try:
        run = tmp_path / "run"
        options = ["--backend", training_backend_name, "--set", "compile=false", "--set", "model.hidden=[4]"]
        options += ["--set", "train_batch_size=40", "--set", "rollout_fragment_length=20", "--quiet"]
        assert not main(["train", "ppo", "--env", "Pendulum-v1", "--stop-iterations", "1", "--out", str(run), *options])
        resume = ["train", "--resume", str(run), "--env", "WeakPendulum-v0", "--stop-iterations", "2", "--quiet"]
        evaluate = ["evaluate", str(run), "--env", "WeakPendulum-v0", "--episodes", "1", "--json"]
        for command in (resume, evaluate):
            assert main(command) != 0
            said = " ".join("".join(capsys.readouterr()).split())
            assert "Box(-2.0, 2.0, (1,), float32)" in said and "Box(-1.0, 1.0, (1,), float32)" in said, said
            assert "--override-spaces" in said
        assert not main([*evaluate, "--override-spaces"])
        assert json.loads(capsys.readouterr().out.strip().splitlines()[-1])["num_episodes"] == 1
        assert not main([*resume, "--override-spaces"])
    finally:
        del gym.registry["WeakPendulum-v0"]
