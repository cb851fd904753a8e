"""Weights of RLlib's, CleanRL's and Stable-Baselines3's usual networks: the learner answers as the network did."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

import learner_core as lc
from learner_core.errors import ConfigError, StateError
from learner_core.exporting.sb3 import read_sb3
from learner_core_algorithms import APPOConfig, PPOConfig, SACConfig

from support.peer_networks import CASES, HIDDEN, HIGH, IMAGE, LOW, SIZE

MID = "default_policy"
FILTERS = [[4, 4, 2], [3, 3, 2]]
Cases = dict[str, dict[str, dict[str, np.ndarray]]]


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    """case -> "arrays" and "answers" -> name -> array."""
    path = tmp_path_factory.mktemp("peers") / "networks.npz"
    tests = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-m", "support.peer_networks", str(path)], check=True, cwd=tests)
    found: Cases = {case: {"arrays": {}, "answers": {}} for case in CASES}
    with np.load(path) as written:
        for key in written.files:
            case, group, name = key.split("|")
            found[case][group][name] = written[key]
    return found


def model_of(case: str) -> dict[str, Any]:
    """The settings that make the learner's network the one of a case."""
    source, kind = case.split("_", 1)
    if "sac" in kind:
        return {"hidden": list(HIDDEN), "activation": "relu"}
    model: dict[str, Any] = {"hidden": list(HIDDEN), "activation": "tanh"}
    if "image" in kind:
        own: dict[str, Any] = {"hidden": []} if source == "rllib" else {"hidden": [6], "activation": "relu"}
        model = {**own, "conv_filters": FILTERS}
        model["vf_share_layers"] = True
    if "lstm" in kind or "gru" in kind:
        model |= {"recurrent": "lstm" if "lstm" in kind else "gru", "recurrent_size": 8}
        model["hidden"] = [6] if "image" in kind else [HIDDEN[0]]
        model["vf_share_layers"] = "apart" not in kind
    if source == "rllib":
        model["vf_share_layers"] = "apart" not in kind
        model |= {"free_log_std": False} if kind == "box" else {}
    return model


def learner_for(case: str, backend: str, config: Any = None, **changes: Any) -> Any:
    is_sac, box = case.endswith("sac"), case.endswith(("box", "free", "sac"))
    config = config or (SACConfig() if is_sac else PPOConfig())
    spec = lc.RLModuleSpec(
        observation_space=Box(0, 255, IMAGE, np.uint8) if "image" in case else Box(-9, 9, (SIZE,), np.float32),
        action_space=Box(LOW, HIGH) if box else Discrete(3),
    )
    config.framework(backend, compile=False).rl_module(model={**model_of(case), **changes}, rl_module_spec=spec)
    return config.build_learner()


