"""Behaviour cloning against numpy: discrete and continuous actions, and its metric."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from learner_core_algorithms import BCConfig

from support.learners import OBS, bc_batch, build_on_spaces
from support.oracles import bc_loss, finite_differences, mlp

MID = "default_policy"


def build(backend: str, space: Any) -> Any:
    config = BCConfig().framework(backend, compile=False, precision="float64")
    config.rl_module(model={"hidden": [4], "activation": "tanh"})
    config.training(minibatch_size=8, train_batch_size=8, optimizer="sgd", lr=0.5, grad_clip=None)
    learner = build_on_spaces(config, OBS, space)
    rng = np.random.default_rng(5)
    weights = learner.get_module_state()[MID]
    learner.set_module_state({MID: {n: 0.5 * rng.normal(size=v.shape) for n, v in weights.items()}})
    return learner


def test_discrete(backend: str) -> None:
    learner, batch = build(backend, Discrete(3)), bc_batch(7, num_actions=3)
    params = learner.get_module_state()[MID]
    results = learner.update_from_batch(batch=batch)[MID]
    loss = bc_loss(params, batch)
    assert results["total_loss"] == pytest.approx(loss, abs=1e-13)
    assert results["mean_logp"] == pytest.approx(-loss, abs=1e-13)
    gradients = finite_differences(lambda p: bc_loss(p, batch), params)
    for name, value in learner.get_module_state()[MID].items():
        np.testing.assert_allclose(value, params[name] - 0.5 * gradients[name], rtol=0, atol=1e-9, err_msg=name)


def test_continuous(backend: str) -> None:
    learner = build(backend, Box(-np.inf, np.inf, (2,), np.float32))
    batch = bc_batch(6)
    batch["actions"] = np.random.default_rng(1).normal(size=(6, 2))
    params = learner.get_module_state()[MID]
    z = (batch["actions"] - mlp(params, "pi", batch["obs"])) / np.exp(params["log_std"])
    logp = (-0.5 * z**2 - params["log_std"] - 0.5 * np.log(2 * np.pi)).sum(-1).mean()
    results = learner.update_from_batch(batch=batch)[MID]
    assert results["mean_logp"] == pytest.approx(logp, abs=1e-13)
    # d(-logp)/d(log_std) = mean(1 - z^2)
    expected = params["log_std"] - 0.5 * (1 - z**2).mean(0)
    np.testing.assert_allclose(learner.get_module_state()[MID]["log_std"], expected, rtol=0, atol=1e-13)
    assert set(learner.batch_spec()) == {"obs", "actions"}
