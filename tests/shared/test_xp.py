"""The namespace: literal values, dtypes and ties; every function against an oracle is in test_xp_oracles.py."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import pytest

from learner_core import errors, numpy_xp
from learner_core.xp import Namespace, map_tree

from support.namespaces import MODES, host, run

NAN, INF = math.nan, math.inf
PROTOCOL = sorted(name for name in (*vars(Namespace), *Namespace.__annotations__) if not name.startswith("_"))


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def f64(*values: float) -> np.ndarray:
    return np.array(values, np.float64)


def gradient(xp: Any, f: Any, x: np.ndarray, mode: str = "eager") -> np.ndarray:
    """Gradient of sum(f(x))."""

    def differentiate(x: Any) -> Any:
        return xp.value_and_grad(lambda named: xp.sum(f(named["x"])))({"x": x})[1]["x"]

    return run(xp, mode, differentiate, x)


def test_public_names_are_sorted_and_are_the_protocols(xp: Any, backend_name: str) -> None:
    assert isinstance(xp, Namespace)
    assert xp.name == backend_name
    assert list(xp.__all__) == sorted(xp.__all__)
    extra = {"numpy": [], "torch": ["bfloat16", "gru", "lstm"], "tf": ["bfloat16"]}[backend_name]
    assert sorted(xp.__all__) == sorted([*PROTOCOL, *extra])


def test_every_function_of_the_protocol_is_documented() -> None:
    functions = [name for name, value in vars(Namespace).items() if inspect.isfunction(value) and name[0] != "_"]
    assert len(functions) > 60
    assert [name for name in functions if not getattr(Namespace, name).__doc__] == []


# ---- literal values -------------------------------------------------------------------------------------------------

X = f64(-2.0, -0.5, 0.0, 0.5, 2.0)
LITERALS = {
    "abs": (lambda xp, x: xp.abs(x), [2.0, 0.5, 0.0, 0.5, 2.0]),
    "sign": (lambda xp, x: xp.sign(x), [-1.0, -1.0, 0.0, 1.0, 1.0]),
    "floor": (lambda xp, x: xp.floor(x), [-2.0, -1.0, 0.0, 0.0, 2.0]),
    "square": (lambda xp, x: xp.square(x), [4.0, 0.25, 0.0, 0.25, 4.0]),
    "sqrt": (lambda xp, x: xp.sqrt(xp.abs(x) * 2), [2.0, 1.0, 0.0, 1.0, 2.0]),
    "exp": (
        lambda xp, x: xp.exp(x),
        [0.1353352832366127, 0.6065306597126334, 1.0, 1.6487212707001282, 7.38905609893065],
    ),
    "sigmoid": (
        lambda xp, x: xp.sigmoid(x),
        [0.11920292202211755, 0.3775406687981454, 0.5, 0.6224593312018546, 0.8807970779778823],
    ),
    "softplus": (
        lambda xp, x: xp.softplus(x),
        [0.1269280110429725, 0.4740769841801067, 0.6931471805599453, 0.9740769841801067, 2.1269280110429727],
    ),
    "erf": (
        lambda xp, x: xp.erf(x),
        [-0.9953222650189527, -0.5204998778130465, 0.0, 0.5204998778130465, 0.9953222650189527],
    ),
    "relu": (lambda xp, x: xp.relu(x), [0.0, 0.0, 0.0, 0.5, 2.0]),
    "elu": (lambda xp, x: xp.elu(x), [-0.8646647167633873, -0.3934693402873666, 0.0, 0.5, 2.0]),
    "gelu, exact": (
        lambda xp, x: xp.gelu(x),
        [-0.04550026389635842, -0.15426876936299344, 0.0, 0.34573123063700656, 1.9544997361036416],
    ),
    "silu": (
        lambda xp, x: xp.silu(x),
        [-0.2384058440442351, -0.1887703343990727, 0.0, 0.3112296656009273, 1.7615941559557646],
    ),
    "leaky_relu has torch's slope": (lambda xp, x: xp.leaky_relu(x), [-0.02, -0.005, 0.0, 0.5, 2.0]),
    "clip": (lambda xp, x: xp.clip(x, -0.5, 1.0), [-0.5, -0.5, 0.0, 0.5, 1.0]),
    "clip, one side": (lambda xp, x: xp.clip(x, None, 0.0) + xp.clip(x, lo=1.0), [-1.0, 0.5, 1.0, 1.0, 2.0]),
    "clip, 0-d array and number": (
        lambda xp, x: xp.clip(x, xp.asarray(-1.0, x.dtype), 1.0),
        [-1.0, -0.5, 0.0, 0.5, 1.0],
    ),
    "maximum, number": (lambda xp, x: xp.maximum(x, 0.25), [0.25, 0.25, 0.25, 0.5, 2.0]),
    "minimum, number first": (lambda xp, x: xp.minimum(0.25, x), [-2.0, -0.5, 0.0, 0.25, 0.25]),
    "where, number": (lambda xp, x: xp.where(x > 0, x, -1.0), [-1.0, -1.0, -1.0, 0.5, 2.0]),
    "pow": (lambda xp, x: xp.pow(x, 2) + xp.pow(2.0, x), [4.25, 0.9571067811865476, 1.0, 1.6642135623730951, 8.0]),
    "cumulative_sum": (lambda xp, x: xp.cumulative_sum(x, axis=0), [-2.0, -2.5, -2.5, -2.0, 0.0]),
    "flip": (lambda xp, x: xp.flip(x, axis=0), [2.0, 0.5, 0.0, -0.5, -2.0]),
    "split by sizes": (lambda xp, x: xp.concat(xp.split(x, [2, 3], axis=0)[::-1], axis=0), [0.0, 0.5, 2.0, -2.0, -0.5]),
    "take": (lambda xp, x: xp.take(x, xp.asarray(np.array([4, 0, 4])), axis=0), [2.0, -2.0, 2.0]),
    "mean": (lambda xp, x: xp.mean(x * x), 1.7),
    "logsumexp": (lambda xp, x: xp.logsumexp(x + 1000.0), 1002.3776594770466),
    "log_softmax": (
        lambda xp, x: xp.log_softmax(x, axis=-1),
        [-4.37765947704661, -2.8776594770466097, -2.3776594770466097, -1.8776594770466097, -0.37765947704660974],
    ),
    "layer_norm, variance over n": (
        lambda xp, x: xp.layer_norm(x, xp.full_like(x, 2.0), xp.ones_like(x), eps=0.0),
        [-2.0678599553894816, 0.2330350111526296, 1.0, 1.7669649888473704, 4.067859955389482],
    ),
    "one_hot, outside is zeros": (
        lambda xp, x: xp.one_hot(xp.asarray(np.array([1, 0, 2, -1])), 2, dtype=xp.float64),
        [[0.0, 1.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]],
    ),
    "dropout": (
        lambda xp, x: xp.dropout(x, 0.2, xp.asarray(f64(0.1, 0.2, 0.3, 0.19, 0.9))),
        [0.0, -0.625, 0.0, 0.0, 2.5],
    ),
    "linear": (
        lambda xp, x: xp.linear(x[:2], xp.asarray(np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])), x[1:4]),
        [-3.5, -8.0, -12.5],
    ),
    "scan, backwards": (
        lambda xp, x: xp.scan(lambda c, x_t: (0.5 * c + x_t, 0.5 * c + x_t), x[0] * 0, x, reverse=True)[1],
        [-2.0625, -0.125, 0.75, 1.5, 2.0],
    ),
}


@pytest.mark.parametrize("case", LITERALS)
def test_literal_values(xp: Any, mode: str, case: str) -> None:
    f, expected = LITERALS[case]
    got = run(xp, mode, lambda x: f(xp, x), X)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, expected, rtol=1e-14, atol=1e-15)


def test_conv2d_by_hand(xp: Any, mode: str) -> None:
    # One 3x3 image of two channels; the kernel takes the upper left of channel 0 and the lower right of channel 1.
    image = np.arange(18.0).reshape(1, 3, 3, 2)
    kernel = np.zeros((1, 2, 2, 2))
    kernel[0, 0, 0, 0], kernel[0, 1, 1, 1] = 1.0, 10.0
    got = run(xp, mode, lambda x, w: xp.conv2d(x, w, xp.asarray(f64(0.5))), image, kernel)
    # upper left of channel 0: 0 2 / 6 8;  lower right of channel 1: 9 11 / 15 17
    np.testing.assert_array_equal(got[0, :, :, 0], [[90.5, 112.5], [156.5, 178.5]])
    got = run(xp, mode, lambda x, w: xp.conv2d(x, w, stride=2, padding=1), image, kernel)
    # padded to 5x5, windows at rows and columns 0 and 2 of it
    np.testing.assert_array_equal(got[0, :, :, 0], [[10.0, 50.0], [130.0, 178.0]])


@pytest.mark.parametrize("value", [-1e4, -800.0, -40.0, 40.0, 800.0, 1e4])
def test_stable_functions_neither_overflow_nor_warn(xp: Any, value: float) -> None:
    def f(x: Any) -> Any:
        pair = xp.stack([x, -x], axis=-1)
        return (
            xp.sigmoid(x), xp.softplus(x), xp.softmax(pair, axis=-1)[..., 0], xp.log_softmax(pair, axis=-1)[..., 0],
            xp.logsumexp(pair, axis=-1), xp.elu(x), xp.gelu(x), xp.silu(x),
        )  # fmt: skip

    with np.errstate(all="raise", under="ignore"):
        got = [float(part[0]) for part in run(xp, "eager", f, f64(value))]
    big = value > 0
    assert got[0] == pytest.approx(1.0 if big else math.exp(value), rel=1e-14)
    assert got[1] == pytest.approx(value if big else math.exp(value), rel=1e-14)
    assert got[2] == pytest.approx(1.0 if big else math.exp(2 * value), rel=1e-14)
    assert got[3] == pytest.approx(-math.exp(-2 * value) if big else 2 * value, rel=1e-14, abs=1e-30)
    assert got[4] == pytest.approx(abs(value), rel=1e-14)
    assert got[5] == (value if big else -1.0)
    assert got[6] == pytest.approx(value if big else 0.0, abs=1e-15)
    assert got[7] == pytest.approx(value if big else value * math.exp(value), rel=1e-14)


def test_infinities_and_nan(xp: Any, mode: str) -> None:
    x = f64(-INF, NAN, 1.0, INF)
    np.testing.assert_array_equal(run(xp, mode, lambda x: xp.isfinite(x), x), [False, False, True, False])
    np.testing.assert_array_equal(run(xp, mode, lambda x: xp.isnan(x), x), [False, True, False, False])
    either = run(xp, mode, lambda x: xp.stack([xp.maximum(x, 0.0), xp.minimum(x, 0.0)], 0), x)
    assert np.isnan(either[:, 1]).all()
    either = run(xp, mode, lambda x: xp.stack([f(xp.zeros_like(x), x) for f in (xp.maximum, xp.minimum)], 0), x)
    assert np.isnan(either[:, 1]).all()
    np.testing.assert_array_equal(run(xp, mode, lambda x: xp.maximum(x, 0.0), x), [0.0, NAN, 1.0, INF])
    np.testing.assert_array_equal(run(xp, mode, lambda x: xp.clip(x, -5.0, 5.0), x), [-5.0, NAN, 1.0, 5.0])
    assert run(xp, mode, lambda x: xp.logsumexp(x, axis=0), f64(-INF, -INF)) == -INF
    huge = f64(1.7e308)
    np.testing.assert_array_equal(run(xp, mode, lambda x: xp.maximum(x, 1.0), huge), huge)


# ---- dtypes ---------------------------------------------------------------------------------------------------------


def test_asarray_dtypes(xp: Any) -> None:
    for value, dtype in [
        (1.5, np.float32), (3, np.int64), (True, np.bool_), ([1.0, 2.0], np.float32), ([1, 2], np.int64),
        ([True, False], np.bool_), (np.float64(1.0), np.float64), (np.zeros(2, np.float64), np.float64),
        (np.zeros(2, np.uint8), np.uint8), (np.arange(2, dtype=np.int32), np.int32),
    ]:  # fmt: skip
        got = host(xp.asarray(value))
        assert got.dtype == dtype, value
        np.testing.assert_array_equal(got, value)
    assert host(xp.asarray(np.arange(3), xp.float64)).dtype == np.float64
    assert host(xp.asarray(xp.asarray([1, 0]), xp.bool)).dtype == np.bool_


def test_asarray_takes_awkward_arrays(xp: Any) -> None:
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    frozen = base.copy()
    frozen.flags.writeable = False
    for awkward in (frozen, base.astype(">f4"), np.asfortranarray(base), base[::-1, ::-2], base[1], np.float32(3)):
        np.testing.assert_array_equal(host(xp.asarray(awkward)), awkward)


def test_asarray_keeps_the_arrays_of_its_own_namespace(xp: Any) -> None:
    array = xp.ones((2, 2))
    assert xp.asarray(array) is array
    assert xp.asarray(array, xp.float32) is array


def test_bfloat16(xp: Any, training_backend_name: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = xp.asarray(np.array([1.0, -2.5], ml_dtypes.bfloat16))
    assert array.dtype == xp.bfloat16
    np.testing.assert_array_equal(host(xp.astype(array, xp.float32)), [1.0, -2.5])
    assert xp.maximum(array, 0.0).dtype == xp.bfloat16


def test_creation(xp: Any, mode: str) -> None:
    def f(x: Any) -> Any:
        return {
            "zeros": xp.zeros((2, 1)), "ones": xp.ones(3), "full": xp.full((2,), 7, xp.int64),
            "full0d": xp.full((2,), x[0], xp.float64), "zeros_like": xp.zeros_like(x),
            "ones_like": xp.ones_like(x, dtype=xp.int32), "full_like": xp.full_like(x, 0.1),
            "full_like0d": xp.full_like(x, x[1]), "arange": xp.arange(3), "arangef": xp.arange(3, dtype=xp.float32),
            "bool": xp.astype(x, xp.bool), "int": xp.astype(x * 1.9, xp.int32), "scalar": xp.full((), 2.0),
        }  # fmt: skip

    got = run(xp, mode, f, f64(-1.0, 1.0))
    expected = {
        "zeros": np.zeros((2, 1), np.float32), "ones": np.ones(3, np.float32), "full": np.array([7, 7]),
        "full0d": f64(-1, -1), "zeros_like": f64(0, 0), "ones_like": np.ones(2, np.int32),
        "full_like": f64(0.1, 0.1), "full_like0d": f64(1, 1), "arange": np.arange(3),
        "arangef": np.arange(3, dtype=np.float32), "bool": np.array([True, True]),
        "int": np.array([-1, 1], np.int32), "scalar": np.float32(2.0),
    }  # fmt: skip
    for name, value in expected.items():
        assert got[name].dtype == value.dtype, name
        np.testing.assert_array_equal(got[name], value, err_msg=name)


def test_numbers_take_the_dtype_of_the_array_they_meet(xp: Any, mode: str) -> None:
    for dtype in (np.float32, np.float64):
        got = run(
            xp, mode,
            lambda x: [
                xp.maximum(x, 0.1), xp.minimum(0.1, x), xp.where(x > 0, x, 0), xp.where(x > 0, 0.1, x), xp.pow(x, 2),
                xp.clip(x, 0.1, 1), xp.sigmoid(x), xp.erf(x), xp.gelu(x), xp.elu(x), xp.leaky_relu(x), xp.softplus(x),
                xp.layer_norm(x, None, None), xp.dropout(x, 0.1, x), xp.full_like(x, 1), 0.1 * x, x / 255.0, xp.relu(x),
                xp.logsumexp(x), xp.mean(x), xp.silu(x),
            ],
            np.array([-0.5, 0.1, 2.0], dtype),
        )  # fmt: skip
        assert {part.dtype for part in got} == {np.dtype(dtype)}
        assert got[0][0] == dtype(0.1)  # not 0.1 rounded to float32 on the way
    condition = np.array([True, False])
    pairs = run(xp, mode, lambda c: [xp.where(c, 1.0, 0.0), xp.where(c, 1, 0), xp.where(c, True, False)], condition)
    assert [part.dtype for part in pairs] == [np.float32, np.int64, np.bool_]


def test_integers_and_booleans_are_summed_in_int64(xp: Any, mode: str) -> None:
    for x in (np.array([[True, True], [False, True]]), np.full((2, 2), 200, np.uint8), np.ones((2, 2), np.int32)):
        got = run(
            xp, mode, lambda x: [xp.sum(x), xp.sum(x, axis=0), xp.prod(x, axis=1), xp.cumulative_sum(x, axis=0)], x
        )
        assert {part.dtype for part in got} == {np.dtype(np.int64)}
        assert got[0] == x.astype(np.int64).sum()


def test_argmax_is_int64_and_takes_the_first_of_equals(xp: Any, mode: str) -> None:
    got = run(xp, mode, lambda x: xp.argmax(x, axis=-1), np.array([[1.0, 3.0, 3.0], [2.0, 0.0, 2.0]], np.float32))
    assert got.dtype == np.int64
    np.testing.assert_array_equal(got, [1, 0])


def test_refusals(xp: Any, backend_name: str) -> None:
    refused = errors.LearnerCoreError
    integers = xp.asarray(np.arange(3))
    with pytest.raises(refused if backend_name != "torch" else RuntimeError, match="dtype"):
        xp.mean(integers)
    if backend_name != "numpy":  # numpy promotes
        with pytest.raises((refused, TypeError), match=r"0\.5"):
            xp.maximum(integers, 0.5)
    with pytest.raises(Exception, match=r"(?i)axis|squeeze"):  # each framework by its own class
        xp.squeeze(xp.zeros((2, 3)), axis=0)
    with pytest.raises(Exception, match=r"(?i)split|size"):
        xp.split(xp.zeros((4,)), [1, 2], axis=0)
    if backend_name == "numpy":
        with pytest.raises(refused, match="inference"):
            xp.value_and_grad(lambda named: named["x"])


# ---- subgradients ---------------------------------------------------------------------------------------------------


def test_ties_are_pinned(xp: Any, training_backend_name: str, mode: str) -> None:
    ties, other = f64(0.0, 1.0, 2.0), f64(0.0, 0.0, 3.0)
    for f, expected in [
        (lambda x: xp.maximum(x, xp.asarray(other)), [0.5, 1.0, 0.0]),
        (lambda x: xp.maximum(xp.asarray(other), x), [0.5, 1.0, 0.0]),
        (lambda x: xp.minimum(x, xp.asarray(other)), [0.5, 0.0, 1.0]),
        (lambda x: xp.maximum(x, 1.0), [0.0, 0.5, 1.0]),
        (lambda x: xp.maximum(1.0, x), [0.0, 0.5, 1.0]),
        (lambda x: xp.minimum(x, 1.0), [1.0, 0.5, 0.0]),
        (lambda x: xp.maximum(x, x), [1.0, 1.0, 1.0]),
        (lambda x: xp.clip(x, 0.0, 1.0), [1.0, 1.0, 0.0]),
        (lambda x: xp.clip(x, 1.0), [0.0, 1.0, 1.0]),
        (lambda x: xp.clip(x, None, 1.0), [1.0, 1.0, 0.0]),
        (lambda x: xp.clip(x, xp.asarray(1.0, xp.float64), 1.5), [0.0, 1.0, 0.0]),
        (lambda x: xp.abs(x), [0.0, 1.0, 1.0]),
        (lambda x: xp.relu(x), [0.0, 1.0, 1.0]),
        (lambda x: xp.leaky_relu(x), [0.01, 1.0, 1.0]),
        (lambda x: xp.max(x * 0), [0.0, 0.0, 0.0]),
        (lambda x: xp.sign(x) + xp.floor(x), [0.0, 0.0, 0.0]),
        (lambda x: xp.stop_gradient(x) * x, [0.0, 1.0, 2.0]),
    ]:
        np.testing.assert_array_equal(gradient(xp, f, ties, mode), expected)
    np.testing.assert_array_equal(gradient(xp, xp.max, f64(2.0, 1.0, 2.0), mode), [0.5, 0.0, 0.5])
    np.testing.assert_array_equal(gradient(xp, xp.min, f64(1.0, 1.0, 2.0), mode), [0.5, 0.5, 0.0])


def test_bounds_of_clip_get_gradients_where_they_bind(xp: Any, training_backend_name: str, mode: str) -> None:
    def f(bound: Any) -> Any:
        return xp.clip(xp.asarray(f64(0.0, 1.0, 2.0)), None, bound) + xp.clip(
            xp.asarray(f64(0.0, 1.0, 2.0)), 0.5, bound
        )

    assert gradient(xp, f, np.array(1.0), mode) == 2.0


# ---- gradients of functions, loops ----------------------------------------------------------------------------------


def test_value_and_grad(xp: Any, training_backend_name: str, mode: str) -> None:
    def program(x: Any, unused: Any) -> Any:
        # x outside of f's argument is a constant
        return xp.value_and_grad(lambda named: xp.sum(named["x"] * x))({"x": x, "unused": unused})

    value, gradients = run(xp, mode, program, f64(1.0, 2.0), f64(5.0))
    assert value == 5.0
    np.testing.assert_array_equal(gradients["x"], [1.0, 2.0])
    np.testing.assert_array_equal(gradients["unused"], [0.0])


def test_value_and_grad_of_a_constant_is_zero(xp: Any, training_backend_name: str) -> None:
    value, gradients = xp.value_and_grad(lambda named: xp.sum(xp.ones(3)))({"x": xp.ones((2, 2))})
    assert float(value) == 3.0
    np.testing.assert_array_equal(host(gradients["x"]), np.zeros((2, 2)))


def test_gradients_of_gradients(xp: Any, training_backend_name: str, mode: str) -> None:
    """A gradient penalty: d/dw of sum((d/dx sum(w x^3))^2) = 18 w sum(x^4)."""

    def program(w: Any, x: Any) -> Any:
        def penalty(named: Any) -> Any:
            inner = xp.value_and_grad(lambda inputs: xp.sum(named["w"] * xp.pow(inputs["x"], 3)))({"x": x})
            return xp.sum(xp.square(inner[1]["x"]))

        return xp.value_and_grad(penalty)({"w": w})

    value, gradients = run(xp, mode, program, np.array(2.0), f64(1.0, 2.0))
    np.testing.assert_allclose(value, 9 * 4 * 17, rtol=1e-14)
    np.testing.assert_allclose(gradients["w"], 18 * 2 * 17, rtol=1e-14)


@pytest.mark.parametrize("length", [1, 5, 40])
@pytest.mark.parametrize("reverse", [False, True])
def test_scan_carries_trees_both_ways(xp: Any, mode: str, length: int, reverse: bool) -> None:
    x = np.random.default_rng(0).normal(size=(length, 3))

    def program(x: Any) -> Any:
        def step(carry: Any, slices: Any) -> Any:
            total, (product,) = carry
            total = total * 0.9 + slices["a"]
            return (total, (product * xp.cos(slices["b"]),)), {"total": total, "pair": (total * 2, slices["b"])}

        return xp.scan(step, (xp.zeros_like(x[0]), (xp.ones_like(x[0]),)), {"a": x, "b": x * 2}, reverse=reverse)

    (total, (product,)), ys = run(xp, mode, program, x)
    expected, totals = np.zeros(3), np.zeros((length, 3))
    for t in reversed(range(length)) if reverse else range(length):
        expected = expected * 0.9 + x[t]
        totals[t] = expected
    np.testing.assert_allclose(total, expected, rtol=1e-13)
    np.testing.assert_allclose(product, np.prod(np.cos(2 * x), axis=0), rtol=1e-12)
    np.testing.assert_allclose(ys["total"], totals, rtol=1e-13)
    np.testing.assert_allclose(ys["pair"][0], 2 * totals, rtol=1e-13)
    np.testing.assert_array_equal(ys["pair"][1], 2 * x)


def test_shapes_are_python_numbers(xp: Any) -> None:
    got = xp.shape(xp.zeros((2, 0, 3)))
    assert got == (2, 0, 3)
    assert all(type(length) is int for length in got)
    assert xp.shape(xp.asarray(1.0)) == ()


def test_map_tree_keeps_the_structure() -> None:
    tree = {"a": (1, [2, None]), "b": 3}
    assert map_tree(lambda x, y: x + y, tree, tree) == {"a": (2, [4, None]), "b": 6}
    with pytest.raises(ValueError, match="zip"):
        map_tree(lambda x, y: x, (1, 2), (1,))


def test_numpy_modules_state_is_what_the_others_are_tested_by() -> None:
    assert numpy_xp.name == "numpy"
    assert not hasattr(numpy_xp, "bfloat16")
