"""Every function of the namespace against an independent oracle, and its gradient against finite differences, float64.

The oracles are scipy, plain loops and numpy spelled out another way; the finite differences are taken of the numpy
namespace, which the first test holds to the oracles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from learner_core import numpy_xp
from learner_core.xp import Namespace

from support.namespaces import MODES, run

special = pytest.importorskip("scipy.special")
stats = pytest.importorskip("scipy.stats")

RNG = np.random.default_rng(7)
X = RNG.normal(size=(4, 6)) * 1.5
W = RNG.normal(size=(5, 6))
B = RNG.normal(size=5)
IMAGE = RNG.normal(size=(2, 7, 6, 3))
KERNEL = RNG.normal(size=(4, 3, 3, 2))
INDICES = np.array([2, 0, 3, 3])
COLUMNS = np.array([[5, 0], [1, 1], [0, 2], [4, 5]])
MASK = RNG.random((4, 6)) < 0.5
NOISE = RNG.random((4, 6))


class Case(NamedTuple):
    """A function of the namespace, its arguments, and what it must return."""

    function: Callable[..., Any]
    """(xp, *arguments) -> array."""
    oracle: Callable[..., Any]
    """(*arguments) -> numpy array."""
    arguments: tuple[np.ndarray, ...] = (X,)
    """Floating ones are differentiated."""


def brute_conv2d(x: np.ndarray, w: np.ndarray, stride: tuple[int, int], padding: tuple[int, int]) -> np.ndarray:
    rows, height, width, _ = x.shape
    outputs, _, kernel_height, kernel_width = w.shape
    padded = np.zeros((rows, height + 2 * padding[0], width + 2 * padding[1], x.shape[3]))
    padded[:, padding[0] : padding[0] + height, padding[1] : padding[1] + width] = x
    out_height = (padded.shape[1] - kernel_height) // stride[0] + 1
    out_width = (padded.shape[2] - kernel_width) // stride[1] + 1
    y = np.zeros((rows, out_height, out_width, outputs))
    for i in range(out_height):
        for j in range(out_width):
            top, left = i * stride[0], j * stride[1]
            window = padded[:, top : top + kernel_height, left : left + kernel_width]
            y[:, i, j] = np.einsum("nhwc,ochw->no", window, w)
    return y


def brute_scan(x: np.ndarray) -> np.ndarray:
    carry, ys = np.zeros(6), []
    for row in x[::-1]:
        carry = np.tanh(carry + row)
        ys.insert(0, carry * row)
    return np.stack([*ys, carry])


def scanned(xp: Any, x: Any, copies: int = 1) -> Any:
    x = xp.concat([x] * copies, axis=0)

    def step(carry: Any, row: Any) -> Any:
        carry = xp.tanh(carry + row)
        return carry, carry * row

    carry, ys = xp.scan(step, xp.zeros_like(x[0]), x, reverse=True)
    return xp.concat([ys, xp.expand_dims(carry, axis=0)], axis=0)


def constant(xp: Any, x: np.ndarray) -> Any:
    return xp.asarray(x)


CASES = {
    "abs": Case(lambda xp, x: xp.abs(x), lambda x: np.sqrt(x * x)),
    "exp": Case(lambda xp, x: xp.exp(x), lambda x: np.e**x),
    "log": Case(lambda xp, x: xp.log(x), np.log, (np.abs(X) + 0.1,)),
    "log1p": Case(lambda xp, x: xp.log1p(x), lambda x: np.log(1 + x), (np.abs(X),)),
    "expm1": Case(lambda xp, x: xp.expm1(x), lambda x: np.exp(x) - 1),
    "sqrt": Case(lambda xp, x: xp.sqrt(x), lambda x: x**0.5, (np.abs(X) + 0.1,)),
    "square": Case(lambda xp, x: xp.square(x), lambda x: x * x),
    "sign": Case(lambda xp, x: xp.sign(x), lambda x: np.where(x > 0, 1.0, -1.0)),
    "floor": Case(lambda xp, x: xp.floor(x), lambda x: x // 1),
    "sin": Case(lambda xp, x: xp.sin(x), lambda x: np.exp(1j * x).imag),
    "cos": Case(lambda xp, x: xp.cos(x), lambda x: np.exp(1j * x).real),
    "tanh": Case(lambda xp, x: xp.tanh(x), lambda x: 2 / (1 + np.exp(-2 * x)) - 1),
    "sigmoid": Case(lambda xp, x: xp.sigmoid(x), special.expit),
    "softplus": Case(lambda xp, x: xp.softplus(x), lambda x: -special.log_expit(-x), (np.linspace(-45, 45, 31),)),
    "erf": Case(lambda xp, x: xp.erf(x), special.erf),
    "relu": Case(lambda xp, x: xp.relu(x), lambda x: x * (x > 0)),
    "elu": Case(lambda xp, x: xp.elu(x), lambda x: np.where(x > 0, x, np.exp(x) - 1)),
    "gelu": Case(lambda xp, x: xp.gelu(x), lambda x: x * stats.norm.cdf(x)),
    "silu": Case(lambda xp, x: xp.silu(x), lambda x: x * special.expit(x)),
    "leaky_relu": Case(lambda xp, x: xp.leaky_relu(x, negative_slope=0.2), lambda x: x * np.where(x > 0, 1.0, 0.2)),
    "pow": Case(lambda xp, x: xp.pow(x, 3), lambda x: x * x * x),
    "pow, two arrays": Case(
        lambda xp, x, y: xp.pow(x, y), lambda x, y: np.exp(y * np.log(x)), (np.abs(X) + 0.5, W[:4])
    ),
    "pow, number first": Case(lambda xp, x: xp.pow(3.0, x), lambda x: np.exp(x * np.log(3.0))),
    "maximum": Case(lambda xp, x, y: xp.maximum(x, y), lambda x, y: np.where(x > y, x, y), (X, W[0])),
    "minimum": Case(lambda xp, x, y: xp.minimum(x, y), lambda x, y: np.where(x < y, x, y), (X, W[0])),
    "clip": Case(
        lambda xp, x: xp.clip(x, -0.7, 0.9),
        lambda x: np.array([sorted([-0.7, v, 0.9])[1] for v in x.flat]).reshape(x.shape),
    ),
    "clip, array bounds": Case(
        lambda xp, x, lo: xp.clip(x, lo, lo + 1.0), lambda x, lo: np.minimum(np.maximum(x, lo), lo + 1), (X, W[0])
    ),
    "where": Case(lambda xp, x, y: xp.where(constant(xp, MASK), x, y), lambda x, y: MASK * x + ~MASK * y, (X, W[0])),
    "isfinite": Case(lambda xp, x: xp.isfinite(x), lambda x: np.ones(x.shape, bool)),
    "isnan": Case(lambda xp, x: xp.isnan(x), lambda x: np.zeros(x.shape, bool)),
    "logical_and": Case(lambda xp, x: xp.logical_and(x > 0, x < 1), lambda x: (x > 0) & (x < 1)),
    "logical_or": Case(lambda xp, x: xp.logical_or(x < 0, x > 1), lambda x: (x < 0) | (x > 1)),
    "logical_not": Case(lambda xp, x: xp.logical_not(x < 0), lambda x: ~(x < 0)),
    "sum": Case(lambda xp, x: xp.sum(x), lambda x: np.array(sum(x.flat))),
    "sum, axes": Case(lambda xp, x: xp.sum(x, axis=(0, 2)), lambda x: np.einsum("abcd->bd", x), (IMAGE,)),
    "mean": Case(lambda xp, x: xp.mean(x), lambda x: np.array(sum(x.flat) / x.size)),
    "mean, axes": Case(
        lambda xp, x: xp.mean(x, axis=(-1, 1), keepdims=True),
        lambda x: np.einsum("abcd->ac", x)[:, None, :, None] / 21,
        (IMAGE,),
    ),
    "max": Case(lambda xp, x: xp.max(x), lambda x: np.array(sorted(x.flat)[-1])),
    "max, axis": Case(lambda xp, x: xp.max(x, axis=-1, keepdims=True), lambda x: np.sort(x, axis=-1)[:, -1:]),
    "min": Case(lambda xp, x: xp.min(x), lambda x: np.array(sorted(x.flat)[0])),
    "min, axes": Case(
        lambda xp, x: xp.min(x, axis=(1, 2)), lambda x: np.sort(x.reshape(2, 42, 3), axis=1)[:, 0], (IMAGE,)
    ),
    "prod": Case(lambda xp, x: xp.prod(x), lambda x: np.array(np.exp(np.sum(np.log(np.abs(x)))) * np.prod(np.sign(x)))),
    "prod, axes": Case(
        lambda xp, x: xp.prod(x, axis=(0, -1), keepdims=True),
        lambda x: np.array([[[[np.prod(x[:, i, j, :])] for j in range(6)] for i in range(7)]]),
        (IMAGE,),
    ),
    "any": Case(lambda xp, x: xp.any(x > 1.5), lambda x: np.array(bool((x > 1.5).sum()))),
    "any, axis": Case(lambda xp, x: xp.any(x > 1.5, axis=1), lambda x: (x > 1.5).sum(1) > 0),
    "all": Case(lambda xp, x: xp.all(x > -9.0), lambda x: np.array(True)),
    "all, axes": Case(
        lambda xp, x: xp.all(x > 0, axis=(1, 3), keepdims=True),
        lambda x: (x <= 0).sum((1, 3), keepdims=True) == 0,
        (IMAGE,),
    ),
    "logsumexp": Case(lambda xp, x: xp.logsumexp(x), lambda x: np.array(special.logsumexp(x))),
    "logsumexp, axes": Case(
        lambda xp, x: xp.logsumexp(x, axis=(1, 2), keepdims=True),
        lambda x: special.logsumexp(x, axis=(1, 2), keepdims=True),
        (IMAGE,),
    ),
    "argmax": Case(lambda xp, x: xp.argmax(x, axis=0), lambda x: np.argsort(x, axis=0)[-1]),
    "cumulative_sum": Case(lambda xp, x: xp.cumulative_sum(x, axis=1), lambda x: x @ np.triu(np.ones((6, 6)))),
    "reshape": Case(lambda xp, x: xp.reshape(x, (3, -1)), lambda x: np.array(list(x.flat)).reshape(3, 8)),
    "reshape, flat": Case(lambda xp, x: xp.reshape(x, -1), lambda x: np.array(list(x.flat))),
    "permute_dims": Case(
        lambda xp, x: xp.permute_dims(x, (3, 0, 2, 1)), lambda x: np.einsum("abcd->dacb", x), (IMAGE,)
    ),
    "expand_dims": Case(lambda xp, x: xp.expand_dims(x, axis=-2), lambda x: x[:, None, :]),
    "squeeze": Case(lambda xp, x: xp.squeeze(xp.reshape(x, (4, 1, 6, 1)), axis=(1, -1)), lambda x: x),
    "squeeze, one": Case(lambda xp, x: xp.squeeze(xp.reshape(x, (4, 1, 6, 1)), axis=1), lambda x: x[..., None]),
    "concat": Case(lambda xp, x, y: xp.concat([x, y, x], axis=0), lambda x, y: np.vstack([x, y, x]), (X, W)),
    "stack": Case(lambda xp, x: xp.stack([x, x * 2], axis=-1), lambda x: np.dstack([x, 2 * x])),
    "split": Case(
        lambda xp, x: xp.split(x, (1, 2, 3), axis=-1)[2] * xp.split(x, (1, 2, 3), axis=1)[0],
        lambda x: x[:, 3:] * x[:, :1],
    ),
    "broadcast_to": Case(lambda xp, x: xp.broadcast_to(x, (3, 4, 6)), lambda x: np.stack([x, x, x])),
    "flip": Case(lambda xp, x: xp.flip(x, axis=-1), lambda x: x[:, ::-1]),
    "take": Case(lambda xp, x: xp.take(x, constant(xp, INDICES), axis=0), lambda x: x[INDICES]),
    "take, int32, last axis": Case(
        lambda xp, x: xp.take(x, constant(xp, INDICES.astype(np.int32)), axis=-1), lambda x: x[..., INDICES], (W,)
    ),
    "take, 2-D indices": Case(
        lambda xp, x: xp.take(x, constant(xp, COLUMNS), axis=2), lambda x: x[:, :, COLUMNS], (IMAGE,)
    ),
    "take_along_axis": Case(
        lambda xp, x: xp.take_along_axis(x, constant(xp, COLUMNS), axis=-1),
        lambda x: np.array([[x[i, j] for j in COLUMNS[i]] for i in range(4)]),
    ),
    "take_along_axis, first": Case(
        lambda xp, x: xp.take_along_axis(
            x, constant(xp, (COLUMNS.T % 4).astype(np.int32)[:, [0, 1, 2, 3, 0, 1]]), axis=0
        ),
        lambda x: np.array([[x[(COLUMNS.T % 4)[i, j % 4], j] for j in range(6)] for i in range(2)]),
    ),
    "take_along_axis, middle": Case(
        lambda xp, x: xp.take_along_axis(x, xp.argmax(x, axis=1)[:, None], axis=1),
        lambda x: x.max(1)[:, None],
        (IMAGE,),
    ),
    "matmul": Case(lambda xp, x, w: xp.matmul(x, w), lambda x, w: np.einsum("bi,io->bo", x, w), (X, W.T.copy())),
    "matmul, batched": Case(
        lambda xp, x, w: xp.matmul(x, w), lambda x, w: np.einsum("abij,jk->abik", x, w), (IMAGE, W[:3])
    ),
    "einsum": Case(lambda xp, x, w: xp.einsum("bi,oi,o->bo", x, w, constant(xp, B)), lambda x, w: x @ w.T * B, (X, W)),
    "linear": Case(lambda xp, x, w, b: xp.linear(x, w, b), lambda x, w, b: np.einsum("bi,oi->bo", x, w) + b, (X, W, B)),
    "linear, no bias, more axes": Case(
        lambda xp, x, w: xp.linear(x, w), lambda x, w: np.einsum("abci,oi->abco", x, w), (IMAGE, W[:, :3])
    ),
    "linear, one row": Case(lambda xp, x, w, b: xp.linear(x, w, b), lambda x, w, b: w @ x + b, (X[0], W, B)),
    "conv2d": Case(
        lambda xp, x, w, b: xp.conv2d(x, w, b),
        lambda x, w, b: brute_conv2d(x, w, (1, 1), (0, 0)) + b,
        (IMAGE, KERNEL, B[:4]),
    ),
    "conv2d, stride": Case(
        lambda xp, x, w, b: xp.conv2d(x, w, b, stride=2),
        lambda x, w, b: brute_conv2d(x, w, (2, 2), (0, 0)) + b,
        (IMAGE, KERNEL, B[:4]),
    ),
    "conv2d, pairs, padding": Case(
        lambda xp, x, w: xp.conv2d(x, w, None, stride=(2, 1), padding=(1, 2)),
        lambda x, w: brute_conv2d(x, w, (2, 1), (1, 2)),
        (IMAGE, KERNEL),
    ),
    "layer_norm": Case(
        lambda xp, x, w, b: xp.layer_norm(x, w, b),
        lambda x, w, b: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * w + b,
        (X, W[0], W[1]),
    ),
    "layer_norm, plain": Case(
        lambda xp, x: xp.layer_norm(x, None, None, eps=0.1),
        lambda x: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 0.1),
        (IMAGE,),
    ),
    "embedding": Case(lambda xp, w: xp.embedding(constant(xp, COLUMNS % 5), w), lambda w: w[COLUMNS % 5], (W,)),
    "softmax": Case(lambda xp, x: xp.softmax(x, axis=0), lambda x: special.softmax(x, axis=0)),
    "log_softmax": Case(lambda xp, x: xp.log_softmax(x, axis=-1), lambda x: special.log_softmax(x, axis=-1)),
    "log_softmax, middle axis": Case(
        lambda xp, x: xp.log_softmax(x, axis=1), lambda x: special.log_softmax(x, axis=1), (IMAGE,)
    ),
    "one_hot": Case(
        lambda xp, x: xp.one_hot(constant(xp, COLUMNS), 6, dtype=xp.float64) * x[:, None],
        lambda x: np.eye(6)[COLUMNS] * x[:, None],
    ),
    "dropout": Case(lambda xp, x: xp.dropout(x, 0.25, constant(xp, NOISE)), lambda x: x * (NOISE >= 0.25) / 0.75),
    "dropout, rate an array": Case(
        lambda xp, x: xp.dropout(x, xp.asarray(0.25, xp.float64), constant(xp, NOISE)),
        lambda x: x * (NOISE >= 0.25) / 0.75,
    ),
    "astype": Case(lambda xp, x: xp.astype(xp.astype(x, xp.int64), xp.float64) + x, lambda x: np.trunc(x) + x),
    "scan": Case(lambda xp, x: scanned(xp, x), brute_scan),
    "scan, long": Case(lambda xp, x: scanned(xp, x, copies=10), lambda x: brute_scan(np.concatenate([x] * 10))),
    "fills": Case(
        lambda xp, x: (
            xp.zeros_like(x)
            + xp.full_like(x, 0.1)
            + xp.ones_like(x) * x[0, 0]
            + xp.full((4, 6), x[0, 1], xp.float64)
            + xp.full(6, 0.1, xp.float64)
            + xp.zeros((), xp.float64)
            + xp.ones(1, xp.float64)
            + xp.arange(6, dtype=xp.float64)
        ),
        lambda x: np.arange(6.0) + np.zeros((4, 1)) + 1.2 + x[0, 0] + x[0, 1],
    ),
}

NOT_NUMERIC = {"asarray", "shape", "value_and_grad", "stop_gradient"}  # test_xp.py
CONSTANT = {"sign", "floor"}


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_function_has_a_case() -> None:
    import inspect

    functions = {name for name, value in vars(Namespace).items() if inspect.isfunction(value) and name[0] != "_"}
    source = inspect.getsource(inspect.getmodule(test_every_function_has_a_case))
    assert {name for name in functions - NOT_NUMERIC if f"xp.{name}(" not in source} == set()


@pytest.mark.parametrize("name", CASES)
def test_value(xp: Any, mode: str, name: str) -> None:
    case = CASES[name]
    got = run(xp, mode, lambda *arguments: case.function(xp, *arguments), *case.arguments)
    expected = case.oracle(*case.arguments)
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    np.testing.assert_allclose(got, expected, rtol=2e-13, atol=2e-14)


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if case.oracle(*case.arguments).dtype == np.float64]
)
def test_gradient(xp: Any, training_backend_name: str, mode: str, name: str) -> None:
    case = CASES[name]
    weights = np.cos(np.arange(case.oracle(*case.arguments).size) * 1.7).reshape(case.oracle(*case.arguments).shape)

    def total(arguments: tuple[np.ndarray, ...]) -> float:
        return float(np.sum(weights * case.function(numpy_xp, *arguments)))

    def differentiate(*arguments: Any) -> Any:
        return xp.value_and_grad(
            lambda named: xp.sum(xp.asarray(weights) * case.function(xp, *(named[key] for key in sorted(named))))
        )({str(i): argument for i, argument in enumerate(arguments)})[1]

    gradients = run(xp, mode, differentiate, *case.arguments)
    step = 1e-5
    for i, argument in enumerate(case.arguments):
        expected = np.zeros(argument.shape)
        for place in np.ndindex(argument.shape):
            ends = []
            for sign in (-1, 1):
                moved = [other.copy() for other in case.arguments]
                moved[i][place] += sign * step
                ends.append(total(tuple(moved)))
            expected[place] = (ends[1] - ends[0]) / (2 * step)
        assert gradients[str(i)].shape == argument.shape
        scale = max(1.0, float(np.max(np.abs(expected))))
        np.testing.assert_allclose(gradients[str(i)], expected, rtol=1e-6, atol=2e-8 * scale)