def answers_of(learner: Any, answers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the learner's module answers, on its own framework."""
    backend, module = learner.backend, learner.module[MID].unwrapped
    state = {**learner.get_module_state()[MID]}
    convert = backend.from_numpy
    params, obs = convert(state), convert({"x": answers["obs"]})["x"]
    batch: dict[str, Any] = {"obs": obs}
    start = module.initial_state()
    if start:
        batch["state_in"] = convert({leaf: np.repeat(value[None], 3, 0) for leaf, value in start.items()})
    outputs = module.forward_train(params, batch)
    found = {"inputs": outputs["action_dist_inputs"]}
    if "vf_preds" in outputs:
        found["values"] = outputs["vf_preds"]
    if "q" in answers:
        actions = convert({"x": answers["actions"]})["x"]
        found |= {f"q{number}": q for number, q in enumerate(module.q(params, obs, actions))}
        targets = convert(learner.get_state()["targets"][MID])
        found |= {f"target_q{number}": q for number, q in enumerate(module.q({**params, **targets}, obs, actions))}
    return dict(backend.to_numpy(found))


#: On TensorFlow in the fast tier, one of each kind; on Torch all.
_ALSO_ON_TF = ("cleanrl_image", "rllib_box", "rllib_lstm", "sb3_sac")


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=() if c in _ALSO_ON_TF else pytest.mark.fast_on_torch) for c in CASES]
)
def test_the_learner_answers_as_the_network(training_backend_name: str, cases: Cases, case: str) -> None:
    learner = learner_for(case, training_backend_name)
    arrays, answers = cases[case]["arrays"], cases[case]["answers"]
    told = lc.import_weights(arrays, learner, source=case.split("_", maxsplit=1)[0])
    found = answers_of(learner, answers)
    np.testing.assert_allclose(found["inputs"], answers["inputs"], rtol=1e-5, atol=2e-5)
    if "values" in answers:
        np.testing.assert_allclose(found["values"], answers["values"], rtol=1e-5, atol=2e-5)
    for what in ("q", "target_q"):
        expected = answers.get(what, answers.get("q"))  # target networks that are not given are copies
        for number in range(0 if expected is None else 2):
            np.testing.assert_allclose(found[f"{what}{number}"], expected[number], rtol=1e-5, atol=2e-5)
    assert told["algorithm"] == ("sac" if case.endswith("sac") else "ppo")
    own = learner.get_state()
    assert told["parameters"] in (len(own["rl_module"][MID]), len(own["rl_module"][MID]) + len(own["targets"][MID]))
    assert all(name.endswith("log_std_clip_param_const") for name in told["ignored"])


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(c, marks=pytest.mark.fast_on_torch if c in ("rllib_free", "sb3_sac") else pytest.mark.slow)
        for c in CASES
    ],
)
def test_every_array_counts(training_backend_name: str, cases: Cases, case: str) -> None:
    """One missing, one too much, one of another shape, one that is not finite: refused, and nothing has changed."""
    learner = learner_for(case, training_backend_name)
    source, arrays = case.split("_", maxsplit=1)[0], cases[case]["arrays"]
    before = learner.get_module_state()[MID]
    ours = [name for name in arrays if not name.endswith("const")]
    twice = [name for name in ours if name.startswith(("pi_features", "vf_features"))]
    for name in ours:
        less = {key: value for key, value in arrays.items() if key != name}
        if name not in twice:
            with pytest.raises((StateError, ConfigError)):
                lc.import_weights(less, learner, source=source)
        bad = np.array(arrays[name])
        bad.flat[-1] = np.nan
        with pytest.raises(StateError, match="NaN"):
            lc.import_weights({**arrays, name: bad}, learner, source=source)
        wide = np.concatenate([arrays[name], arrays[name]], 0)
        with pytest.raises((StateError, ConfigError)):
            lc.import_weights({**arrays, name: wide}, learner, source=source)
    with pytest.raises(StateError, match="have no place in the learner's module"):
        lc.import_weights({**arrays, "extra.weight": np.ones(3)}, learner, source=source)
    for name, value in learner.get_module_state()[MID].items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.fast_on_torch
@pytest.mark.parametrize("case", ["rllib_sac", "rllib_apart", "rllib_shared", "cleanrl_box", "sb3_discrete", "sb3_sac"])
def test_the_policy_alone(training_backend_name: str, cases: Cases, case: str) -> None:
    learner = learner_for(case, training_backend_name)
    before = learner.get_module_state()[MID]
    arrays, answers = cases[case]["arrays"], cases[case]["answers"]
    told = lc.import_weights(arrays, learner, source=case.split("_", maxsplit=1)[0], policy_only=True)
    np.testing.assert_allclose(answers_of(learner, answers)["inputs"], answers["inputs"], rtol=1e-5, atol=2e-5)
    critics = [name for name in before if name.startswith(("vf", "qf"))]
    assert critics and told["ignored"]
    for name in critics:
        np.testing.assert_array_equal(learner.get_module_state()[MID][name], before[name])


@pytest.mark.fast_on_torch
def test_optimizers_start_anew_and_an_appo_target_follows(training_backend_name: str, cases: Cases) -> None:
    learner = learner_for("cleanrl_discrete", training_backend_name, APPOConfig())
    state = learner.get_state()
    for entry in state["optimizer"][MID].values():
        entry["step"] = 7
    learner.set_state(state)
    lc.import_weights(cases["cleanrl_discrete"]["arrays"], learner, source="cleanrl")
    after = learner.get_state()
    assert {entry["step"] for entry in after["optimizer"][MID].values()} == {0}
    for name, value in after["targets"][MID].items():
        np.testing.assert_array_equal(value, after["rl_module"][MID][name])


