"""Networks over ``xp`` on Torch against Torch's own layers: outputs, states and gradients in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from learner_core import numpy_xp
from learner_core.maths.layers import Embedding, LayerNorm, MultiHeadAttention
from learner_core.maths.recurrent import GRU, LSTM
from learner_core_torch import xp

from support import torch_layers
from support.namespaces import host, run
from support.torch_layers import perturbed

B, T, INPUT, HIDDEN = 3, 20, 5, 7
MODES = ("eager", "traced")


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def sequences(layer: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    arrays = {"x": rng.normal(size=(B, T, INPUT)), "cotangent": rng.normal(size=(B, T, HIDDEN))}
    arrays["resets"] = rng.random((B, T)) < 0.2
    arrays["resets"][0, 0] = True
    for leaf in layer.state_names:
        arrays[leaf] = rng.normal(size=(B, HIDDEN))
    return arrays


@pytest.mark.parametrize("with_resets", [False, True])
@pytest.mark.parametrize("kind", [LSTM, GRU])
def test_recurrent(kind: Any, with_resets: bool, mode: str) -> None:
    layer = kind("core", INPUT, HIDDEN)
    params, arrays = perturbed(layer.init(np.random.default_rng(0))), sequences(layer)
    resets = arrays["resets"] if with_resets else None
    state = {leaf: arrays[leaf] for leaf in layer.state_names}
    expected = torch_layers.recurrent(kind.__name__, params, arrays["x"], state, arrays["cotangent"], resets)

    def compute(params: Any, arrays: Any) -> Any:
        def loss(named: Any) -> Any:
            outputs, last = layer.apply(
                xp,
                named,
                named["x"],
                {leaf: arrays[leaf] for leaf in layer.state_names},
                resets=arrays["resets"] if with_resets else None,
            )
            return xp.sum(outputs * arrays["cotangent"]) + xp.sum(xp.square(last["h"]))

        outputs, last = layer.apply(
            xp,
            params,
            arrays["x"],
            {leaf: arrays[leaf] for leaf in layer.state_names},
            resets=arrays["resets"] if with_resets else None,
        )
        gradients = xp.value_and_grad(loss)({**params, "x": arrays["x"]})[1]
        return {"outputs": outputs, "state": last, "gradients": gradients}

    got = run(xp, mode, compute, params, arrays)
    np.testing.assert_allclose(got["outputs"], expected["outputs"], atol=1e-12)
    for leaf, value in got["state"].items():
        np.testing.assert_allclose(value, expected[f"state/{leaf}"], atol=1e-12)
    assert set(got["gradients"]) == {*params, "x"}
    for name, value in got["gradients"].items():
        np.testing.assert_allclose(value, expected[f"gradients/{name}"], atol=1e-10, err_msg=name)


@pytest.mark.parametrize("kind", [LSTM, GRU])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kernel_and_scan_agree(kind: Any, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 takes another kernel (oneDNN's) than float64."""
    layer = kind("core", INPUT, HIDDEN)
    params = {name: xp.asarray(v.astype(dtype)) for name, v in perturbed(layer.init(np.random.default_rng(0))).items()}
    x = xp.asarray(sequences(layer)["x"].astype(dtype))

    def loss(named: Any) -> Any:
        outputs, last = layer.apply(xp, named, named["x"])
        return xp.sum(xp.square(outputs)) + xp.sum(last["h"])

    native = [layer.apply(xp, params, x), xp.value_and_grad(loss)({**params, "x": x})[1]]
    monkeypatch.delattr(xp, layer.kernel)
    scanned = [layer.apply(xp, params, x), xp.value_and_grad(loss)({**params, "x": x})[1]]
    tolerance = {"float32": 2e-5, "float64": 1e-11}[dtype]
    (y, last), gradients = host(native[0]), host(native[1])
    (other_y, other_last), other_gradients = host(scanned[0]), host(scanned[1])
    assert y.dtype == other_y.dtype == dtype
    np.testing.assert_allclose(y, other_y, atol=tolerance)
    for leaf, value in last.items():
        np.testing.assert_allclose(value, other_last[leaf], atol=tolerance)
    for name, value in gradients.items():
        np.testing.assert_allclose(value, other_gradients[name], rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("masked", ["", "shared", "each"])
@pytest.mark.parametrize("with_memory", [False, True])
def test_attention(with_memory: bool, masked: str, mode: str) -> None:
    layer = MultiHeadAttention("attend", 8, 2)
    rng = np.random.default_rng(3)
    params = perturbed(layer.init(rng))
    steps = 6 if with_memory else 4
    arrays = {"query": rng.normal(size=(B, 4, 8)), "cotangent": rng.normal(size=(B, 4, 8))}
    if with_memory:
        arrays["memory"] = rng.normal(size=(B, steps, 8))
    if masked:
        arrays["mask"] = rng.random((4, steps) if masked == "shared" else (B, 4, steps)) < 0.6
        arrays["mask"][..., 0] = True  # Torch answers NaN where a query may look nowhere
    expected = torch_layers.attention(
        params, 2, arrays["query"], arrays.get("memory"), arrays.get("mask"), arrays["cotangent"]
    )

    def compute(params: Any, arrays: Any) -> Any:
        def outputs(params: Any) -> Any:
            return layer.apply(xp, params, arrays["query"], arrays.get("memory"), mask=arrays.get("mask"))

        gradients = xp.value_and_grad(lambda named: xp.sum(outputs(named) * arrays["cotangent"]))(params)[1]
        return {"outputs": outputs(params), "gradients": gradients}

    got = run(xp, mode, compute, params, arrays)
    np.testing.assert_allclose(got["outputs"], expected["outputs"], atol=1e-12)
    for name, value in got["gradients"].items():
        np.testing.assert_allclose(value, expected[f"gradients/{name}"], atol=1e-12, err_msg=name)


def test_layer_norm_and_embedding() -> None:
    import torch

    norm, table = LayerNorm("norm", 6), Embedding("table", 5, 6)
    params = perturbed({**norm.init(np.random.default_rng(0)), **table.init(np.random.default_rng(0))})
    indices = np.array([[0, 4], [2, 2]])
    theirs = [torch.nn.LayerNorm(6).double(), torch.nn.Embedding(5, 6).double()]
    for one, name in zip(theirs, ("norm", "table"), strict=True):
        one.load_state_dict({n.partition(".")[2]: torch.from_numpy(v) for n, v in params.items() if n.startswith(name)})
    expected = theirs[0](theirs[1](torch.from_numpy(indices)))
    expected.square().sum().backward()

    def outputs(params: Any, indices: Any) -> Any:
        return norm.apply(xp, params, table.apply(xp, params, indices))

    def compute(params: Any, indices: Any) -> Any:
        gradients = xp.value_and_grad(lambda named: xp.sum(xp.square(outputs(named, indices))))(params)[1]
        return {"outputs": outputs(params, indices), "gradients": gradients}

    got = run(xp, "eager", compute, params, indices)
    np.testing.assert_allclose(got["outputs"], expected.detach().numpy(), atol=1e-13)
    for one, name in zip(theirs, ("norm", "table"), strict=True):
        for part, parameter in one.named_parameters():
            np.testing.assert_allclose(got["gradients"][f"{name}.{part}"], parameter.grad.numpy(), atol=1e-12)
    in_numpy = norm.apply(numpy_xp, params, table.apply(numpy_xp, params, indices))
    np.testing.assert_allclose(in_numpy, got["outputs"], atol=1e-13)
