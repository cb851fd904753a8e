"""A user's own keras.Model in a learner: what moves, what stays, what compiles, what is refused."""

from __future__ import annotations

import random
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from gymnasium.spaces import Box, Discrete
from keras import layers

from learner_core import RLModuleSpec
from learner_core.errors import ConfigError
from learner_core_algorithms import BCConfig
from learner_core_tf import xp

OBS = Box(-5, 5, (6,), np.float32)
ACTIONS = Discrete(3)


@keras.saving.register_keras_serializable()
class Net(keras.Model):
    """A frozen layer, batch normalisation, a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = layers.Dense(8, trainable=False)
        self.norm = layers.BatchNormalization()
        self.pi = layers.Dense(3)
        self.scale = self.add_weight(shape=(3,), initializer="ones", name="scale")

    def call(self, obs: Any) -> Any:
        return self.pi(tf.tanh(self.norm(self.first(obs)))) * self.scale


def spec(module_class: Any, space: Any = OBS, **model: Any) -> RLModuleSpec:
    return RLModuleSpec(module_class=module_class, observation_space=space, action_space=ACTIONS, model=model)


def learner(module_class: Any, *, seed: int = 0, **framework: Any) -> Any:
    config = BCConfig().training(train_batch_size=32, minibatch_size=16, lr=1e-2).debugging(seed=seed)
    config = config.framework("tf", **{"compile": False, **framework})
    return config.rl_module(rl_module_spec=spec(module_class)).build_learner()


def batch() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {"obs": rng.normal(size=(30, 6)).astype(np.float32), "actions": rng.integers(0, 3, 30)}


def weights_of(learner: Any) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = learner.get_module_state()["default_policy"]
    return found


def test_only_what_may_move_moves_and_the_instance_does_not() -> None:
    network = Net()
    network(np.zeros((1, 6), np.float32))
    values = [keras.ops.convert_to_numpy(variable).copy() for variable in network.variables]
    one = learner(network)
    before, state = weights_of(one), one.get_state()
    np.testing.assert_array_equal(before["pi.weight"], keras.ops.convert_to_numpy(network.pi.kernel).T)
    assert "first.weight" not in state["optimizer"]["default_policy"]["default"]["slots"]["m"]
    assert set(state["buffers"]["default_policy"]) == {"norm.running_mean", "norm.running_var"}
    one.update_from_batch(batch=batch())
    moved = {name for name, value in weights_of(one).items() if not np.array_equal(value, before[name])}
    assert moved == set(before) - {"first.weight", "first.bias"}
    for value, variable in zip(values, network.variables, strict=True):
        np.testing.assert_array_equal(value, keras.ops.convert_to_numpy(variable))


def test_a_class_starts_from_the_configured_seed_alone() -> None:
    random.seed(1)
    first = weights_of(learner(Net))["pi.weight"]
    state = random.getstate()
    second = weights_of(learner(Net))["pi.weight"]
    assert random.getstate() == state
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, weights_of(learner(Net, seed=1))["pi.weight"])


def dropout() -> keras.Model:
    return keras.Sequential([layers.Dense(16, activation="tanh"), layers.Dropout(0.5), layers.Dense(3)])


def recurrent() -> keras.Model:
    return keras.Sequential([layers.Reshape((3, 2)), layers.LSTM(4), layers.Dense(3)])


@pytest.mark.parametrize("made", [Net, recurrent])
def test_compiled_and_eager_agree(made: Any) -> None:
    eager, compiled = (learner(made, compile=choice) for choice in (False, True))
    compiled.set_state(eager.get_state())
    for _ in range(2):
        eager.update_from_batch(batch=batch())
        assert compiled.update_from_batch(batch=batch())["__all__"]["compiled"] == 1.0
    for name, value in weights_of(compiled).items():
        np.testing.assert_allclose(value, weights_of(eager)[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_dropout_resumes_exactly_though_it_is_not_portable() -> None:
    """Keras keeps the generator's state in a variable, so it is in the state as a buffer."""
    with pytest.warns(UserWarning, match=r"not portable: keras_state\.0"):
        one, other = learner(dropout), learner(dropout)
        one.update_from_batch(batch=batch())
        other.set_state(one.get_state())
        one.update_from_batch(batch=batch())
        other.update_from_batch(batch=batch())
    for name, value in weights_of(one).items():
        np.testing.assert_array_equal(value, weights_of(other)[name])