@pytest.mark.fast_on_torch
def test_an_algorithm_goes_on_from_them(training_backend_name: str) -> None:
    config = PPOConfig().environment("CartPole-v1").framework(training_backend_name, compile=False)
    config.training(train_batch_size=64, minibatch_size=32, num_epochs=1).rl_module(model={"hidden": [3]})
    rng = np.random.default_rng(0)
    arrays = {
        "actor.0.weight": rng.normal(size=(3, 4)), "actor.0.bias": rng.normal(size=3),
        "actor.2.weight": rng.normal(size=(2, 3)), "actor.2.bias": rng.normal(size=2),
        "critic.0.weight": rng.normal(size=(3, 4)), "critic.0.bias": rng.normal(size=3),
        "critic.2.weight": rng.normal(size=(1, 3)), "critic.2.bias": rng.normal(size=1),
    }  # fmt: skip
    with config.build() as algo:
        told = lc.import_weights(arrays, algo, source="cleanrl")
        assert told == {"algorithm": "ppo", "parameters": 8, "ignored": []}
        np.testing.assert_allclose(algo.learner_group.get_weights()[MID]["pi.1.weight"], arrays["actor.2.weight"], 1e-6)
        algo.train()


@pytest.mark.fast_on_torch
def test_actions_that_rllib_did_not_normalise(training_backend_name: str, cases: Cases) -> None:
    """With normalize_actions=False its policy gives them in the environment's unit, as ours does."""
    learner = learner_for("rllib_free", training_backend_name)
    arrays = cases["rllib_free"]["arrays"]
    lc.import_weights(arrays, learner, source="rllib", normalize_actions=False)
    own = learner.get_module_state()[MID]
    np.testing.assert_array_equal(own["pi.0.weight"], arrays["pi.net.mlp.0.weight"])
    np.testing.assert_array_equal(own["log_std"], arrays["pi.log_std"])
    lc.import_weights(arrays, learner, source="rllib")
    own = learner.get_module_state()[MID]
    np.testing.assert_allclose(own["pi.0.weight"], arrays["pi.net.mlp.0.weight"] * [[1.5], [1.75]], rtol=1e-6)
    np.testing.assert_allclose(own["pi.0.bias"], arrays["pi.net.mlp.0.bias"] * [1.5, 1.75] + [-0.5, 2.25], rtol=1e-5)
    np.testing.assert_allclose(own["log_std"], arrays["pi.log_std"] + np.log([1.5, 1.75]), rtol=1e-5)


def refused(cases: Cases, case: str, text: str, error: type[Exception] = StateError, **settings: Any) -> None:
    changes = settings.pop("model", {})
    arrays = {**cases[case]["arrays"], **settings.pop("more", {})}
    learner = learner_for(case, settings.pop("backend"), settings.pop("config", None), **changes)
    with pytest.raises(error, match=text):
        lc.import_weights(arrays, learner, **{"source": case.split("_", maxsplit=1)[0], **settings})


