"""Models of Stable-Baselines3 2.9.2 answer the same once they are imported."""

from __future__ import annotations

import importlib.util
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

import learner_core as lc
from learner_core import numpy_xp
from learner_core.errors import StateError
from learner_core.sampling.numpy_backend import NumpyPolicy
from learner_core_algorithms import PPOConfig, SACConfig

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
VECTOR = Box(-3.0, 3.0, (5,), np.float32)
IMAGE = Box(0, 255, (44, 52, 2), np.uint8)
ACTIONS = Box(np.asarray([-2.0, 0.5], np.float32), np.asarray([1.0, 4.0], np.float32))
NATURE = [[32, 8, 4], [64, 4, 2], [64, 3, 1]]
SETTINGS: dict[str, Any] = {
    "ppo_discrete": (PPOConfig, VECTOR, Discrete(3), {"hidden": [16, 8], "activation": "tanh"}),
    "ppo_box": (PPOConfig, VECTOR, ACTIONS, {"hidden": [16, 8], "activation": "tanh"}),
    "ppo_image": (
        PPOConfig,
        IMAGE,
        Discrete(3),
        {"hidden": [8], "activation": "relu", "vf_share_layers": True, "conv_filters": NATURE},
    ),
    "sac": (SACConfig, VECTOR, ACTIONS, {"hidden": [16, 8], "activation": "relu"}),
}


def learner_for(case: str, **changes: Any) -> Any:
    config_class, observations, actions, model = SETTINGS[case]
    config = config_class().framework("torch", compile=False).rl_module(model={**model, **changes})
    spec = lc.RLModuleSpec(observation_space=observations, action_space=actions)
    return config.rl_module(rl_module_spec=spec).build_learner()


