"""One minibatch of an algorithm against an oracle: loss, gradients by finite differences, and Adam's step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from .oracles import adam, finite_differences

__all__ = ["MID", "SPACES", "check_step", "keeping_gradients"]

SPACES = {
    "discrete": Discrete(3),
    "shifted": Discrete(3, start=-1),
    "continuous": Box(-np.inf, np.inf, (2,), np.float32),
}
MID = "default_policy"


def keeping_gradients(learner_class: Any) -> Any:
    """The class, whose learners have their last gradients as ``kept``."""

    class Keeps(learner_class):
        def compute_gradients(self, loss_fn: Any, params: Any) -> Any:
            gradients, aux = super().compute_gradients(loss_fn, params)
            self.kept = gradients
            return gradients, aux

    return Keeps


def check_step(
    learner: Any, batch: Any, params: Mapping[str, np.ndarray], loss: Callable[[Any], float], *, atol: float
) -> None:
    """Make one update of one minibatch and hold it against ``loss``, a function of the parameters in numpy.

    Args:
        learner: of a class ``keeping_gradients``, uncompiled, float64, with Adam and no clipping.
        batch: of one minibatch.
        params: the learner's parameters before the update.
        loss: the oracle.
        atol: of the loss.
    """
    results = learner.update_from_batch(batch=batch)[MID]
    assert results["total_loss"] == pytest.approx(loss(params), abs=atol)
    kept = learner.backend.to_numpy(learner.kept[MID])
    for name, gradient in finite_differences(loss, params).items():
        np.testing.assert_allclose(kept[name], gradient, rtol=0, atol=2e-9, err_msg=name)
    stepped = adam(params, {name: kept[name] for name in params}, {}, lr=learner.config.lr)
    for name, value in learner.get_module_state()[MID].items():
        np.testing.assert_allclose(value, stepped[name], rtol=0, atol=1e-15, err_msg=name)