@pytest.mark.fast_on_torch
def test_what_has_no_counterpart_is_named(training_backend_name: str, cases: Cases) -> None:
    backend = training_backend_name
    refused(
        cases, "rllib_shared", r"model={'vf_share_layers': True}", model={"vf_share_layers": False}, backend=backend
    )
    refused(cases, "rllib_apart", r"model={'vf_share_layers': False}", model={"vf_share_layers": True}, backend=backend)
    refused(cases, "rllib_box", r"model={'free_log_std': False}", model={"free_log_std": True}, backend=backend)
    refused(cases, "cleanrl_box", r"model={'free_log_std': True}", model={"free_log_std": False}, backend=backend)
    head = {"pi.net.mlp.2.weight": np.ones((3, 3)), "pi.net.mlp.2.bias": np.ones(3)}
    refused(cases, "rllib_shared", "head_fcnet_hiddens", more=head, backend=backend)
    fused = {"qf_encoder.base_encoders.obs.net.mlp.0.weight": np.ones((3, 3))}
    refused(cases, "rllib_sac", "policy_only=True takes the policy alone", more=fused, backend=backend)
    refused(cases, "sb3_sac", "of SAC, .*has no critics", ConfigError, config=PPOConfig(), backend=backend)
    refused(cases, "sb3_discrete", "Did you mean 'sb3'", ConfigError, source="sb4", backend=backend)
    squashed = {"fc_mean.weight": np.ones((2, 2)), "fc_logstd.weight": np.ones((2, 2))}
    refused(cases, "cleanrl_box", "CleanRL's SAC", more=squashed, backend=backend)
    block = {"network.0.conv.weight": np.ones((2, 2)), "network.0.conv.bias": np.ones(2)}
    refused(cases, "cleanrl_discrete", "residual block", more=block, backend=backend)
    padded = {
        f"encoder.encoder.net.0.cnn.{index}.{part}": np.ones(shape)
        for index in (1, 4)
        for part, shape in (("weight", (2, 2, 2, 2)), ("bias", (2,)))
    }
    refused(cases, "rllib_image", "'same'.*entries end in 'valid'", more=padded, backend=backend)


class Tensor:
    """Stands for one of a framework."""


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({}, "expected {name: numpy array}"),
        ([1], "expected {name: numpy array}"),
        ({"default_policy": {"pi.0": 1}}, r"give that of one, arrays\['default_policy'\]"),
        ({"actor.0.weight": Tensor()}, r"Tensor: expected a numpy array.*tensor.detach\(\).cpu\(\).numpy\(\)"),
        ({"actor.0.weight": np.array(["x"])}, "numpy array of numbers"),
        ({"actor.0.weight": np.array([None])}, "numpy array of numbers"),
    ],
)
def test_what_is_no_array_is_refused(training_backend_name: str, arrays: Any, text: str) -> None:
    learner = learner_for("cleanrl_discrete", training_backend_name)
    with pytest.raises(ConfigError, match=text):
        lc.import_weights(arrays, learner, source="cleanrl")


# ---- real files ------------------------------------------------------------------------------------------------------

_FOLDERS = [folder / "shared" / "corpus" / "sb3" for folder in Path(__file__).parents]
CORPUS = next((folder for folder in _FOLDERS if folder.is_dir()), Path("corpus"))


@pytest.mark.fast_on_torch
@pytest.mark.parametrize("run", ["ppo/CartPole-v1_1", "a2c/CartPole-v1_1", "ppo/Acrobot-v1_1", "sac/Hopper-v3_1"])
def test_arrays_of_real_models_are_those_of_their_files(training_backend_name: str, run: str) -> None:
    """By either door, the file or its arrays, a learner is given the same weights."""
    files = sorted((CORPUS / run).glob("*.zip"))
    if not files:
        pytest.skip(f"{CORPUS / run} is not there")
    arrays = read_sb3(files[0], limit=1 << 26)
    if run.startswith("sac"):
        inputs, actions = arrays["actor.latent_pi.0.weight"].shape[1], arrays["actor.mu.bias"].size
        config: Any = SACConfig().rl_module(model={"hidden": [256, 256], "activation": "relu"})
        space: Any = Box(-1, 1, (actions,))
    else:
        inputs, actions = arrays["mlp_extractor.policy_net.0.weight"].shape[1], arrays["action_net.bias"].size
        config = PPOConfig().rl_module(model={"hidden": [64, 64], "activation": "tanh"})
        space = Discrete(actions)
    spec = lc.RLModuleSpec(observation_space=Box(-np.inf, np.inf, (inputs,)), action_space=space)
    config.framework(training_backend_name, compile=False).rl_module(rl_module_spec=spec)
    by_arrays, by_file = config.build_learner(), config.build_learner()
    told = lc.import_weights(arrays, by_arrays, source="sb3")
    assert lc.import_sb3(files[0], by_file) == told
    for part in ("rl_module", "targets", "variables"):
        ours, theirs = (learner.get_state()[part][MID] for learner in (by_arrays, by_file))
        for name, value in ours.items():
            np.testing.assert_array_equal(value, theirs[name])
