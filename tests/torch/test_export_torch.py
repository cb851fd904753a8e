"""Exports to Torch: state_dicts that a plain torch.load reads, programs that need nothing of ours, the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

import learner_core as lc
from learner_core.cli.main import main
from learner_core.exporting.onnx_file import sample_observations
from learner_core.exporting.source import nest
from learner_core_algorithms import PPOConfig
from learner_core_torch.backend import TorchBackend

from support.user_policies import POLICIES, exported_policy, state_of

# torch.export's own serialiser on Python 3.12 and newer; nothing of ours.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def config() -> Any:
    return PPOConfig().framework("torch", compile=False).environment("CartPole-v1").training(train_batch_size=32)


def test_a_state_dict_of_tensors_alone(tmp_path: Path) -> None:
    learner = config().build_learner()
    path = lc.export(learner, tmp_path / "policy.pt", to="torch")
    loaded = torch.load(path, weights_only=True)
    weights = learner.get_module_state()["default_policy"]
    assert loaded.keys() == weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(loaded[name].numpy(), value)


@pytest.mark.parametrize("case", POLICIES)
def test_a_program_answers_as_numpy_does(case: str, tmp_path: Path) -> None:
    policy = exported_policy(case)
    TorchBackend(device="cpu").export_policy(policy, tmp_path / "policy.pt2")
    network = torch.export.load(tmp_path / "policy.pt2").module()
    for rows in (1, 5):
        obs, state = nest(sample_observations(policy, rows)), state_of(policy, rows)
        answers = network(_tensors(obs), _tensors(state)) if state else network(_tensors(obs))
        expected = policy.answer(obs, state)
        assert answers.keys() == expected.keys()
        for name, value in [*expected.pop("state_out", {}).items(), *expected.items()]:
            answer = answers[name] if name in answers else answers["state_out"][name]
            np.testing.assert_allclose(answer.detach().numpy(), value, rtol=1e-5, atol=1e-5)


def _tensors(tree: Any) -> Any:
    return {k: _tensors(v) for k, v in tree.items()} if isinstance(tree, dict) else torch.from_numpy(tree)


def test_a_program_is_read_by_a_process_that_knows_torch_alone(tmp_path: Path) -> None:
    policy = exported_policy("continuous")
    TorchBackend(device="cpu").export_policy(policy, tmp_path / "policy.pt2")
    obs = sample_observations(policy, 3)["obs"]
    program = f"""
import sys, json, torch
sys.modules["learner_core"] = sys.modules["learner_core_torch"] = None
network = torch.export.load({str(tmp_path / "policy.pt2")!r}).module()
print(json.dumps(network(torch.tensor({obs.tolist()}))["action_dist_inputs"].tolist()))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True)
    expected = policy.answer(obs)["action_dist_inputs"]
    np.testing.assert_allclose(json.loads(done.stdout), expected, rtol=1e-5, atol=1e-5)


class Net(nn.Module):
    """Flattens channels first, ties two layers: names and layouts of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.BatchNorm2d(4))
        self.head = nn.Linear(4 * 4 * 3, 2)
        self.same = self.head

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return self.same(self.conv(obs.permute(0, 3, 1, 2)).flatten(1))


def test_a_users_own_network_gets_its_own_names_and_layouts_back(tmp_path: Path) -> None:
    space = gym.spaces.Box(-1, 1, (6, 5, 3), np.float32)
    spec = lc.RLModuleSpec(module_class=Net, observation_space=space, action_space=gym.spaces.Discrete(2))
    from learner_core_algorithms import BCConfig

    learner = BCConfig().framework("torch", compile=False).rl_module(rl_module_spec=spec).build_learner()
    network = Net()
    network.load_state_dict(torch.load(lc.export(learner, tmp_path / "net.pt"), weights_only=True))
    network.eval()
    obs = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (4, 6, 5, 3)).astype(np.float32))
    with torch.no_grad():
        ours = learner.module["default_policy"].forward_inference({"obs": obs})["action_dist_inputs"]
        torch.testing.assert_close(network(obs), ours, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("suffix", [".onnx", ".safetensors", ".pt"])
def test_a_checkpoint_with_normalised_observations_from_the_command_line(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with config().env_runners(num_envs_per_env_runner=2, normalize_observations=True).build() as algorithm:
        algorithm.train()
        algorithm.save(tmp_path / "checkpoint-00000001.lcstate")
        normalizer = algorithm.runner.normalizer
        weights = algorithm.learner_group.get_weights()["default_policy"]
    assert main(["export", str(tmp_path), "--out", str(tmp_path / f"out{suffix}")]) == 0
    assert f"out{suffix}" in capsys.readouterr().out
    obs = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    if suffix == ".onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(tmp_path / "out.onnx", providers=["CPUExecutionProvider"])
        (answer,) = session.run(["action_dist_inputs"], {"obs": obs})
        hidden = normalizer.normalize(obs)
        for i in range(2):
            hidden = np.tanh(hidden @ weights[f"pi.{i}.weight"].T + weights[f"pi.{i}.bias"])
        expected = hidden @ weights["pi.2.weight"].T + weights["pi.2.bias"]
        np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-5)
        return
    if suffix == ".pt":
        arrays = {name: value.numpy() for name, value in torch.load(tmp_path / "out.pt", weights_only=True).items()}
    else:
        from safetensors.numpy import load_file

        arrays = load_file(tmp_path / "out.safetensors")
    np.testing.assert_array_equal(arrays.pop("observation_normalizer.obs.mean"), normalizer.moments["obs"].mean)
    assert {name for name in arrays if not name.startswith("observation_normalizer")} == weights.keys()


def test_weights_of_a_checkpoint_whose_network_has_no_name(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    spec = lc.RLModuleSpec(module_class=lambda: Pair())
    with config().env_runners(num_envs_per_env_runner=2).rl_module(rl_module_spec=spec).build() as algorithm:
        algorithm.save(tmp_path / "a.lcstate")
        weights = algorithm.learner_group.get_weights()["default_policy"]
    assert load_file(lc.export(tmp_path / "a.lcstate", tmp_path / "a.safetensors")).keys() == weights.keys()
    with pytest.raises(lc.ConfigError, match="cannot be rebuilt here: rl_module_spec"):
        lc.export(tmp_path / "a.lcstate", tmp_path / "a.onnx")


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pi, self.vf = nn.Linear(4, 2), nn.Linear(4, 1)

    def forward(self, obs: torch.Tensor) -> Any:
        return self.pi(obs), self.vf(obs)


def test_refusals_are_one_paragraph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path / "absent.lcstate"), "--to", "onnx"]) == 2
    assert "absent.lcstate" in capsys.readouterr().err
    assert main(["export", str(tmp_path)]) == 2
    assert "--to" in capsys.readouterr().err
