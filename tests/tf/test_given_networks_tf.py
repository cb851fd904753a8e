"""Keras' own kinds of models in ``module_class``, and Keras on another framework: refused in words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import pytest
import tensorflow as tf
from gymnasium.spaces import Box, Discrete
from keras import layers

import learner_core as lc
from learner_core.errors import ConfigError
from learner_core_algorithms import PPOConfig
from learner_core_tf import given_networks

from support.learners import ppo_batch


def build(network: Any) -> Any:
    spec = lc.RLModuleSpec(network, observation_space=Box(-1, 1, (3,)), action_space=Discrete(2))
    config = PPOConfig().framework("tf", compile=False).training(train_batch_size=8, minibatch_size=4)
    return config.rl_module(rl_module_spec=spec).build_learner()


class Network(keras.Model):
    def __init__(self, rows: int | None = None) -> None:
        super().__init__()
        self.rows, self.pi, self.vf = rows, layers.Dense(2), layers.Dense(1)

    def call(self, obs: Any) -> Any:
        obs = obs if self.rows is None else tf.reshape(obs, (self.rows, 3))
        return self.pi(obs), self.vf(obs)


class NeedsSizes(Network):
    def __init__(self) -> None:
        raise KeyError("sizes")


def two_inputs() -> Any:
    inputs = [keras.Input((3,)), keras.Input((3,))]
    hidden = layers.Concatenate()(inputs)
    return keras.Model(inputs, [layers.Dense(2)(hidden), layers.Dense(1)(hidden)])


def quantized() -> Any:
    inputs = keras.Input((3,))
    model = keras.Model(inputs, [layers.Dense(2)(inputs), layers.Dense(1)(inputs)])
    model.quantize("int8")
    return model


def test_a_model_that_was_not_built_is_built() -> None:
    learner = build(Network())
    assert learner.update_from_batch(batch=ppo_batch(8, Discrete(2)))["default_policy"]["num_minibatch_steps"] > 0


@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have:UserWarning")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (two_inputs, r"call\(obs\) failed on two observations of Box.*2 named input"),
        (lambda: Network(2), r"call\(obs\) failed on three observations of Box.*InvalidArgumentError"),
        (lambda: NeedsSizes, "NeedsSizes raised KeyError: 'sizes'"),
        (quantized, "was built in int8, the learner computes in float32"),
        (lambda: layers.Dense(2), "expected an RLModule subclass, or for backend 'tf' a keras Model"),
    ],
)
def test_what_cannot_be_trained_says_why(make: Any, words: str) -> None:
    given = make()
    with pytest.raises(ConfigError, match=words):
        build(given)


# ---- Keras on another framework --------------------------------------------------------------------------------------


def test_keras_on_tensorflow_is_taken() -> None:
    given_networks.refuse_other_backends("to='keras'")


@pytest.mark.parametrize("said_by", ["variable", "file"])
def test_keras_on_torch_is_refused_before_it_is_imported(said_by: str, tmp_path: Path) -> None:
    settings = tmp_path / "keras.json"
    settings.write_text('{"backend": "torch"}' if said_by == "file" else "{")
    environment = {**os.environ, "KERAS_HOME": str(tmp_path)}
    environment.pop("KERAS_BACKEND", None)
    if said_by == "variable":
        environment["KERAS_BACKEND"] = "jax"
    code = (
        "import sys\nfrom learner_core_tf.given_networks import refuse_other_backends as check\n"
        "try:\n    check(\"to='keras'\")\nexcept Exception as error:\n    print(type(error).__name__, error)\n"
        "print([name for name in ('keras', 'torch', 'jax') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    words, loaded = done.stdout.splitlines()
    on, by = {"variable": ("jax", "KERAS_BACKEND"), "file": ("torch", str(settings))}[said_by]
    assert words.startswith(
        f"ConfigError to='keras' needs Keras on TensorFlow, and here it runs on {on!r} ({by} says so)"
    )
    assert loaded == "[]"


def test_an_export_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = build(Network())
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(ConfigError, match="to='keras' needs Keras on TensorFlow, and here it runs on 'torch'"):
        lc.export(learner, tmp_path / "policy.keras")
    with pytest.raises(ConfigError, match="a network of Keras needs Keras on TensorFlow"):
        build(Network())
