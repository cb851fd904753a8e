"""The reference networks on Torch and on TensorFlow: outputs and gradients from the same weights, in two modes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from learner_core.maths.images import ImageLayout
from learner_core.maths.networks import Encoder, make_encoder, make_image_encoder

from support.both import Arrays, in_both
from support.namespaces import run

NETWORKS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "mlp": ((17,), {"hidden": [64, 64]}),
    "wide": ((64,), {"hidden": [1024] * 4}),
    "nature cnn": ((84, 84, 4), {}),
    "layer norm": ((9,), {"hidden": [16, 8], "layer_norm": True, "init": "kaiming_uniform"}),
    "CHW": ((4, 20, 18), {"hidden": [8], "conv_filters": [(3, 4, 2)]}),
    "SCHW": ((2, 3, 9, 8), {"hidden": [8], "conv_filters": [(3, 4, 2)], "layer_norm": True}),
}
MODES = {"torch": ("eager", "traced"), "tf": ("eager", "xla")}


def encoder_of(network: str) -> Encoder:
    shape, model = NETWORKS[network]
    if len(network) == len(shape) and network.isupper():
        return make_image_encoder("pi", ImageLayout(network, shape), model)
    return make_encoder("pi", shape, model)


def step_of(xp: Any, encoder: Any) -> Callable[..., Any]:
    def step(params: Any, x: Any, cotangent: Any) -> Any:
        def loss(params: Any) -> Any:
            return xp.mean(xp.sum(encoder.apply(xp, params, x) * cotangent, axis=-1))

        return {"outputs": encoder.apply(xp, params, x), "gradients": xp.value_and_grad(loss)(params)[1]}

    return step


def program(backend_name: str, arrays: Arrays, settings: dict[str, Any]) -> dict[str, Any]:
    """{network/mode/dtype: outputs and gradients} of all networks: starting a framework is what takes the time."""
    xp: Any = importlib.import_module(f"learner_core_{backend_name}.xp")
    results: dict[str, Any] = {}
    for network in NETWORKS:
        encoder = encoder_of(network)
        prefix = f"{network}/params/"

        for dtype in ("float32", "float64"):
            params = {k.removeprefix(prefix): v.astype(dtype) for k, v in arrays.items() if k.startswith(prefix)}
            x, cotangent = arrays[f"{network}/x"], arrays[f"{network}/cotangent"].astype(dtype)
            x = x if x.dtype == np.uint8 else x.astype(dtype)
            for kind, mode in zip(("eager", "compiled"), MODES[backend_name], strict=True):
                results[f"{network}/{kind}/{dtype}"] = run(xp, mode, step_of(xp, encoder), params, x, cotangent)
    return results


@pytest.fixture(scope="module")
def both() -> tuple[Arrays, Arrays]:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for network, (shape, _) in NETWORKS.items():
        encoder = encoder_of(network)
        image = len(shape) > 1
        arrays[network] = {
            # Biases away from zero: a fresh initialisation hides swapped terms.
            "params": {k: v + rng.normal(size=v.shape) * 0.02 for k, v in encoder.init(rng).items()},
            "x": rng.integers(0, 256, (8, *shape)).astype(np.uint8) if image else rng.normal(size=(8, *shape)),
            "cotangent": rng.normal(size=(8, encoder.output_size)),
        }
    return in_both(__file__, "program", arrays=arrays)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
@pytest.mark.parametrize("kind", ["eager", "compiled"])
@pytest.mark.parametrize("network", NETWORKS)
def test_outputs_and_gradients(
    both: tuple[Arrays, Arrays], network: str, kind: str, dtype: str, tolerance: float
) -> None:
    torch, tf = both
    names = [name for name in torch if name.startswith(f"{network}/{kind}/{dtype}/")]
    assert len(names) > 4
    for name in names:
        assert torch[name].dtype == tf[name].dtype == np.dtype(dtype)
        np.testing.assert_allclose(torch[name], tf[name], rtol=tolerance, atol=tolerance, err_msg=name)
