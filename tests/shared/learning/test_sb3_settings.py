"""import_sb3 takes a model whole or not at all: what its settings say, and tensors that have no place here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

import learner_core as lc
from learner_core.exporting.sb3 import read_sb3
from learner_core_algorithms import PPOConfig, SACConfig

from support.learners import states_differ
from support.torch_files import policy_file, zip_of

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
CORPUS = Path(__file__).resolve().parents[4] / "shared" / "corpus" / "sb3"
VECTOR = Box(-3.0, 3.0, (5,), np.float32)
IMAGE = Box(0, 255, (44, 52, 2), np.uint8)
ACTIONS = Box(np.asarray([-2.0, 0.5], np.float32), np.asarray([1.0, 4.0], np.float32))
NATURE = [[32, 8, 4], [64, 4, 2], [64, 3, 1]]
SPACES: dict[str, Any] = {
    "ppo_discrete": (VECTOR, Discrete(3)),
    "ppo_box": (VECTOR, ACTIONS),
    "ppo_image": (IMAGE, Discrete(3)),
    "sac": (VECTOR, ACTIONS),
}
MODELS: dict[str, Any] = {
    "ppo_image": {"hidden": [8], "activation": "relu", "vf_share_layers": True, "conv_filters": NATURE},
    "sac": {"hidden": [16, 8], "activation": "relu"},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "ppo": {
        "policy_class": {
            ":type:": "<class 'abc.ABCMeta'>",
            ":serialized:": "gAWV",
            "__module__": "stable_baselines3.common.policies",
            "__init__": "<function ActorCriticPolicy.__init__ at 0x7f0>",
        },
        "policy_kwargs": {},
        "use_sde": False,
    },
    "sac": {
        "policy_class": {
            "__module__": "stable_baselines3.sac.policies",
            "__init__": "<function SACPolicy.__init__ at 0x7f0>",
        },
        "policy_kwargs": {"use_sde": False},
        "use_sde": False,
    },
}
ACTIVATION = "<class 'torch.nn.modules.activation.{}'>"


@pytest.fixture(scope="module")
def learners(backend: str) -> Callable[..., Any]:
    made: dict[str, Any] = {}

    def learner_for(case: str, **changes: Any) -> Any:
        key = json.dumps([case, changes])
        if key not in made:
            config: Any = SACConfig() if case == "sac" else PPOConfig()
            model = {**MODELS.get(case, {"hidden": [16, 8], "activation": "tanh"}), **changes}
            observations, actions = SPACES[case]
            spec = lc.RLModuleSpec(observation_space=observations, action_space=actions)
            config = config.framework(backend, compile=False).rl_module(model=model, rl_module_spec=spec)
            made[key] = config.build_learner()
        return made[key]

    return learner_for


def tensors_of(case: str) -> dict[str, np.ndarray]:
    return read_sb3(GOLDEN / f"sb3_{case}.zip", limit=1 << 22)


def saved(path: Path, tensors: dict[str, np.ndarray], settings: dict[str, Any]) -> Path:
    path.write_bytes(zip_of({"data": json.dumps(settings).encode(), "policy.pth": policy_file(tensors)}))
    return path


def refused(path: Path, learner: Any) -> str:
    before = learner.get_state()
    with pytest.raises(lc.LearnerCoreError) as caught:
        lc.import_sb3(path, learner)
    assert not states_differ(before, learner.get_state())
    assert str(path) in str(caught.value) or "rl_module/default_policy" in str(caught.value)
    return str(caught.value)


def kwargs(case: str, **entries: Any) -> dict[str, Any]:
    settings = SETTINGS["sac" if case == "sac" else "ppo"]
    return {**settings, "policy_kwargs": {**settings["policy_kwargs"], **entries}}


def test_harmless_settings_are_taken(learners: Any, tmp_path: Path) -> None:
    harmless = {
        ":type:": "<class 'dict'>",
        ":serialized:": "gAWV",
        "ortho_init": False,
        "log_std_init": -2,
        "net_arch": [{"pi": [16, 8], "vf": [16, 8]}],
        "activation_fn": ACTIVATION.format("Tanh"),
        "features_extractor_class": "<class 'stable_baselines3.common.torch_layers.FlattenExtractor'>",
        "optimizer_class": "<class 'torch.optim.rmsprop.RMSprop'>",
        "optimizer_kwargs": {"alpha": 0.99, "eps": 1e-5},
    }
    tensors = tensors_of("ppo_discrete")
    learner = learners("ppo_discrete")
    path = saved(tmp_path / "model.zip", tensors, kwargs("ppo", **harmless))
    assert lc.import_sb3(path, learner) == {"algorithm": "ppo", "parameters": 12, "ignored": []}
    weights = learner.get_module_state()["default_policy"]
    np.testing.assert_array_equal(weights["pi.0.weight"], tensors["mlp_extractor.policy_net.0.weight"])


@pytest.mark.parametrize(
    ("case", "change", "said"),
    [
        ("ppo_discrete", {"activation_fn": ACTIVATION.format("ReLU")}, "activation_fn: the model has 'relu'"),
        ("ppo_discrete", {"activation_fn": ACTIVATION.format("Mish")}, "an activation that has no counterpart here"),
        ("ppo_discrete", {"features_extractor_class": "<class 'mine.Scaled'>"}, "a features extractor with no counter"),
        (
            "ppo_discrete",
            {"features_extractor_class": "<class 'x.common.torch_layers.CombinedExtractor'>"},
            "CombinedE",
        ),
        ("ppo_discrete", {"features_extractor_kwargs": {"scale": 0.5}}, "features_extractor_kwargs/scale"),
        ("ppo_discrete", {"use_sde": True}, "state-dependent exploration"),
        ("ppo_box", {"squash_output": True}, "squashes its actions"),
        ("ppo_discrete", {"lstm_hidden_size": 16}, "policy_kwargs/lstm_hidden_size"),
        ("ppo_image", {"normalize_images": False}, "divides them by 255"),
        ("ppo_image", {"features_extractor_kwargs": {"normalized_image": True}}, "normalized_image"),
        ("sac", {"activation_fn": ACTIVATION.format("Tanh")}, "the model has 'tanh', the learner's module 'relu'"),
        ("sac", {"use_sde": True}, "state-dependent exploration"),
    ],
)
def test_settings_that_answer_otherwise_are_refused(
    case: str, change: Any, said: str, learners: Any, tmp_path: Path
) -> None:
    """All of these have weights of fitting sizes."""
    path = saved(tmp_path / "model.zip", tensors_of(case), kwargs(case, **change))
    assert said in refused(path, learners(case))


@pytest.mark.parametrize(
    ("case", "change", "said"),
    [
        ("ppo_discrete", {"activation": "relu"}, "the model has 'tanh', the learner's module 'relu'"),
        ("ppo_image", {"conv_activation": "tanh"}, "conv_activation='tanh'"),
        ("sac", {"activation": "tanh"}, "the model has 'relu', the learner's module 'tanh'"),
    ],
)
def test_a_module_that_answers_otherwise_is_refused(case: str, change: Any, said: str, learners: Any) -> None:
    assert said in refused(GOLDEN / f"sb3_{case}.zip", learners(case, **change))


def space(kind: str, **entries: Any) -> dict[str, Any]:
    return {":type:": f"<class 'gymnasium.spaces.{kind.lower()}.{kind}'>", ":serialized:": "gAWV", **entries}


@pytest.mark.parametrize(
    ("case", "change", "said"),
    [
        ("sac", {"action_space": space("Box", _shape=[2], low="[-2.  0.5]", high="[1. 5.]")}, "high is [1. 5.]"),
        ("ppo_discrete", {"action_space": space("Discrete", n="3", start="1")}, "start at 1"),
        ("ppo_discrete", {"action_space": space("MultiDiscrete", nvec="[3]")}, "the model has a MultiDiscrete"),
        ("ppo_discrete", {"observation_space": space("Box", shape=[6], low="?", high="?")}, "has shape (6,)"),
        ("ppo_discrete", {"observation_space": space("Dict")}, "the model has a Dict"),
        ("ppo_discrete", {"use_sde": True}, "state-dependent exploration"),
    ],
)
def test_spaces_that_differ_are_refused(case: str, change: Any, said: str, learners: Any, tmp_path: Path) -> None:
    path = saved(tmp_path / "model.zip", tensors_of(case), {**kwargs(case), **change})
    assert said in refused(path, learners(case))


def weight(*shape: int) -> np.ndarray:
    return np.full(shape, 0.5, np.float32)


@pytest.mark.parametrize(
    ("case", "more", "said"),
    [
        ("ppo_discrete", {"features_extractor.net.0.weight": weight(5, 5)}, "features_extractor.net.0.weight"),
        ("ppo_discrete", {"mlp_extractor.shared_net.0.weight": weight(5, 5)}, "mlp_extractor.shared_net.0.weight"),
        ("ppo_discrete", {"log_std": weight(3)}, "log_std"),
        ("sac", {"critic.qf2.0.weight": weight(16, 7)}, "critic.qf2.0.weight"),
        ("sac", {"actor.features_extractor.net.weight": weight(5, 5)}, "actor.features_extractor.net.weight"),
    ],
)
def test_tensors_without_a_place_are_refused(case: str, more: Any, said: str, learners: Any, tmp_path: Path) -> None:
    path = saved(tmp_path / "model.zip", {**tensors_of(case), **more}, kwargs(case))
    assert said in refused(path, learners(case))


def test_an_lstm_of_fitting_sizes_is_refused(learners: Any, tmp_path: Path) -> None:
    more = {"lstm_actor.weight_ih_l0": weight(20, 5), "lstm_critic.weight_ih_l0": weight(20, 5)}
    path = saved(tmp_path / "model.zip", {**tensors_of("ppo_discrete"), **more}, {})
    assert "a model of RecurrentPPO" in refused(path, learners("ppo_discrete"))


def test_features_extractors_of_their_own_are_refused(learners: Any, tmp_path: Path) -> None:
    tensors = tensors_of("ppo_image")
    twin = next(name for name in tensors if name.startswith("vf_features_extractor."))
    settings = kwargs("ppo", features_extractor_kwargs={"features_dim": 8})
    settings["policy_class"] = {**settings["policy_class"], "__init__": "<function ActorCriticCnnPolicy.__init__ at 0>"}
    learner = learners("ppo_image")
    lc.import_sb3(saved(tmp_path / "model.zip", tensors, settings), learner)
    path = saved(tmp_path / "other.zip", {**tensors, twin: tensors[twin] + 1}, settings)
    assert "features extractors of their own" in refused(path, learner)


@pytest.mark.parametrize(
    ("module", "maker", "said"),
    [
        ("stable_baselines3.dqn.policies", "DQNPolicy", "a model of DQN"),
        ("stable_baselines3.td3.policies", "TD3Policy", "a model of TD3 or DDPG"),
        ("sb3_contrib.tqc.policies", "TQCPolicy", "a model of TQC"),
        ("sb3_contrib.qrdqn.policies", "QRDQNPolicy", "a model of QR-DQN"),
        ("sb3_contrib.common.recurrent.policies", "RecurrentActorCriticPolicy", "a model of RecurrentPPO"),
        ("stable_baselines3.common.policies", "MultiInputActorCriticPolicy", "a MultiInputActorCriticPolicy of stable"),
        ("mine.policies", "ActorCriticPolicy", "a ActorCriticPolicy of mine.policies"),
    ],
)
def test_other_algorithms_and_policies_are_named(
    module: str, maker: str, said: str, learners: Any, tmp_path: Path
) -> None:
    settings = kwargs("ppo")
    settings["policy_class"] = {"__module__": module, "__init__": f"<function {maker}.__init__ at 0x7f0>"}
    path = saved(tmp_path / "model.zip", tensors_of("ppo_discrete"), settings)
    assert said in refused(path, learners("ppo_discrete"))


@pytest.mark.parametrize("content", [b"\x80\x04N.", b"[]", b"{", b"[" * 100_000])
def test_settings_that_cannot_be_read_are_refused(content: bytes, learners: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    path.write_bytes(zip_of({"data": content, "policy.pth": policy_file(tensors_of("ppo_discrete"))}))
    assert "settings are no JSON" in refused(path, learners("ppo_discrete"))


@pytest.mark.skipif(not CORPUS.is_dir(), reason="the collection of trained agents is not beside the checkout")
def test_the_collection_is_taken_or_refused_in_words(learners: Any) -> None:
    """Each file into a learner of other spaces: the settings say why before any size does."""
    reasons = {"dqn": "a model of DQN", "qrdqn": "a model of QR-DQN", "tqc": "a model of TQC"}
    for path in sorted(CORPUS.glob("*/*/*.zip")):
        said = refused(path, learners("sac" if path.parts[-3] == "sac" else "ppo_box"))
        other_sizes = "bytes that are needed" in said or "rl_module/default_policy" in said
        assert reasons.get(path.parts[-3], "data/") in said or other_sizes, said
        assert path.parts[-3] not in reasons or not other_sizes, said
