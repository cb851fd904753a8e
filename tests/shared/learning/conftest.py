"""Learners under test: eager ones cost little; what compiles is built once for all tests of this folder."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from support.learners import ToyLearner, build, two_modules

# The numpy backend only answers: hundreds of skips would say so hundreds of times.
collect_ignore_glob = ["test_*.py"] if os.environ.get("LC_BACKEND", "numpy") == "numpy" else []


@pytest.fixture(scope="session")
def backend(training_backend_name: str) -> str:
    """The backend's name; numpy is skipped, it does not train."""
    return training_backend_name


class CountingLearner(ToyLearner):
    """Counts how often its loss is evaluated: per step when eager, per trace when compiled."""

    num_losses = 0

    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: Any, fwd_out: Any) -> Any:
        type(self).num_losses += 1
        return super().compute_loss_for_module(module_id=module_id, config=config, batch=batch, fwd_out=fwd_out)


class Pair:
    """The same two-module learner compiled and eager; every test starts from one state."""

    def __init__(self, backend_name: str) -> None:
        self.compiled = build(backend_name, CountingLearner, compile=True, module_spec=two_modules())
        self.eager = build(backend_name, ToyLearner, compile=False, module_spec=two_modules())
        self._start = self.eager.get_state()
        self._config = self.eager.config

    def restart(self) -> Pair:
        for learner in (self.compiled, self.eager):
            learner.set_state(self._start)
            learner.set_config(lr=self._config.lr, scale=self._config.scale, shift=self._config.shift)
        return self

    def same(self, atol: float = 1e-12) -> None:
        from support.learners import assert_states_equal

        assert_states_equal(self.compiled.get_state(), self.eager.get_state(), atol=atol)

    def update(self, **arguments: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        results = []
        for learner in (self.compiled, self.eager):
            results.append(learner.update_from_batch(**arguments))
        for module_id, metrics in results[0].items():
            for name, value in metrics.items():
                if name != "compiled":
                    np.testing.assert_allclose(value, results[1][module_id][name], rtol=1e-9, atol=1e-9, err_msg=name)
        return results[0], results[1]


@pytest.fixture(scope="session")
def _pair(backend: str) -> Pair:
    return Pair(backend)


@pytest.fixture
def pair(_pair: Pair) -> Pair:
    return _pair.restart()
