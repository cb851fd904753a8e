"""NaN and infinity in a loss or a gradient: skipped or raised, and in either case the weights stay."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from learner_core.errors import NonFiniteError
from learner_core.learning.run import inputs

from support.learners import ToyLearner, build, regression_batch, skipping, states_differ

# Target values that the loss turns into something that is not a number.
IN_LOSS, IN_GRADIENT, FINE = -1.0, 0.0, 4.0


class Fragile(ToyLearner):
    """v: mean(w' sqrt(targets)): NaN below 0; its gradient by the target-scaled weights is infinite at 0."""

    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: Any, fwd_out: Any) -> Any:
        losses = super().compute_loss_for_module(module_id=module_id, config=config, batch=batch, fwd_out=fwd_out)
        # sqrt(t + 0 * w): the value is fine at t = 0, the derivative is 0 * infinity.
        inside = batch["value_targets"] + 0.0 * fwd_out["vf_preds"]
        losses["v"] = losses["v"] + self.mean(self.xp.sqrt(inside))
        return losses


def batch_of(*values: float) -> dict[str, np.ndarray]:
    return {**regression_batch(4 * len(values)), "value_targets": np.repeat(values, 4).astype(float)}


@pytest.mark.parametrize("bad", [IN_LOSS, IN_GRADIENT], ids=["loss", "gradient"])
@pytest.mark.parametrize(
    "training",
    [
        {"grad_clip": None},
        {"grad_clip": 1.0},
        {"grad_clip": 1.0, "grad_clip_by": "norm"},
        {"grad_clip": 1.0, "grad_clip_by": "value"},
        {"grad_clip": 1.0, "accumulate": 2},
    ],
    ids=["none", "global_norm", "norm", "value", "accumulate"],
)
def test_a_step_is_skipped_as_if_it_had_not_been(
    backend: str, bad: float, training: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, twin = build(backend, Fragile, **training), build(backend, Fragile, **training)
    with pytest.warns(RuntimeWarning, match=r"skipped 1 step\(s\) of module 'default_policy'"):
        results = learner.update_from_batch(batch=batch_of(FINE, bad, FINE), shuffle_batch_per_epoch=False)
    metrics = results["default_policy"]
    assert metrics["num_nonfinite_steps"] == 1.0 and metrics["num_minibatch_steps"] == 2.0
    assert all(np.isfinite(value) for value in metrics.values())
    before = learner.get_state()["optimizer"]["default_policy"]["v"]
    assert before["step"] == 2
    # The same two good steps alone, with the noise of the first and third.
    draw = inputs.noise_rows
    monkeypatch.setattr(inputs, "noise_rows", lambda seed, step, *rest: draw(seed, {0: 0, 1: 2}[step], *rest))
    rows = [0, 1, 2, 3, 8, 9, 10, 11]
    good = {name: column[rows] for name, column in batch_of(FINE, bad, FINE).items()}
    twin.update_from_batch(batch=good, shuffle_batch_per_epoch=False)
    for part in ("rl_module", "targets", "buffers", "variables", "optimizer"):
        assert not states_differ(learner.get_state()[part], twin.get_state()[part]), part


@pytest.mark.parametrize("bad", [IN_LOSS, IN_GRADIENT], ids=["loss", "gradient"])
def test_or_raised(backend: str, bad: float) -> None:
    learner = build(backend, Fragile, nonfinite_gradients="raise")
    before = learner.get_state()
    with pytest.raises(NonFiniteError, match=r"1 step\(s\) of module 'default_policy'.*not applied"):
        learner.update_from_batch(batch=batch_of(bad))
    for part in ("rl_module", "targets", "buffers", "variables", "optimizer"):
        assert not states_differ(before[part], learner.get_state()[part])
    learner.update_from_batch(batch=batch_of(FINE))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_gradient_made_bad_by_a_hook(backend: str, value: float) -> None:
    class Hooked(ToyLearner):
        def postprocess_gradients_for_module(self, *, module_id: str, config: Any, gradients: Any) -> Any:
            bias = gradients["v.bias"]
            return {**gradients, "v.bias": bias + self.xp.asarray(value, dtype=self.float_dtype)}

    learner = build(backend, Hooked)
    before = learner.get_state()
    results = skipping(lambda: learner.update_from_batch(batch=regression_batch(4)))
    assert results["default_policy"]["num_nonfinite_steps"] == 1.0
    for part in ("rl_module", "targets", "buffers", "variables", "optimizer"):
        assert not states_differ(before[part], learner.get_state()[part])


def test_a_parameter_that_is_not_finite_is_reported_at_every_step(backend: str) -> None:
    learner = build(backend)
    learner.update_parameters(lambda module_id, params: {**params, "v.bias": params["v.bias"] * float("nan")})
    results = skipping(lambda: learner.update_from_batch(batch=regression_batch(8)))
    assert results["default_policy"]["num_nonfinite_steps"] == 2.0


def test_one_module_skips_and_the_other_goes_on(backend: str) -> None:
    from support.learners import two_modules

    learner = build(backend, Fragile, module_spec=two_modules())
    before = learner.get_state()["rl_module"]
    batch = {"left": batch_of(IN_LOSS), "right": batch_of(FINE)}
    results = skipping(lambda: learner.update_from_batch(batch=batch))
    after = learner.get_state()["rl_module"]
    assert results["left"]["num_nonfinite_steps"] == 1.0 and results["right"]["num_nonfinite_steps"] == 0.0
    assert not states_differ(before["left"], after["left"]) and states_differ(before["right"], after["right"])


@pytest.mark.parametrize("bad", [IN_LOSS, IN_GRADIENT, FINE], ids=["loss", "gradient", "none"])
def test_branches_choose_as_where_does(backend: str, bad: float) -> None:
    """An uncompiled step may look whether it counts (``reads_are_free``) and must then come to the same."""
    learners = [build(backend, Fragile, grad_clip=1.0) for _ in range(2)]
    for learner, free in zip(learners, (False, True), strict=True):
        learner.backend.reads_are_free = free
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            learner.update_from_batch(batch=batch_of(FINE, bad, FINE), shuffle_batch_per_epoch=False)
    first, second = (learner.get_state() for learner in learners)
    assert not states_differ(first, second)
    assert learners[0].results == learners[1].results
