"""Checkpoints whose environment was a function are exported, and any can be played by numpy, without a framework."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import learner_core as lc
from learner_core.algorithm.player import Player
from learner_core.cli.main import main
from learner_core.errors import ConfigError, StateError
from learner_core.exporting.source import read_source
from learner_core_algorithms import PPOConfig

from support.parallel_envs import make_crossing
from support.setting_effects import Masked
from support.told import told

MID = "default_policy"


def _saved(config: Any, path: Path, *, iterations: int = 1) -> Any:
    """Weights and an evaluation of a run whose checkpoint was saved."""
    with config.build() as algo:
        for _ in range(iterations):
            algo.train()
        algo.save(path)
        return algo.learner_group.get_weights(), algo.evaluate(3)


# ---- exports ---------------------------------------------------------------------------------------------------------


@pytest.mark.fast_on_torch
@pytest.mark.parametrize("algorithm", ["ppo", "sac"])
def test_a_policy_of_a_function_is_exported(training_backend_name: str, algorithm: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    config = told(algorithm, training_backend_name)
    make = config.env
    config.environment(lambda settings: make(settings)).env_runners(normalize_observations=True)
    path = tmp_path / "run.lcstate"
    weights, _ = _saved(config, path)
    (policy,) = read_source(path)
    assert policy.spec is not None and not policy.refusal
    lc.export(path, tmp_path / "policy.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "policy.onnx"), providers=["CPUExecutionProvider"])
    obs = np.asarray(policy.spec.observation_space.sample(), np.float32)[None]
    found = session.run(["action_dist_inputs"], {"obs": obs})[0]
    np.testing.assert_allclose(found, policy.answer(obs)["action_dist_inputs"], rtol=1e-5, atol=1e-6)
    for name, value in weights[MID].items():
        np.testing.assert_array_equal(policy.params[name], value)
    suffix = {"torch": "pt2", "tf": "keras"}[training_backend_name]
    if algorithm == "ppo":
        assert lc.export(path, tmp_path / f"policy.{suffix}").stat().st_size > 100
    assert lc.export(path, tmp_path / "policy.safetensors").stat().st_size > 100


@pytest.mark.fast_on_torch
def test_masks_and_modules_of_functions(training_backend_name: str, tmp_path: Path) -> None:
    config = told("ppo", training_backend_name).environment(lambda settings: Masked(), action_mask_in_info=True)
    _saved(config, tmp_path / "masked")
    with pytest.warns(UserWarning, match="acts by masks in a run"):
        lc.export(tmp_path / "masked", tmp_path / "masked.onnx")
    config = told("ppo", training_backend_name).environment(lambda settings: make_crossing(settings), env_config={})
    config.multi_agent(policies=["one", "two"], policy_mapping_fn=lambda agent: "two" if agent == "a" else "one")
    with config.build() as algo:
        algo.save(tmp_path / "several")
    found = read_source(tmp_path / "several")
    assert {policy.module_id for policy in found} == {"one", "two"} and all(policy.spec for policy in found)
    lc.export(tmp_path / "several", tmp_path / "two.onnx", module_id="two")


@pytest.mark.fast_on_torch
def test_the_environment_is_not_made_for_an_export(training_backend_name: str, tmp_path: Path) -> None:
    """Its package may be missing where a policy is put to use."""
    _saved(told("ppo", training_backend_name), tmp_path / "run")
    tree = lc.load_state(tmp_path / "run")
    tree["config"]["settings"]["env"] = "no_such_package:Nothing-v0"
    lc.save_state(tmp_path / "other", tree)
    lc.export(tmp_path / "other", tmp_path / "policy.onnx")
    tree["state"]["algorithm"]["spaces"][MID]["action_space"] = {"kind": "Nonsense"}
    lc.save_state(tmp_path / "other", tree)
    with pytest.raises(ConfigError, match="state/algorithm/spaces: this does not describe a space"):
        lc.export(tmp_path / "other", tmp_path / "policy.onnx")


# ---- playing without a framework -------------------------------------------------------------------------------------

#: Says what was imported of frameworks when the command has run.
_COMMAND = """
import json, sys
from learner_core.cli.main import main
code = main(sys.argv[1:])
print(json.dumps([name for name in ("torch", "tensorflow", "keras") if name in sys.modules]))
sys.exit(code)
"""


@pytest.fixture(scope="module")
def cartpole(training_backend_name: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A checkpoint with normalised observations, and what the run that saved it evaluates next."""
    path = tmp_path_factory.mktemp("run") / "run.lcstate"
    config = PPOConfig().environment("CartPole-v1").framework(training_backend_name, compile=False)
    config.env_runners(normalize_observations=True, num_envs_per_env_runner=2)
    config.training(train_batch_size=64, minibatch_size=32, num_epochs=1).rl_module(model={"hidden": [8]})
    return path, _saved(config, path, iterations=2)[1]