def check(case: str, learner: Any, expected: Any) -> None:
    """The learner's policy, in numpy, against the model's own answers."""
    spec = learner.module_specs["default_policy"]
    module = spec.build(numpy_xp)
    params = learner.get_module_state()["default_policy"]
    outputs = module.forward_train(params, {"obs": expected["obs"]})
    inputs = outputs["action_dist_inputs"]
    if isinstance(spec.action_space, Discrete):
        inputs = numpy_xp.log_softmax(inputs, -1)
    np.testing.assert_allclose(inputs, expected["action_dist_inputs"], rtol=1e-5, atol=1e-5)
    if case != "sac":
        np.testing.assert_allclose(outputs["vf_preds"], expected["vf_preds"], rtol=1e-5, atol=1e-5)
        return
    state = learner.get_state()
    q = module.q(params, expected["obs"], expected["actions"])
    np.testing.assert_allclose(np.stack(q), expected["q"], rtol=1e-5, atol=1e-5)
    target = module.q({**params, **state["targets"]["default_policy"]}, expected["obs"], expected["actions"])
    np.testing.assert_allclose(np.stack(target), expected["target_q"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(state["variables"]["default_policy"]["log_alpha"], expected["log_alpha"], rtol=1e-6)
    policy = NumpyPolicy(spec, params)
    answer = policy.compute_actions(expected["obs"], noise=None, explore=False)
    np.testing.assert_allclose(answer["actions"], expected["greedy"], rtol=1e-5, atol=1e-5)
    # SquashedDiagGaussianDistribution there: the density of tanh(u), which the bounds have no part in.
    noise = np.random.default_rng(1).normal(size=(4, 2)).astype(np.float32)
    mean, log_std = np.split(expected["action_dist_inputs"].astype(np.float64), 2, -1)
    u = mean + np.exp(log_std) * noise
    logp = -0.5 * noise**2 - log_std - 0.5 * np.log(2 * np.pi) - np.log(1 - np.tanh(u) ** 2 + 1e-6)
    sampled = policy.compute_actions(expected["obs"], noise=noise, explore=True)
    np.testing.assert_allclose(sampled["action_logp"], logp.sum(-1), rtol=1e-4, atol=1e-4)
    low, high = spec.action_space.low, spec.action_space.high
    np.testing.assert_allclose(sampled["actions"], low + (high - low) * (np.tanh(u) + 1) / 2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", SETTINGS)
def test_answers_are_those_of_the_model(case: str) -> None:
    learner = learner_for(case)
    report = lc.import_sb3(GOLDEN / f"sb3_{case}.zip", learner)
    assert report["algorithm"] == case.partition("_")[0]
    assert report["ignored"] == []
    with np.load(GOLDEN / f"sb3_{case}.npz") as expected:
        check(case, learner, expected)


@pytest.mark.parametrize("layout", ["CHW", "SCHW", "SHWC"])
def test_an_image_policy_answers_the_same_in_every_layout(layout: str) -> None:
    """Stable-Baselines3 has channels first itself; what an environment's own layout is does not matter to weights."""
    with np.load(GOLDEN / "sb3_ppo_image.npz") as golden:
        expected = dict(golden)
    frames = expected["obs"].transpose(0, 3, 1, 2)  # two channels
    expected["obs"] = {"CHW": frames, "SCHW": frames[:, :, None], "SHWC": frames[..., None]}[layout]
    spec = lc.RLModuleSpec(observation_space=Box(0, 255, expected["obs"].shape[1:], np.uint8), action_space=Discrete(3))
    config = PPOConfig().framework("torch", compile=False).rl_module(model=SETTINGS["ppo_image"][3])
    learner = config.rl_module(rl_module_spec=spec).build_learner()
    if layout == "CHW":
        lc.import_sb3(GOLDEN / "sb3_ppo_image.zip", learner)
        check("ppo_image", learner, expected)
        return
    # A stack of four axes is none of its image spaces.
    with pytest.raises(StateError, match=r"observation_space.*shape"):
        lc.import_sb3(GOLDEN / "sb3_ppo_image.zip", learner)


def test_layers_behind_the_features_of_images() -> None:
    """net_arch=dict(pi=[5], vf=[4, 3]) of a CnnPolicy, whose network Torch computes here."""
    import torch
    from torch import nn

    from learner_core.exporting.foreign_arrays import ForeignArrays
    from learner_core.exporting.sb3 import convert_ppo
    from learner_core.learning.actor_critic import ActorCriticModule

    torch.manual_seed(0)
    cnn = nn.Sequential(
        nn.Conv2d(2, 32, 8, 4),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, 2),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3),
        nn.ReLU(),
        nn.Flatten(),
    )
    linear = nn.Sequential(nn.Linear(384, 8), nn.ReLU())
    pi, vf = (
        nn.Sequential(nn.Linear(8, 5), nn.Tanh()),
        nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 3), nn.Tanh()),
    )
    action, value = nn.Linear(5, 3), nn.Linear(3, 1)
    prefixes = {
        "features_extractor.cnn": cnn, "features_extractor.linear": linear, "mlp_extractor.policy_net": pi,
        "mlp_extractor.value_net": vf, "action_net": action, "value_net": value,
    }  # fmt: skip
    tensors = {
        f"{prefix}.{name}": parameter.detach().numpy()
        for prefix, network in prefixes.items()
        for name, parameter in network.named_parameters()
    }
    given = ForeignArrays(tensors, "the model")
    params = convert_ppo(given)
    assert not given.leftovers(())
    images = np.random.default_rng(0).integers(0, 256, (3, 44, 52, 2)).astype(np.uint8)
    features = linear(cnn(torch.from_numpy(images).permute(0, 3, 1, 2) / 255))
    model = {
        "vf_share_layers": True,
        "hidden": {"encoder": [8], "pi": [5], "vf": [4, 3]},
        "activation": {"encoder": "relu", "pi": "tanh", "vf": "tanh"},
    }
    module = ActorCriticModule(IMAGE, Discrete(3), model, numpy_xp)
    assert {name: value.shape for name, value in module.init(np.random.default_rng(0)).items()} == {
        name: value.shape for name, value in params.items()
    }
    out = module.forward_train(params, {"obs": images})
    np.testing.assert_allclose(out["action_dist_inputs"], action(pi(features)).detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(out["vf_preds"], value(vf(features)).detach().numpy()[:, 0], atol=1e-5)


@pytest.mark.parametrize(
    ("case", "changes", "said"),
    [
        ("ppo_box", {"log_std_range": [-1.0, 1.0]}, "log_std_range"),
        ("sac", {"log_std_range": [-5, 2]}, r"log_std_range=\[-5, 2\], the model \[-20, 2\]"),
        ("sac", {"activation": {"pi": "relu", "qf": "tanh"}}, "learner's module 'tanh'"),
        ("ppo_discrete", {"layer_norm": True}, "pi.norm.0"),
        ("ppo_image", {"hidden": [8, 8]}, "encoder.1"),
        ("ppo_image", {"vf_share_layers": None}, "vf_share_layers"),
        (
            "ppo_image",
            {"image_layout": "flat", "conv_filters": None, "activation": None},
            "divides images by 255|has a NatureCNN",
        ),
    ],
)
def test_settings_that_would_be_another_policy_are_refused(case: str, changes: Any, said: str) -> None:
    with pytest.raises(StateError, match=said):
        lc.import_sb3(GOLDEN / f"sb3_{case}.zip", learner_for(case, **changes))


def test_sizes_of_each_network_are_taken() -> None:
    learner = learner_for("sac", hidden={"pi": [16, 8], "qf": [16, 8]}, log_std_range=[-20, 2])
    lc.import_sb3(GOLDEN / "sb3_sac.zip", learner)
    with np.load(GOLDEN / "sb3_sac.npz") as expected:
        check("sac", learner, expected)


@pytest.mark.parametrize(
    ("case", "changes", "path"),
    [("ppo_discrete", {"hidden": [16, 9]}, "pi.1.weight"), ("ppo_discrete", {"hidden": [16]}, "pi.1.weight")],
)
def test_other_sizes_are_refused_by_name_and_change_nothing(case: str, changes: Any, path: str) -> None:
    learner = learner_for(case, **changes)
    before = learner.get_module_state()["default_policy"]
    with pytest.raises(StateError) as caught:
        lc.import_sb3(GOLDEN / f"sb3_{case}.zip", learner)
    assert path in str(caught.value)
    for name, value in learner.get_module_state()["default_policy"].items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize(
    ("case", "into", "said"), [("sac", "ppo_discrete", "SACConfig"), ("ppo_box", "sac", "PPOConfig")]
)
def test_a_model_of_another_algorithm_is_refused_by_name(case: str, into: str, said: str) -> None:
    with pytest.raises(lc.ConfigError, match=f"sb3_{case}.zip is a model of .*default_policy.*import it .*{said}"):
        lc.import_sb3(GOLDEN / f"sb3_{case}.zip", learner_for(into))


class Trap:
    """Unpickling it leaves a trace."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("unpickled"),)


@pytest.mark.parametrize("name", ["foreign", "pickle", "empty", "no policy"])
def test_what_is_no_model_is_refused_and_never_unpickled(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.zip"
    if name == "foreign":
        path.write_bytes(pickle.dumps(Trap()))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data", pickle.dumps(Trap()))
            if name != "no policy":
                archive.writestr("policy.pth", pickle.dumps(Trap()) if name == "pickle" else b"")
    with pytest.raises(StateError, match=r"model\.zip"):
        lc.import_sb3(path, learner_for("ppo_discrete"))
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.skipif(importlib.util.find_spec("stable_baselines3") is None, reason="stable-baselines3 is not installed")
@pytest.mark.parametrize("case", SETTINGS)
def test_a_model_made_here_and_now(case: str, tmp_path: Path) -> None:
    # In a process of its own: where TensorBoard is installed, it imports TensorFlow.
    command = [sys.executable, str(GOLDEN / "make_sb3.py"), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    learner = learner_for(case)
    lc.import_sb3(tmp_path / f"sb3_{case}.zip", learner)
    with np.load(tmp_path / f"sb3_{case}.npz") as expected:
        check(case, learner, expected)
