"""Optimizer steps: values by hand, then against plain loops in float64; the same on every backend, traced."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from learner_core.maths.optimizers import OptimizerSpec, clip_by_global_norm, clip_by_norm, clip_by_value

from support.tracing import to_numpy, traced


def steps(xp: Any, spec: OptimizerSpec, start: Any, gradients: list[Any], lrs: list[float], dtype: Any) -> list[Any]:
    """Parameters after each step."""
    params = xp.asarray(np.asarray(start), dtype)
    slots = spec.init_slots(xp, params)
    out = []
    for index, (gradient, lr) in enumerate(zip(gradients, lrs, strict=True)):
        corrections = [xp.asarray(c, dtype) for c in spec.corrections(index + 1)]
        params, slots = spec.update(
            xp,
            params=params,
            gradients=xp.asarray(np.asarray(gradient), dtype),
            slots=slots,
            lr=xp.asarray(lr, dtype),
            corrections=corrections,
        )
        assert tuple(sorted(slots)) == spec.slot_names
        assert all(slot.dtype == dtype for slot in slots.values())
        out.append(to_numpy(params))
    return out


# Every number below is worked out by hand from the formulas, in the comment beside it.
LITERAL = [
    # eps as large as the root, so that its place shows: 0.1*0.5/(0.5+0.5) = 0.05. Under the root it would be
    # 0.1*0.5/sqrt(0.25+0.5) = 0.0577, added before the correction (Keras) 0.0306.
    ("adam", {"eps": 0.5}, [0.5], [0.1], [0.95]),
    # m^ = -0.055/0.19, v^ = 0.00124975/0.001999: the second step adds 0.1*0.28947368/(0.7906880509+0.5).
    ("adam", {"eps": 0.5}, [0.5, -1.0], [0.1, 0.1], [0.95, 0.9724278581]),
    # L2: g = 0.5 + 0.5*1 = 1; 0.1*1/(1+0.5).
    ("adam", {"eps": 0.5, "weight_decay": 0.5}, [0.5], [0.1], [0.9333333333]),
    # Decoupled: 0.05 + 0.1*0.5*1.
    ("adamw", {"eps": 0.5, "weight_decay": 0.5}, [0.5], [0.1], [0.9]),
    ("sgd", {}, [0.5, -1.0], [0.1, 0.2], [0.95, 1.15]),
    # g = 0.5 + 0.5*1 = 1.
    ("sgd", {"weight_decay": 0.5}, [0.5], [0.1], [0.9]),
    # The buffer holds gradients, not movements: 0.5, then 0.9*0.5 - 1 = -0.55, taken at the new rate.
    ("sgd", {"momentum": 0.9}, [0.5, -1.0], [0.1, 1.0], [0.95, 1.5]),
    # First step: undamped buffer 0.5; then 0.9*0.5 + 0.5*(-1) = -0.05.
    ("sgd", {"momentum": 0.9, "dampening": 0.5}, [0.5, -1.0], [0.1, 1.0], [0.95, 1.0]),
    # 0.5 + 0.9*0.5 = 0.95; buffer -0.55, -1 + 0.9*(-0.55) = -1.495.
    ("sgd", {"momentum": 0.9, "nesterov": True}, [0.5, -1.0], [0.1, 1.0], [0.905, 2.4]),
    # v = 0.01*0.25, root 0.05: 0.1*0.5/(0.05+0.05). Under the root: 0.1*0.5/sqrt(0.0025+0.05) = 0.218.
    ("rmsprop", {"eps": 0.05}, [0.5], [0.1], [0.5]),
    # v = 0.25*0.25 = 0.0625, m = 0.25*0.5 = 0.125, v - m^2 = 0.046875, root 0.21650635: 0.05/0.26650635.
    ("rmsprop", {"alpha": 0.75, "eps": 0.05, "centered": True}, [0.5], [0.1], [0.8123872102]),
    # Same gradient at double weight in the buffer: d1 = 5, then v = 0.004975, root 0.07053368, d2 = 4.14821816;
    # 0.9*5 + 4.14821816 at rate 1.
    ("rmsprop", {"eps": 0.05, "momentum": 0.9}, [0.5, 0.5], [0.1, 1.0], [0.5, -8.1482181613]),
]


@pytest.mark.parametrize(("kind", "hyper", "gradients", "lrs", "expected"), LITERAL)
def test_literal_values(xp: Any, kind: str, hyper: Any, gradients: Any, lrs: Any, expected: Any) -> None:
    got = steps(xp, OptimizerSpec(kind, **hyper), 1.0, gradients, lrs, xp.float64)
    np.testing.assert_allclose(got, expected, rtol=1e-8)


CONSTANTS: list[tuple[str, dict[str, Any]]] = [
    ("adam", {}),
    ("adam", {"eps": 1e-5, "betas": (0.8, 0.95), "weight_decay": 0.1}),
    ("adamw", {"weight_decay": 0.1}),
    ("sgd", {}),
    ("sgd", {"momentum": 0.9, "weight_decay": 0.1}),
    ("sgd", {"momentum": 0.9, "nesterov": True}),
    ("sgd", {"momentum": 0.9, "dampening": 0.3}),
    ("rmsprop", {"weight_decay": 0.1}),
    ("rmsprop", {"centered": True, "momentum": 0.5}),
]


def by_hand(kind: str, h: dict[str, Any], start: Any, gradients: Any, lrs: list[float]) -> list[Any]:
    """One number at a time, in Python floats: the papers' formulas, hatted moments and all."""
    h = {**OptimizerSpec(kind, **h).hyper}
    columns = []
    for index in range(len(start)):
        p, m, v, buffer, column = float(start[index]), 0.0, 0.0, 0.0, []
        for t, (row, lr) in enumerate(zip(gradients, lrs, strict=True), 1):
            g = float(row[index])
            if kind == "adamw":
                old = p
            else:
                g += h["weight_decay"] * p
            if kind in ("adam", "adamw"):
                b_1, b_2 = h["betas"]
                m, v = b_1 * m + (1 - b_1) * g, b_2 * v + (1 - b_2) * g * g
                p -= lr * (m / (1 - b_1**t)) / ((v / (1 - b_2**t)) ** 0.5 + h["eps"])
                if kind == "adamw":
                    p -= lr * h["weight_decay"] * old
            elif kind == "sgd":
                buffer = g if t == 1 else h["momentum"] * buffer + (1 - h["dampening"]) * g
                p -= lr * (g + h["momentum"] * buffer if h["nesterov"] else buffer if h["momentum"] else g)
            else:
                v = h["alpha"] * v + (1 - h["alpha"]) * g * g
                m = h["alpha"] * m + (1 - h["alpha"]) * g
                d = g / ((v - m * m if h["centered"] else v) ** 0.5 + h["eps"])
                buffer = h["momentum"] * buffer + d
                p -= lr * buffer
            column.append(p)
        columns.append(column)
    return [np.array(row) for row in zip(*columns, strict=True)]


