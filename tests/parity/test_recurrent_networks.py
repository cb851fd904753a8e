"""Recurrent layers, attention, SAC's twin Q networks and Dict encoders: numpy, Torch and TensorFlow, in every mode."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from learner_core import numpy_xp
from learner_core.maths.heads import DuelingHead
from learner_core.maths.layers import Embedding, LayerNorm, MultiHeadAttention
from learner_core.maths.recurrent import GRU, LSTM
from learner_core_algorithms.sac.module import SACModule

from support.both import Arrays, in_both, run_in
from support.namespaces import run

B, T, INPUT, HIDDEN = 4, 20, 6, 16
OBS = spaces.Dict({"image": spaces.Box(0, 255, (9, 9, 2), np.uint8), "speed": spaces.Box(-1, 1, (3,), np.float32)})
MODEL = {"conv_filters": [(4, 3, 2)], "hidden": [8], "encoders": {"speed": {"hidden": [5]}}}
MODES = {"torch": ("eager", "traced"), "tf": ("eager", "graph", "xla")}
Outputs = Callable[[Any, Any, Any], dict[str, Any]]


def recurrent(layer: LSTM | GRU, *, resets: bool) -> Outputs:
    def outputs(xp: Any, params: Any, arrays: Any) -> dict[str, Any]:
        state = {leaf: arrays[leaf] for leaf in layer.state_names}
        y, last = layer.apply(xp, params, arrays["x"], state, resets=arrays["resets"] if resets else None)
        return {"y": y, **last}

    return outputs


def twin_q(xp: Any, params: Any, arrays: Any) -> dict[str, Any]:
    module = SACModule(OBS, spaces.Box(-1, 1, (2,), np.float32), MODEL, xp)
    first, second = module.q(params, {"image": arrays["image"], "speed": arrays["speed"]}, arrays["actions"])
    return {"qf": first, "qf_twin": second}


LSTM_LAYER, GRU_LAYER = LSTM("core", INPUT, HIDDEN), GRU("core", INPUT, HIDDEN)
NORM, TABLE, ATTEND = LayerNorm("norm", 8), Embedding("table", 5, 8), MultiHeadAttention("attend", 8, 2)
DUELING = DuelingHead("q", INPUT, 3, hidden=[7], activation="tanh")


def attend(xp: Any, params: Any, arrays: Any) -> dict[str, Any]:
    tokens = NORM.apply(xp, params, TABLE.apply(xp, params, arrays["tokens"]))
    return {"y": ATTEND.apply(xp, params, tokens, mask=arrays["mask"])}


def dueling(xp: Any, params: Any, arrays: Any) -> dict[str, Any]:
    return {"q": DUELING.apply(xp, params, arrays["x"])}


#: name -> (what to initialise, outputs, tolerance: interop.md allows 2e-5 over 20 recurrent steps)
CASES: dict[str, tuple[list[Any], Outputs, float]] = {
    "lstm": ([LSTM_LAYER], recurrent(LSTM_LAYER, resets=False), 2e-5),
    "lstm with resets": ([LSTM_LAYER], recurrent(LSTM_LAYER, resets=True), 2e-5),
    "gru": ([GRU_LAYER], recurrent(GRU_LAYER, resets=False), 2e-5),
    "gru with resets": ([GRU_LAYER], recurrent(GRU_LAYER, resets=True), 2e-5),
    "attention": ([NORM, TABLE, ATTEND], attend, 1e-5),
    "dueling": ([DUELING], dueling, 1e-5),
    "twin q": ([SACModule(OBS, spaces.Box(-1, 1, (2,), np.float32), MODEL, numpy_xp)], twin_q, 1e-5),
}

#: Unrolled cells take TensorFlow seconds to compile; one of them in the fast tier, and what is quicker.
FAST = {("gru with resets", "float64"), ("attention", "float64"), ("dueling", "float64"), ("twin q", "float64")}


def params_of(case: str) -> Arrays:
    """Away from zero biases and unit scales: a fresh initialisation hides swapped terms."""
    rng = np.random.default_rng(5)
    fresh: Arrays = {}
    for network in CASES[case][0]:
        fresh.update(network.init(rng))
    return {name: value + 0.1 * rng.normal(size=value.shape) for name, value in fresh.items() if "pi" not in name}


def inputs() -> Arrays:
    rng = np.random.default_rng(6)
    mask = rng.random((B, 7, 7)) < 0.5
    mask[0, 0] = False  # a query that may look nowhere
    resets = rng.random((B, T)) < 0.2
    resets[1, 0] = True
    return {
        "x": rng.normal(size=(B, T, INPUT)),
        "h": rng.normal(size=(B, HIDDEN)),
        "c": rng.normal(size=(B, HIDDEN)),
        "resets": resets,
        "tokens": rng.integers(0, 5, (B, 7)),
        "mask": mask,
        "image": rng.integers(0, 256, (B, 9, 9, 2)).astype(np.uint8),
        "speed": rng.normal(size=(B, 3)),
        "actions": rng.normal(size=(B, 2)),
    }


def modes_of(backend_name: str, dtype: str) -> tuple[str, ...]:
    """All in float64, where a mistake shows; in float32 one uncompiled and, on TensorFlow, one compiled (for time)."""
    modes = MODES[backend_name]
    return modes if dtype == "float64" else modes[::2]


def step_of(xp: Any, outputs: Outputs) -> Callable[..., Any]:
    def step(params: Any, data: Any) -> Any:
        def loss(params: Any) -> Any:
            parts = list(outputs(xp, params, data).values())
            return sum(((i + 2.0) * xp.sum(part) for i, part in enumerate(parts[1:])), xp.sum(xp.square(parts[0])))

        return {"outputs": outputs(xp, params, data), "gradients": xp.value_and_grad(loss)(params)[1]}

    return step


def program(backend_name: str, arrays: Arrays, settings: dict[str, Any]) -> dict[str, Any]:
    xp: Any = importlib.import_module(f"learner_core_{backend_name}.xp")
    case, dtype = settings["case"], settings["dtype"]
    params = {name: value.astype(dtype) for name, value in params_of(case).items()}
    data = {name: v.astype(dtype) if v.dtype.kind == "f" else v for name, v in inputs().items()}
    step = step_of(xp, CASES[case][1])
    return {mode: run(xp, mode, step, params, data) for mode in modes_of(backend_name, dtype)}


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        (case, dtype) if (case, dtype) in FAST else pytest.param(case, dtype, marks=pytest.mark.slow)
        for case in CASES
        for dtype in ("float32", "float64")
    ],
)
def test_every_mode_of_every_backend_agrees(case: str, dtype: str) -> None:
    tolerance = CASES[case][2] if dtype == "float32" else 1e-12
    torch, tf = in_both(__file__, "program", settings={"case": case, "dtype": dtype})
    reference = {k: v for k, v in torch.items() if k.startswith("eager/")}
    assert sum("/gradients/" in name for name in reference) == len(params_of(case))
    for name, expected in reference.items():
        _, part, leaf = name.split("/", 2)
        assert expected.dtype == dtype and np.any(expected)
        scale = max(1.0, float(np.abs(expected).max())) if part == "gradients" else 1.0
        for arrays, backend_name in ((torch, "torch"), (tf, "tf")):
            for mode in modes_of(backend_name, dtype):
                got = arrays[f"{mode}/{part}/{leaf}"]
                np.testing.assert_allclose(
                    got / scale,
                    expected / scale,
                    rtol=tolerance,
                    atol=tolerance,
                    err_msg=f"{backend_name} {mode} {name}",
                )


@pytest.mark.parametrize("case", CASES)
def test_numpy_agrees(case: str) -> None:
    torch = run_in("torch", __file__, "program", settings={"case": case, "dtype": "float32"})
    params = {name: value.astype(np.float32) for name, value in params_of(case).items()}
    data = {name: v.astype(np.float32) if v.dtype.kind == "f" else v for name, v in inputs().items()}
    for leaf, value in CASES[case][1](numpy_xp, params, data).items():
        assert value.dtype == np.float32
        expected = torch[f"eager/outputs/{leaf}"]
        np.testing.assert_allclose(value, expected, rtol=CASES[case][2], atol=CASES[case][2], err_msg=leaf)