def test_names_follow_attributes_or_count_layers_with_weights() -> None:
    def functional() -> keras.Model:
        obs = keras.Input((6,))
        x = layers.Activation("tanh")(layers.Dense(4)(obs))
        return keras.Model(obs, layers.Dense(3, name="pi")(layers.LayerNormalization()(layers.Dense(5)(x))))

    names = list(spec(functional).build(xp).init(np.random.default_rng(0)))
    assert names[::2] == ["0.weight", "1.weight", "2.weight", "pi.weight"]


@pytest.mark.parametrize(
    ("make", "name", "reason"),
    [
        (
            lambda: keras.Sequential(
                [layers.Reshape((3, 2, 1)), layers.Conv2D(2, 2, 2, padding="same"), layers.Flatten(), layers.Dense(3)]
            ),
            "0.weight",
            "pads unevenly",
        ),
        (
            lambda: keras.Sequential([layers.Reshape((3, 2)), layers.GRU(4, reset_after=False), layers.Dense(3)]),
            "0.weight_ih_l0",
            "reset_after=False",
        ),
        (
            lambda: keras.Sequential([layers.Dense(4), layers.GroupNormalization(2), layers.Dense(3)]),
            "1.gamma",
            "no other framework's layer is known for GroupNormalization",
        ),
        (
            lambda: keras.Sequential([layers.Reshape((3, 2)), layers.LSTM(4, activation="relu"), layers.Dense(3)]),
            "0.weight_hh_l0",
            "activations relu and sigmoid",
        ),
        (
            lambda: keras.Sequential(
                [layers.Reshape((3, 2)), layers.RNN([layers.LSTMCell(4), layers.LSTMCell(5)]), layers.Dense(3)]
            ),
            "0.weight_hh_l1",
            "cells of different sizes",
        ),
        (
            lambda: keras.Sequential([layers.Reshape((3, 2)), layers.RNN(layers.SimpleRNNCell(4)), layers.Dense(3)]),
            "0.cell.kernel",
            "no other framework's layer is known for SimpleRNNCell",
        ),
        (
            lambda: keras.Sequential(
                [layers.Reshape((3, 2)), layers.Bidirectional(layers.SimpleRNN(4)), layers.Dense(3)]
            ),
            "0.backward_layer.cell.kernel",
            "no other framework's layer is known for SimpleRNNCell",
        ),
    ],
)
def test_what_cannot_move_is_named(make: Any, name: str, reason: str) -> None:
    with pytest.warns(UserWarning, match="not portable"):
        module = spec(make).build(xp)
    assert reason in module.not_portable[name]


@pytest.mark.parametrize(
    ("module_class", "text"),
    [
        (lambda: keras.Sequential([layers.Dense(4)]), r"shape \(2, 4\) for two observations, expected \(2, 3\)"),
        (lambda depth: Net(), "needs the argument 'depth'"),
        (lambda: layers.Dense(3), "made an object of type keras"),
        (object, "builtins.object is neither an RLModule subclass nor"),
        (lambda: keras.Sequential([layers.Reshape((4,)), layers.Dense(3)]), r"call\(obs\) failed on two observations"),
    ],
)
def test_refusals_name_what_came(module_class: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        spec(module_class).build(xp)


def test_float64_needs_a_network_of_that_dtype() -> None:
    assert weights_of(learner(Net, precision="float64"))["pi.weight"].dtype == np.float64
    network = Net()
    network(np.zeros((1, 6), np.float32))
    with pytest.raises(ConfigError, match="was built in float32, the learner computes in float64"):
        learner(network, precision="float64")