@pytest.mark.parametrize(("kind", "hyper"), CONSTANTS)
def test_twenty_steps_agree_with_plain_loops(xp: Any, kind: str, hyper: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=5), rng.normal(size=(20, 5)) * np.array([1.0, 10, 0.1, 1e-3, 1e-6])
    lrs = [0.01] * 10 + [0.001] * 10
    got = steps(xp, OptimizerSpec(kind, **hyper), start, list(gradients), lrs, xp.float64)
    np.testing.assert_allclose(got, by_hand(kind, hyper, start, gradients, lrs), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("kind", "hyper"), CONSTANTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_traces_and_keeps_dtype(xp: Any, backend_name: str, kind: str, hyper: dict[str, Any], dtype: str) -> None:
    spec = OptimizerSpec(kind, **hyper)
    rng = np.random.default_rng(1)
    params, gradients, *slots = (
        rng.uniform(0.5, 1, size=(3, 4)).astype(dtype) for _ in range(2 + len(spec.slot_names))
    )

    def step(params: Any, gradients: Any, lr: Any, corrections: Any, *slots: Any) -> Any:
        new, new_slots = spec.update(
            xp,
            params=params,
            gradients=gradients,
            slots=dict(zip(spec.slot_names, slots, strict=True)),
            lr=lr,
            corrections=[corrections[i] for i in range(spec.num_corrections)],
        )
        return [new, *(new_slots[name] for name in spec.slot_names)]

    arguments = (params, gradients, np.asarray(0.01, dtype), spec.corrections(3).astype(dtype), *slots)
    eager = to_numpy(step(*[xp.asarray(a) for a in arguments]))
    compiled = traced(backend_name, step, *arguments)
    for one, other in zip(eager, compiled, strict=True):
        assert one.dtype == other.dtype == dtype
        np.testing.assert_allclose(one, other, rtol=1e-6 if dtype == "float32" else 1e-14)


def test_the_variance_of_a_constant_gradient_is_not_negative(xp: Any) -> None:
    # In float32 v - m*m rounds to about -1e-8 here, and the root of that would be NaN.
    got = steps(xp, OptimizerSpec("rmsprop", centered=True, eps=1e-2), [1.0], [[0.7]] * 3000, [1e-4] * 3000, xp.float32)
    assert np.isfinite(got).all()


def test_global_norm(xp: Any) -> None:
    gradients = {"a": xp.asarray([3.0, 0.0]), "b": xp.asarray([[4.0]])}
    clipped, norm = clip_by_global_norm(xp, gradients, 1.0)
    assert to_numpy(norm) == 5.0
    # Torch's form: times 1/(5 + 1e-6).
    np.testing.assert_allclose(to_numpy(clipped)["a"], [3 / 5.000001, 0], rtol=1e-6)
    np.testing.assert_allclose(to_numpy(clipped)["b"], [[4 / 5.000001]], rtol=1e-6)
    same, norm = clip_by_global_norm(xp, gradients, xp.asarray(6.0))
    assert to_numpy(norm) == 5.0
    np.testing.assert_array_equal(to_numpy(same)["a"], [3, 0])
    zero, norm = clip_by_global_norm(xp, {"a": xp.zeros(3)}, 1.0)
    np.testing.assert_array_equal(to_numpy(zero)["a"], [0, 0, 0])
    assert to_numpy(norm) == 0
    assert to_numpy(clip_by_global_norm(xp, {}, 1.0)) == ({}, 0.0)


def test_the_millionth_in_the_norm_shows_in_float64(xp: Any) -> None:
    clipped, _ = clip_by_global_norm(xp, {"a": xp.asarray(np.array([3e-3, 4e-3]))}, 1e-3)
    np.testing.assert_allclose(to_numpy(clipped)["a"], np.array([3e-6, 4e-6]) / 5.001e-3, rtol=1e-12)


def test_a_nan_stays_visible(xp: Any) -> None:
    clipped, norm = clip_by_global_norm(xp, {"a": xp.asarray([np.nan]), "b": xp.asarray([1.0])}, 1.0)
    assert np.isnan(to_numpy(norm))
    assert np.isnan(to_numpy(clipped)["b"]).all()


def test_clip_each_by_its_norm_or_value(xp: Any) -> None:
    gradients = {"a": xp.asarray([3.0, -4.0]), "b": xp.asarray([0.5])}
    by_norm = to_numpy(clip_by_norm(xp, gradients, 1.0))
    np.testing.assert_allclose(by_norm["a"], [0.6, -0.8], rtol=1e-6)
    np.testing.assert_array_equal(by_norm["b"], [0.5])
    for bound in (1.0, xp.asarray(1.0)):
        by_value = to_numpy(clip_by_value(xp, gradients, bound))
        np.testing.assert_array_equal(by_value["a"], [1, -1])
        np.testing.assert_array_equal(by_value["b"], [0.5])


def test_clipping_traces(xp: Any, backend_name: str) -> None:
    def clip(a: Any, b: Any, bound: Any) -> Any:
        gradients = {"a": a, "b": b}
        together, norm = clip_by_global_norm(xp, gradients, bound)
        return [norm, together["a"], clip_by_norm(xp, gradients, bound)["b"], clip_by_value(xp, gradients, bound)["a"]]

    got = traced(backend_name, clip, np.float32([3, 0]), np.float32([[4]]), np.float32(1))
    for one, expected in zip(got, [5, [0.6, 0], [[1]], [1, 0]], strict=True):
        np.testing.assert_allclose(one, expected, rtol=1e-6)
