"""Networks and initial weights: literal values, structure, refusals, the same answers in every mode of a backend."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from learner_core import numpy_xp
from learner_core.errors import ConfigError
from learner_core.maths.networks import (
    ENCODER_SETTINGS,
    MLP,
    NATURE_FILTERS,
    ConvStack,
    activate,
    make_encoder,
    orthogonal,
    uniform_fan_in,
)

from support.namespaces import MODES, run


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def shapes(params: dict[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in params.items()}


# ---- initial weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (8, 3, 2, 2), (1, 7), (7, 1)])
def test_orthogonal_has_orthogonal_rows_or_columns(shape: tuple[int, ...]) -> None:
    weight = orthogonal(rng(), shape, gain=1.5)
    assert weight.shape == shape
    assert weight.dtype == np.float32
    assert weight.flags.c_contiguous
    matrix = weight.reshape(shape[0], -1).astype(np.float64)
    small = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(small, 2.25 * np.eye(len(small)), atol=1e-6)


def test_orthogonal_is_uniform_over_signs() -> None:
    # QR by itself would give one sign to the diagonal far too often.
    positive = np.mean([orthogonal(rng(seed), (2, 2))[0, 0] > 0 for seed in range(400)])
    assert 0.4 < positive < 0.6


def test_uniform_fan_in_fills_its_bounds() -> None:
    weight = uniform_fan_in(rng(), (100, 64), 64)
    assert weight.dtype == np.float32
    assert 0.124 < np.max(weight) < 0.125
    assert -0.125 < np.min(weight) < -0.124
    assert abs(np.mean(weight)) < 0.002


def test_the_same_seed_samples_the_same_weights() -> None:
    net = MLP("pi", 4, [8], 2)
    first, second, other = net.init(rng(3)), net.init(rng(3)), net.init(rng(4))
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])
    assert not np.array_equal(first["pi.0.weight"], other["pi.0.weight"])


def test_init_scales() -> None:
    params = MLP("pi", 64, [64, 64], 4, output_gain=0.01).init(rng())
    np.testing.assert_allclose(np.linalg.svd(params["pi.1.weight"])[1], math.sqrt(2), rtol=1e-5)
    np.testing.assert_allclose(np.linalg.svd(params["pi.2.weight"])[1], 0.01, rtol=1e-5)
    assert all(not np.any(params[f"pi.{i}.bias"]) for i in range(3))
    params = MLP("pi", 64, [64], 4, output_gain=0.01, init="uniform").init(rng())
    assert 0.12 < np.max(params["pi.0.weight"]) < 0.125
    assert 0.08 < np.max(np.abs(params["pi.0.bias"])) < 0.125
    assert 0.001 < np.max(np.abs(params["pi.1.weight"])) < 0.00125


# ---- MLP ------------------------------------------------------------------------------------------------------------


def test_mlp_by_hand(xp: Any, mode: str) -> None:
    net = MLP("q", 2, [2], 1, activation="relu")
    params = {
        "q.0.weight": np.array([[1.0, 2.0], [-1.0, 1.0]]),
        "q.0.bias": np.array([0.5, -1.0]),
        "q.1.weight": np.array([[3.0, 4.0]]),
        "q.1.bias": np.array([-2.0]),
    }
    # hidden of [1, 1]: relu(3.5, -1) = (3.5, 0); of [0, 3]: relu(6.5, 2) = (6.5, 2)
    got = run(xp, mode, lambda params, x: net.apply(xp, params, x), params, np.array([[1.0, 1.0], [0.0, 3.0]]))
    np.testing.assert_array_equal(got, [[8.5], [25.5]])


def test_mlp_structure() -> None:
    net = MLP("pi", 4, [8, 16], 3)
    assert (net.input_size, net.output_size) == (4, 3)
    assert shapes(net.init(rng())) == {
        "pi.0.weight": (8, 4), "pi.0.bias": (8,), "pi.1.weight": (16, 8), "pi.1.bias": (16,),
        "pi.2.weight": (3, 16), "pi.2.bias": (3,),
    }  # fmt: skip
    assert repr(net) == "MLP('pi', 4 -> 8 -> 16 -> 3, tanh)"
    assert MLP("pi", 4, [8]).output_size == 8
    assert MLP("pi", 4, [], 2).output_size == 2
    empty = MLP("pi", 4, [])
    assert (empty.output_size, empty.init(rng())) == (4, {})


def test_activation_follows_every_layer_but_the_head(xp: Any) -> None:
    x = np.full((1, 3), 100.0, np.float32)
    headless, headed = MLP("a", 3, [3]), MLP("a", 3, [], 3)
    params = {"a.0.weight": np.eye(3, dtype=np.float32), "a.0.bias": np.zeros(3, np.float32)}
    np.testing.assert_array_equal(run(xp, "eager", lambda p, x: headless.apply(xp, p, x), params, x), [[1.0] * 3])
    np.testing.assert_array_equal(run(xp, "eager", lambda p, x: headed.apply(xp, p, x), params, x), x)


def test_mlp_takes_leading_axes_and_other_dtypes(xp: Any, mode: str) -> None:
    net = MLP("pi", 4, [8], 3)
    params = {name: value.astype(np.float64) for name, value in net.init(rng()).items()}
    x = rng(1).normal(size=(5, 2, 4)).astype(np.float32)
    got = run(xp, mode, lambda params, x: net.apply(xp, params, x), params, x)
    assert got.shape == (5, 2, 3)
    assert got.dtype == np.float64
    hidden = np.tanh(x.astype(np.float64) @ params["pi.0.weight"].T)
    np.testing.assert_allclose(got, hidden @ params["pi.1.weight"].T, rtol=1e-12)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        ("elu", [-0.6321205588285577, 2.0]), ("gelu", [-0.15865525393145707, 1.9544997361036416]),
        ("identity", [-1.0, 2.0]), ("leaky_relu", [-0.01, 2.0]), ("relu", [0.0, 2.0]),
        ("sigmoid", [0.2689414213699951, 0.8807970779778823]), ("silu", [-0.2689414213699951, 1.7615941559557646]),
        ("softplus", [0.31326168751822286, 2.1269280110429727]), ("tanh", [-0.7615941559557649, 0.9640275800758169]),
    ],
)  # fmt: skip
def test_activations(xp: Any, activation: str, expected: list[float]) -> None:
    got = run(xp, "eager", lambda x: activate(xp, activation, x), np.array([-1.0, 2.0]))
    np.testing.assert_allclose(got, expected, rtol=1e-14)
    MLP("pi", 1, [1], activation=activation)


# ---- convolutions ---------------------------------------------------------------------------------------------------


def test_nature_stack() -> None:
    stack = ConvStack("cnn", (84, 84, 4))
    assert stack.output_shape == (7, 7, 64)
    assert stack.output_size == 3136
    assert shapes(stack.init(rng())) == {
        "cnn.0.weight": (32, 4, 8, 8), "cnn.0.bias": (32,), "cnn.1.weight": (64, 32, 4, 4), "cnn.1.bias": (64,),
        "cnn.2.weight": (64, 64, 3, 3), "cnn.2.bias": (64,),
    }  # fmt: skip
    assert repr(stack).startswith("ConvStack('cnn', (84, 84, 4) -> 32@8x8/4 -> 64@4x4/2 -> 64@3x3/1 -> 3136")


def test_bytes_are_scaled_floats_are_not_and_flattening_is_height_width_channels(xp: Any, mode: str) -> None:
    stack = ConvStack("cnn", (2, 2, 2), [(2, 1, 1)])
    weight = np.zeros((2, 2, 1, 1), np.float32)
    weight[0, 1], weight[1, 0] = 1.0, 2.0  # swap the channels, double the second
    params = {"cnn.0.weight": weight, "cnn.0.bias": np.zeros(2, np.float32)}
    image = np.array([[[[0, 51], [102, 255]], [[204, 153], [255, 0]]]], np.uint8)
    expected = np.array([[51, 0, 255, 204, 153, 408, 0, 510]])
    got = run(xp, mode, lambda params, x: stack.apply(xp, params, x), params, image)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected / 255, rtol=1e-6)
    got = run(xp, mode, lambda params, x: stack.apply(xp, params, x), params, image.astype(np.float32))
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_conv_stack_takes_leading_axes(xp: Any, mode: str, leading: tuple[int, ...]) -> None:
    stack = ConvStack("cnn", (12, 10, 3), [(4, (3, 5), (2, 1), (1, 0)), [5, 3, 2]], activation="tanh", init="uniform")
    assert stack.output_shape == (2, 2, 5)
    params = stack.init(rng())
    images = rng(1).integers(0, 256, (*leading, 12, 10, 3)).astype(np.uint8)
    got = run(xp, mode, lambda params, x: stack.apply(xp, params, x), params, images)
    assert got.shape == (*leading, 20)
    one_by_one = [stack.apply(numpy_xp, params, image[None]) for image in images.reshape(-1, 12, 10, 3)]
    np.testing.assert_allclose(got.reshape(-1, 20), np.concatenate(one_by_one), atol=1e-6)


# ---- encoders -------------------------------------------------------------------------------------------------------


def test_encoder_of_vectors() -> None:
    encoder = make_encoder("pi", (4,), {})
    assert encoder.output_size == 64
    assert shapes(encoder.init(rng()))["pi.1.weight"] == (64, 64)
    encoder = make_encoder("pi", (4,), {"hidden": [3], "activation": "relu", "log_std": "the module's own setting"})
    assert repr(encoder) == "MLP('pi', 4 -> 3, relu)"


def test_encoder_of_images(xp: Any, mode: str) -> None:
    encoder = make_encoder("pi", (84, 84, 4), {})
    assert encoder.output_size == 512
    assert repr(encoder).endswith("+ MLP('pi', 3136 -> 512, relu)")
    small = make_encoder("pi", (10, 10, 4), {"hidden": [32]})
    params = small.init(rng())
    assert shapes(params) == {
        "pi.conv.0.weight": (16, 4, 3, 3), "pi.conv.0.bias": (16,), "pi.0.weight": (32, 1024), "pi.0.bias": (32,),
    }  # fmt: skip
    image = rng().integers(0, 256, (5, 10, 10, 4)).astype(np.uint8)
    got = run(xp, mode, lambda params, x: small.apply(xp, params, x), params, image)
    assert got.shape == (5, 32)
    np.testing.assert_allclose(got, small.apply(numpy_xp, params, image), atol=1e-5)


@pytest.mark.parametrize(("shape", "model"), [((3, 2), {}), ((), {}), ((8, 8, 3), {"conv_filters": []})])
def test_other_shapes_are_flattened(xp: Any, mode: str, shape: tuple[int, ...], model: dict[str, Any]) -> None:
    encoder = make_encoder("pi", shape, {**model, "hidden": [5]})
    params = encoder.init(rng())
    x = rng(1).normal(size=(4, 7, *shape)).astype(np.float32)
    got = run(xp, mode, lambda params, x: encoder.apply(xp, params, x), params, x)
    expected = np.tanh(x.reshape(4, 7, -1) @ params["pi.0.weight"].T)
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MLP("pi", 4, [8], activation="tahn"), "activation='tahn'.*Did you mean 'tanh'"),
        (lambda: MLP("pi", 4, [8], init="ortogonal"), "init='ortogonal'.*'orthogonal'"),
        (lambda: MLP("pi", 4, 64), r"hidden=64.*\[64, 64\]"),
        (lambda: MLP("pi", 4, [0]), "pi.*at least 1, got 0"),
        (lambda: MLP("pi", 4, [2.5]), "pi.*got 2.5"),
        (lambda: ConvStack("cnn", (4, 84, 84)), r"conv_filters\[0\]=\(32, 8, 4\).*height=4 width=84"),
        (lambda: make_encoder("pi", (4, 84, 84), {}), r"\(height, width, channels\) and looks like \(channels"),
        (lambda: ConvStack("cnn", (84, 84)), "height, width, channels"),
        (lambda: ConvStack("cnn", (8, 8, 1), [(4, 3)]), r"conv_filters\[0\]=\(4, 3\): expected"),
        (lambda: ConvStack("cnn", (8, 8, 1), ["same"]), "expected"),
        (lambda: ConvStack("cnn", (8, 8, 1), [(4, 3, 0)]), "at least 1, got 0"),
        (lambda: ConvStack("cnn", (8, 8, 1), [(4, (3, 3, 3), 1)]), "vertical, horizontal"),
        (lambda: ConvStack("cnn", (8, 8, 1), activation="tahn"), "conv_activation='tahn'"),
        (lambda: make_encoder("pi", (4,), {"conv_filters": NATURE_FILTERS}), r"shape=\(4,\)"),
    ],
)
def test_refusals(build: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


def test_encoder_settings_are_sorted() -> None:
    assert list(ENCODER_SETTINGS) == sorted(ENCODER_SETTINGS)