def test_evaluate_with_numpy_imports_no_framework(cartpole: tuple[Path, Any]) -> None:
    path, expected = cartpole
    arguments = ["evaluate", str(path), "--backend", "numpy", "--episodes", "3", "--json"]
    done = subprocess.run([sys.executable, "-c", _COMMAND, *arguments], capture_output=True, text=True, check=True)
    results, frameworks = (json.loads(line) for line in done.stdout.splitlines())
    assert frameworks == []
    for name in ("episode_return_mean", "episode_return_min", "episode_return_max", "num_episodes"):
        assert results[name] == expected[name]


@pytest.mark.fast_on_torch
def test_a_player_plays_and_nothing_else(cartpole: tuple[Path, Any], tmp_path: Path) -> None:
    path, expected = cartpole
    with Player.from_checkpoint(path) as player:
        assert player.evaluate(3)["episode_return_mean"] == expected["episode_return_mean"]
        assert player.iteration == 2 and 100 < player.num_env_steps_sampled_lifetime <= 128
        for refused in (player.train, lambda: player.save(tmp_path / "x")):
            with pytest.raises(ConfigError, match="opened to play, on a backend that cannot train"):
                refused()
    with pytest.raises(StateError, match=r"observation_space.*override"):
        Player.from_checkpoint(path, env="Acrobot-v1")
    with pytest.raises(StateError, match=r"pi\.0\.weight: the module here has shape \(8, 6\), the checkpoint \(8, 4\)"):
        Player.from_checkpoint(path, env="Acrobot-v1", override_spaces=True)


@pytest.mark.fast_on_torch
def test_recording_with_numpy(cartpole: tuple[Path, Any], tmp_path: Path) -> None:
    out = tmp_path / "episodes.lcstate"
    assert main(["record", str(cartpole[0]), "--backend", "numpy", "--episodes", "2", "--out", str(out)]) == 0
    assert len(lc.load_state(out)["columns"]["actions"]) > 10


@pytest.mark.fast_on_torch
def test_several_agents_play_with_numpy(training_backend_name: str, tmp_path: Path) -> None:
    config = told("ppo", training_backend_name).environment(make_crossing, env_config={})
    config.multi_agent(policies=["shared"])
    expected = _saved(config, tmp_path / "run")[1]
    with Player.from_checkpoint(tmp_path / "run", env=make_crossing) as player:
        assert player.evaluate(3) == expected


def test_what_cannot_be_played_is_named(training_backend_name: str, cartpole: tuple[Path, Any]) -> None:
    config = told("ppo", training_backend_name).freeze()
    with pytest.raises(
        ConfigError, match=r"module 'default_policy' is a network of one framework.*numpy cannot compute it"
    ):
        Player(config, {MID: lc.RLModuleSpec(make_crossing)}, {})
    with pytest.raises(ConfigError, match="no environment to play in"):
        Player.from_checkpoint(cartpole[0], env=None)
