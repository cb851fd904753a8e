"""Networks with reordered maps are tried with random numbers at build: what that finds, leaves alone and cannot do."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from gymnasium.spaces import Box, Discrete
from keras import layers, ops

from learner_core import RLModuleSpec
from learner_core.learning import element_order as rules, layout_proof
from learner_core.learning.element_order import Elements
from learner_core_tf import xp

MAPS = Box(-5, 5, (6, 5, 4), np.float32)


class Flat(keras.Model):
    """Turns its maps channels first; a function stands between them and the head."""

    def __init__(self, between: Callable[[Any], Any]) -> None:
        super().__init__()
        self.conv, self.norm = layers.Conv2D(3, 3, activation="tanh"), layers.BatchNormalization()
        self.pi = layers.Dense(3)
        self.between = between

    def call(self, obs: Any) -> Any:
        return self.pi(self.between(ops.transpose(self.norm(self.conv(obs)), (0, 3, 1, 2))))


def build(network: keras.Model) -> Any:
    spec = RLModuleSpec(module_class=network, observation_space=MAPS, action_space=Discrete(3))
    return spec.build(xp)


def flatten(x: Any) -> Any:
    return ops.reshape(x, (-1, int(np.prod(x.shape[1:]))))


def test_what_holds_is_portable() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = build(Flat(flatten))
    assert module.not_portable == {}
    assert module.not_proved == ""


def test_a_wrong_rule_for_reshapes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "reshaped", lambda elements, shape: rules.fresh(shape))
    with pytest.warns(UserWarning, match=r"not portable: pi\.weight: MatMul .*random numbers, it differs"):
        assert set(build(Flat(flatten)).not_portable) == {"pi.weight"}


def test_a_wrong_rule_for_reductions_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def turned(elements: Elements, axes: Any, *, keepdims: bool) -> Elements:
        numbers = elements.numbers.min(tuple(axes), keepdims=keepdims)[..., ::-1]
        return Elements(np.argsort(np.argsort(numbers.reshape(-1))).reshape(numbers.shape))

    monkeypatch.setattr(rules, "reduced", turned)
    with pytest.warns(UserWarning, match="MatMul"):
        assert "pi.weight" in build(Flat(lambda x: flatten(ops.mean(x, 2)))).not_portable


def test_a_wrong_order_of_columns_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = rules.mixed

    def reversed_columns(*args: Any) -> tuple[np.ndarray, Elements]:
        order, made = right(*args)
        return order[::-1].copy(), made

    monkeypatch.setattr(rules, "mixed", reversed_columns)
    with pytest.warns(UserWarning, match="MatMul"):
        assert set(build(Flat(flatten)).not_portable) == {"pi.weight"}


def test_a_constant_on_flattened_maps_is_found() -> None:
    with pytest.warns(UserWarning, match="action_dist_inputs: Mul .* it differs"):
        build(Flat(lambda x: flatten(x) * np.linspace(0.0, 1.0, 36, dtype=np.float32)))


def shuffled(x: Any) -> Any:
    return flatten(
        ops.transpose(
            tf.nn.depth_to_space(ops.pad(ops.transpose(x, (0, 2, 3, 1)), [[0, 0]] * 3 + [[0, 1]]), 2), (0, 3, 1, 2)
        )
    )


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (lambda x: flatten(x) + tf.random.normal((36,)), "it draws random numbers"),
        (shuffled, "DepthToSpace"),
    ],
)
def test_what_cannot_be_tried_is_said(between: Callable[[Any], Any], reason: str) -> None:
    with pytest.warns(UserWarning, match=f"is portable as far as it can be read, not tried: .*{reason}"):
        module = build(Flat(between))
    assert module.not_portable == {}
    assert reason in module.not_proved


def test_a_large_network_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout_proof, "_MAX_WEIGHTS", 100)
    with pytest.warns(UserWarning, match="not tried: it has [0-9]+ weights, more than 100"):
        assert build(Flat(flatten)).not_portable == {}


def test_nothing_is_changed_by_it() -> None:
    network = Flat(flatten)
    network(np.zeros((1, 6, 5, 4), np.float32))
    before = [keras.ops.convert_to_numpy(variable) for variable in network.variables]
    keras.utils.set_random_seed(3)
    states = random.getstate(), keras.config.floatx(), tf.random.get_global_generator().state.numpy()
    drawn = tf.random.uniform((2,)).numpy()
    keras.utils.set_random_seed(3)
    build(network)
    assert (random.getstate(), keras.config.floatx()) == states[:2]
    assert np.array_equal(tf.random.get_global_generator().state.numpy(), states[2])
    assert np.array_equal(tf.random.uniform((2,)).numpy(), drawn)
    for variable, value in zip(network.variables, before, strict=True):
        assert np.array_equal(keras.ops.convert_to_numpy(variable), value)
        assert variable.dtype == "float32"
