"""A user's Torch network and its Keras equivalent hold the same state: names, layouts, outputs, gradients."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Discrete

from learner_core import RLModuleSpec

from support.both import Arrays
from support.user_networks import CASES, NUM_ACTIONS, factory, observations, perturbed

#: Recurrent networks over several steps: interop.md promises 2e-5.
TOLERANCE = dict.fromkeys(("lstm", "gru", "bidirectional", "stacked lstm", "stacked gru", "cells"), 2e-5)


def program(backend_name: str, arrays: Arrays, settings: dict[str, Any]) -> dict[str, Any]:
    backend_class = importlib.import_module(f"learner_core_{backend_name}.backend")
    backend = getattr(backend_class, {"torch": "TorchBackend", "tf": "TfBackend"}[backend_name])(device="cpu")
    xp = backend.xp
    results: dict[str, Any] = {}
    for case, space in CASES.items():
        spec = RLModuleSpec(
            module_class=factory(backend_name, case), observation_space=space, action_space=Discrete(NUM_ACTIONS)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # every one of these is portable
            module = spec.build(xp, backend)
        fresh = module.init(np.random.default_rng(0))
        again = module.init(np.random.default_rng(0))
        assert all(np.array_equal(fresh[name], again[name]) for name in fresh), f"{case}: init depends on more than rng"
        params, buffers = perturbed(fresh), perturbed(module.init_buffers())
        batch = backend.from_numpy({"obs": observations(case)})
        values = backend.from_numpy({**params, **buffers})
        outputs = module.forward_inference(values, batch)
        rng = np.random.default_rng(1)
        cotangent = backend.from_numpy({"x": rng.normal(size=(4, NUM_ACTIONS)).astype(np.float32)})["x"]

        def loss_fn(leaves: Any, module=module, batch=batch, values=values, cotangent=cotangent) -> Any:
            out = module.forward_train({**values, **leaves["m"]}, batch)
            loss = xp.sum(out["action_dist_inputs"] * cotangent)
            if "vf_preds" in out:
                loss = loss + xp.sum(out["vf_preds"])
            return {"m": loss}, {"buffers": dict(out.get("buffers", {}))}

        gradients, aux = backend.gradients(
            loss_fn, {"m": {name: values[name] for name in params}}, {"m": {"default": list(params)}}
        )
        results[case] = {
            "params": params,
            "buffers": buffers,
            "outputs": backend.to_numpy(dict(outputs)),
            "gradients": backend.to_numpy(gradients["m"]),
            "new_buffers": backend.to_numpy(aux["buffers"]),
            **native(backend_name, backend, module, {**params, **buffers}, case),
            "frozen": np.array(sorted(module.frozen_parameters), dtype=np.str_),
        }
    return results


def native(backend_name: str, backend: Any, module: Any, values: Any, case: str) -> dict[str, Any]:
    """What the user's own network returns once it holds the state's weights; and what is read off it then."""
    if backend_name == "torch":
        import torch

        network = factory("torch", case)()
        network.load_state_dict({name: torch.from_numpy(v) for name, v in module.export_native(values).items()})
        network.eval()
        obs = observations(case)
        obs = {k: torch.from_numpy(v) for k, v in obs.items()} if isinstance(obs, dict) else torch.from_numpy(obs)
        with torch.no_grad():
            out = network(obs)
    else:
        network = module.load_into_network(values)
        out = network(observations(case), training=False)
    out = out["action_dist_inputs"] if isinstance(out, dict) else out[0] if isinstance(out, tuple) else out
    spec = RLModuleSpec(module_class=network, observation_space=CASES[case], action_space=Discrete(NUM_ACTIONS))
    again = spec.build(backend.xp, backend)
    return {"native": out.numpy(), "read_back": {**again.init(np.random.default_rng(0)), **again.init_buffers()}}


@pytest.fixture
def both(user_networks: tuple[Arrays, Arrays]) -> tuple[Arrays, Arrays]:
    return user_networks


@pytest.mark.parametrize("case", CASES)
def test_names_shapes_and_frozen_parameters_agree(both: tuple[Arrays, Arrays], case: str) -> None:
    torch, tf = both
    for part in ("params", "buffers"):
        of_torch, of_tf = ({k: v for k, v in a.items() if k.startswith(f"{case}/{part}/")} for a in both)
        assert {k: v.shape for k, v in of_torch.items()} == {k: v.shape for k, v in of_tf.items()}
        for name, value in of_torch.items():
            np.testing.assert_array_equal(value, of_tf[name])
    assert torch[f"{case}/frozen"].tolist() == tf[f"{case}/frozen"].tolist()
    assert bool(torch[f"{case}/frozen"].size) == (case == "frozen")


@pytest.mark.parametrize("case", CASES)
def test_outputs_agree(both: tuple[Arrays, Arrays], case: str) -> None:
    tolerance = TOLERANCE.get(case, 1e-5)
    torch, tf = both
    for name in (n for n in torch if n.startswith(f"{case}/outputs/")):
        assert np.abs(torch[name]).max() > 0.01
        np.testing.assert_allclose(torch[name], tf[name], rtol=tolerance, atol=tolerance, err_msg=name)
    for arrays in both:
        inside, alone = arrays[f"{case}/outputs/action_dist_inputs"], arrays[f"{case}/native"]
        np.testing.assert_allclose(inside, alone, rtol=1e-6, atol=1e-6, err_msg="the user's own network")


@pytest.mark.parametrize("case", CASES)
def test_gradients_agree(both: tuple[Arrays, Arrays], case: str) -> None:
    torch, tf = both
    for name in (n for n in torch if n.startswith(f"{case}/gradients/")):
        scale = max(1.0, np.abs(torch[name]).max())
        np.testing.assert_allclose(torch[name] / scale, tf[name] / scale, rtol=2e-5, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("case", ["batch norm", "flat normalisation"])
def test_batch_statistics_differ_by_bessels_correction_only(both: tuple[Arrays, Arrays], case: str) -> None:
    """Row 9: statistics transfer exactly; in training Torch keeps the unbiased variance, Keras the biased one."""
    torch, tf = both
    momentum = 0.2 if case == "batch norm" else 0.1
    mean, var = (f"{case}/new_buffers/norm.running_{what}" for what in ("mean", "var"))
    np.testing.assert_allclose(torch[mean], tf[mean], rtol=1e-5, atol=1e-5)
    before = torch[f"{case}/buffers/norm.running_var"]
    unbiased, biased = ((a[var] - (1 - momentum) * before) / momentum for a in both)
    np.testing.assert_allclose(unbiased, biased * 4 / 3, rtol=1e-4, atol=1e-5)
