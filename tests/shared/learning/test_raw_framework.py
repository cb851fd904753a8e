"""Hooks in raw Torch and raw TensorFlow: compiled, in debug mode, and exact where their plain means meet padding."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from learner_core.errors import ConfigError
from learner_core_algorithms import BCConfig

from support.learners import assert_states_equal, bc_batch

_spec = importlib.util.spec_from_file_location("raw_learners", Path(__file__).with_name("raw.py"))
assert _spec is not None and _spec.loader is not None
_raw = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_raw)


def bc_config(backend: str, learner_class: Any = None, **framework: Any) -> BCConfig:
    config = BCConfig().framework(backend, precision="float64", **framework)
    config.rl_module(model={"hidden": [], "activation": "tanh"}).learners(learner_class=learner_class)
    return config.training(lr=0.1, minibatch_size=4, train_batch_size=10, optimizer="sgd", grad_clip=None)


def build(config: BCConfig) -> Any:
    space = gym.spaces.Box(-10, 10, (3,), np.float32)
    config.environment(observation_space=space, action_space=gym.spaces.Discrete(2))
    return config.build_learner()


@pytest.fixture(scope="module")
def compiled(backend: str) -> Any:
    return build(bc_config(backend, _raw.raw_bc_learner(backend), compile=True))


def softmax_step(weight: np.ndarray, bias: np.ndarray, batch: dict[str, np.ndarray], lr: float) -> Any:
    """One step of gradient descent on -mean(log softmax(obs W' + b)[action]), by hand."""
    logits = batch["obs"] @ weight.T + bias
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    error = (p - np.eye(2)[batch["actions"]]) / len(p)
    loss = -np.mean(np.log(p[np.arange(len(p)), batch["actions"]]))
    return weight - lr * error.T @ batch["obs"], bias - lr * error.sum(0), loss


@pytest.mark.parametrize("rows", [4, 3, 1, 6, 8, 10, 21])
def test_short_minibatches_are_exact(compiled: Any, backend: str, rows: int) -> None:
    """The probe finds the plain mean; a short minibatch then runs at its true size."""
    state = compiled.get_state()
    weights = state["rl_module"]["default_policy"]
    weight, bias = weights["pi.0.weight"], weights["pi.0.bias"]
    batch = bc_batch(rows, seed=rows)
    losses = []
    for start in range(0, rows, 4):
        part = {name: column[start : start + 4] for name, column in batch.items()}
        weight, bias, loss = softmax_step(weight, bias, part, 0.1)
        losses += [loss] * len(part["actions"])
    results = compiled.update_from_batch(batch=batch, shuffle_batch_per_epoch=False)
    after = compiled.get_module_state()["default_policy"]
    np.testing.assert_allclose(after["pi.0.weight"], weight, rtol=0, atol=1e-14)
    np.testing.assert_allclose(after["pi.0.bias"], bias, rtol=0, atol=1e-14)
    assert results["default_policy"]["total_loss"] == pytest.approx(np.mean(losses), abs=1e-12)
    assert results["__all__"]["compiled"] == 1.0


def test_the_usual_batch_runs_compiled_to_its_last_row(backend: str) -> None:
    """Its short last minibatch has an executable of its own: Python computes the loss no more after the build."""
    counting = type("Counting", (_raw.raw_bc_learner(backend),), {"calls": 0})

    def count(self: Any, **arguments: Any) -> Any:
        counting.calls += 1
        return super(counting, self).compute_loss_for_module(**arguments)

    counting.compute_loss_for_module = count
    learner = build(bc_config(backend, counting, compile=True))
    calls = counting.calls
    learner.update_from_batch(batch=bc_batch(10), num_epochs=2)
    assert counting.calls == calls
    learner.update_from_batch(batch=bc_batch(11))  # one of 4, 4 and 3 rows: the last one is no usual one
    assert counting.calls == calls + 1


def test_debug_computes_the_same(compiled: Any, backend: str) -> None:
    debug = build(bc_config(backend, _raw.raw_bc_learner(backend), debug=True))
    debug.set_state(compiled.get_state())
    for rows in (8, 7):
        results = [learner.update_from_batch(batch=bc_batch(rows)) for learner in (compiled, debug)]
        assert [r["__all__"]["compiled"] for r in results] == [1.0, 0.0]
    assert_states_equal(compiled.get_state(), debug.get_state(), atol=1e-12)


def test_backend_neutral_bc_computes_the_same(compiled: Any, backend: str) -> None:
    neutral = build(bc_config(backend, compile=False))
    neutral.set_state(compiled.get_state())
    for learner in (compiled, neutral):
        learner.update_from_batch(batch=bc_batch(7))
    assert_states_equal(compiled.get_state(), neutral.get_state(), atol=1e-12)


def test_debug_prints_every_step(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Eager on TensorFlow too: ``float(loss)`` has a value, and Python runs at every step, not once a trace."""
    learner = build(bc_config(backend, _raw.raw_bc_learner(backend, prints=True), debug=True))
    capsys.readouterr()
    learner.update_from_batch(batch=bc_batch(8), num_epochs=3)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and len(set(lines)) > 1 and all(line.startswith("loss is 0.") for line in lines)


def test_a_class_for_the_other_framework_is_refused(backend: str) -> None:
    other = "tf" if backend == "torch" else "torch"
    with pytest.raises(ConfigError, match=f"written for framework '{backend}'.*framework\\('{backend}'\\)"):
        build(bc_config(other, _raw.raw_bc_learner(backend)))
