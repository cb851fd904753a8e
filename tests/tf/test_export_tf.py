"""Exports to Keras: a model of Keras' own layers, read back by a process that knows Keras alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import keras
import numpy as np
import pytest

import learner_core as lc
from learner_core.exporting.onnx_file import sample_observations
from learner_core.exporting.source import nest
from learner_core_algorithms import BCConfig
from learner_core_tf.backend import TfBackend

from support.user_policies import POLICIES, exported_policy, state_of


@pytest.mark.parametrize("case", POLICIES)
def test_the_model_answers_as_numpy_does(case: str, tmp_path: Path) -> None:
    policy = exported_policy(case)
    TfBackend(device="cpu").export_policy(policy, tmp_path / "policy.keras")
    model = keras.models.load_model(tmp_path / "policy.keras")
    for rows in (1, 5):
        obs, state = nest(sample_observations(policy, rows)), state_of(policy, rows)
        answers = model({"obs": obs, "state_in": state} if state else obs)
        expected = policy.answer(obs, state)
        assert answers.keys() == expected.keys()
        for name, value in [*expected.pop("state_out", {}).items(), *expected.items()]:
            answer = answers[name] if name in answers else answers["state_out"][name]
            np.testing.assert_allclose(np.asarray(answer), value, rtol=1e-5, atol=1e-5)


def test_its_layers_are_named_after_the_weights(tmp_path: Path) -> None:
    TfBackend(device="cpu").export_policy(exported_policy("image, shared"), tmp_path / "policy.keras")
    names = {layer.name for layer in keras.models.load_model(tmp_path / "policy.keras").layers}
    assert {"encoder.conv.0", "encoder.0", "pi.0"} <= names


def test_it_is_read_by_a_process_that_knows_keras_alone(tmp_path: Path) -> None:
    policy = exported_policy("continuous")
    TfBackend(device="cpu").export_policy(policy, tmp_path / "policy.keras")
    obs = sample_observations(policy, 3)["obs"]
    program = f"""
import sys, json, numpy as np
sys.modules["learner_core"] = sys.modules["learner_core_tf"] = None
import keras
model = keras.models.load_model({str(tmp_path / "policy.keras")!r})
print(json.dumps(np.asarray(model(np.array({obs.tolist()}, "float32"))["action_dist_inputs"]).tolist()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    expected = policy.answer(obs)["action_dist_inputs"]
    np.testing.assert_allclose(json.loads(done.stdout.splitlines()[-1]), expected, rtol=1e-5, atol=1e-5)


def make_network() -> keras.Model:
    return keras.Sequential([keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(2)])


def test_a_users_own_model_is_saved_as_it_is(tmp_path: Path) -> None:
    space = gym.spaces.Box(-1, 1, (4,), np.float32)
    spec = lc.RLModuleSpec(module_class=make_network, observation_space=space, action_space=gym.spaces.Discrete(2))
    learner = BCConfig().framework("tf", compile=False).rl_module(rl_module_spec=spec).build_learner()
    model = keras.models.load_model(lc.export(learner, tmp_path / "net.keras"))
    obs = np.random.default_rng(0).uniform(-1, 1, (3, 4)).astype(np.float32)
    ours = learner.module["default_policy"].forward_inference({"obs": learner.backend.from_numpy({"x": obs})["x"]})
    np.testing.assert_allclose(np.asarray(model(obs)), np.asarray(ours["action_dist_inputs"]), rtol=1e-6, atol=1e-6)
    with pytest.raises(lc.ConfigError, match="one framework's own"):
        lc.export(learner, tmp_path / "net.onnx")
    with pytest.raises(lc.ConfigError, match=r"end in \.keras"):
        lc.export(learner, tmp_path / "net.h5", to="keras")
