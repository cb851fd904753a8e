"""Means over the rows that count, noise, micro-batches, early stop: what happens inside one minibatch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import learner_core as lc
from learner_core.errors import ConfigError
from learner_core.maths import noise
from learner_core.maths.noise import stream_id

from support.learners import ToyLearner, assert_states_equal, build, regression_batch, states_differ


class Probe(ToyLearner):
    """Logs what the step sees and learns nothing of it."""

    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: Any, fwd_out: Any) -> Any:
        xp = self.xp
        targets = batch["value_targets"]
        draws = self.noise("a", (2,))
        self.log("mean", self.mean(targets))
        self.log("mean_of_pairs", self.mean(batch["obs"]))
        self.log("mask", xp.sum(batch["loss_mask"]))
        self.log("noise", self.mean(draws[:, 1]))
        self.log("number", 2)
        return super().compute_loss_for_module(module_id=module_id, config=config, batch=batch, fwd_out=fwd_out)


@pytest.fixture(scope="module")
def _probe(backend: str) -> tuple[Any, Any]:
    learner = build(backend, Probe)
    return learner, learner.get_state()


@pytest.fixture
def probe(_probe: tuple[Any, Any]) -> Any:
    learner, start = _probe
    learner.set_state(start)
    return learner


def test_mean_is_over_the_rows_of_the_minibatch(probe: Any) -> None:
    batch = regression_batch(3)
    metrics = probe.update_from_batch(batch=batch)["default_policy"]
    assert metrics["mean"] == pytest.approx(batch["value_targets"].mean(), abs=1e-14)
    assert metrics["mean_of_pairs"] == pytest.approx(batch["obs"].mean(), abs=1e-14)
    assert metrics["number"] == 2.0


def test_loss_mask_leaves_rows_out(probe: Any) -> None:
    """As if the masked rows were not there: loss, gradients, metrics and their weights."""
    batch, keep = regression_batch(4), np.array([True, False, True, True])
    state = probe.get_state()
    masked = probe.update_from_batch(batch={**batch, "loss_mask": keep})["default_policy"]
    after = probe.get_module_state()["default_policy"]
    assert masked["mean"] == pytest.approx(batch["value_targets"][keep].mean(), abs=1e-14)
    assert masked["mask"] == 3.0
    probe.set_state(state)
    probe.update_from_batch(batch={name: column[keep] for name, column in batch.items()})
    alone = probe.get_module_state()["default_policy"]
    np.testing.assert_allclose(after["v.weight"], alone["v.weight"], rtol=1e-13)


def test_a_minibatch_that_is_masked_entirely_changes_nothing(probe: Any) -> None:
    before = probe.get_state()
    results = probe.update_from_batch(batch={**regression_batch(4), "loss_mask": np.zeros(4)})
    assert results["default_policy"]["num_minibatch_steps"] == 0.0
    changed = states_differ(before, probe.get_state())
    assert changed == ["counters/num_minibatch_steps", "counters/num_updates"]


def test_metrics_are_weighted_by_rows(probe: Any) -> None:
    """A short last minibatch counts for its rows, not for one step."""
    batch = regression_batch(5)
    metrics = probe.update_from_batch(batch=batch, shuffle_batch_per_epoch=False)["default_policy"]
    assert metrics["mean"] == pytest.approx(batch["value_targets"].mean(), abs=1e-14)


def test_noise_is_the_counter_based_stream(probe: Any) -> None:
    """The numbers follow from seed, lifetime step, stream and row alone, so every backend has them."""
    for step in range(2):
        metrics = probe.update_from_batch(batch=regression_batch(4))["default_policy"]
        expected = noise.normals(0, step, stream_id("default_policy/a"), 4, (2,), dtype=np.float64)
        assert metrics["noise"] == pytest.approx(expected[:, 1].mean(), abs=1e-15)


def test_noise_does_not_depend_on_padding(probe: Any) -> None:
    """A short minibatch, or one with rows left out, has the same numbers in its rows."""
    expected = noise.normals(0, 0, stream_id("default_policy/a"), 4, (2,), dtype=np.float64)[:, 1]
    state = probe.get_state()
    for rows, mask in ((3, [1, 1, 1]), (4, [1, 0, 0, 1])):
        probe.set_state(state)
        batch = regression_batch(rows, loss_mask=np.array(mask, float))
        metrics = probe.update_from_batch(batch=batch, shuffle_batch_per_epoch=False)
        assert metrics["default_policy"]["noise"] == pytest.approx(
            expected[:rows][np.array(mask) > 0].mean(), abs=1e-15
        )


def test_noise_of_one_name_has_one_shape(backend: str) -> None:
    class Twice(ToyLearner):
        def compute_loss_for_module(self, **kwargs: Any) -> Any:
            self.noise("q", (3,))
            return super().compute_loss_for_module(**kwargs)

    with pytest.raises(ConfigError, match=r"noise 'q'.*shapes"):
        build(backend, Twice)


@pytest.mark.parametrize("rows", [8, 7, 5, 1])
@pytest.mark.parametrize("accumulate", [2, 3])
def test_micro_batches_compute_what_the_minibatch_does(backend: str, rows: int, accumulate: int) -> None:
    """Also where a micro-batch has fewer rows than the others, or none."""
    whole, parts = build(backend, Probe), build(backend, Probe, accumulate=accumulate)
    assert parts.executor.tried.mask_safe
    parts.set_state(whole.get_state())
    mask = np.ones(rows)
    mask[rows // 2] = rows == 1
    batch = {**regression_batch(rows), "loss_mask": mask}
    results = [learner.update_from_batch(batch=batch)["default_policy"] for learner in (whole, parts)]
    # Micro-batches are several forward passes, which the module's own counter of them shows.
    assert_states_equal(whole.get_state(), parts.get_state(), atol=1e-12, ignore=("buffers/",))
    for name in ("vf_loss", "total_loss", "gradient_norm/v", "num_minibatch_steps", "mean"):
        assert results[0][name] == pytest.approx(results[1][name], abs=1e-12), name


@pytest.mark.parametrize("accumulate", [1, 2])
def test_stop_update_ends_the_modules_update(backend: str, accumulate: int) -> None:
    """The step whose condition holds, and those after it in this update, change nothing; the next update goes on."""

    class Stopping(ToyLearner):
        def compute_loss_for_module(self, *, module_id: str, config: Any, batch: Any, fwd_out: Any) -> Any:
            self.stop_update(self.mean(batch["value_targets"]) - 5.0)
            return super().compute_loss_for_module(module_id=module_id, config=config, batch=batch, fwd_out=fwd_out)

    learner, twin = build(backend, Stopping, accumulate=accumulate), build(backend, ToyLearner, accumulate=accumulate)
    batch = regression_batch(16)
    batch["value_targets"][8:10] += 100.0  # the third minibatch of four, in one of its halves
    results = learner.update_from_batch(batch=batch, shuffle_batch_per_epoch=False)
    assert results["default_policy"]["num_minibatch_steps"] == 2.0
    assert learner.get_state()["optimizer"]["default_policy"]["v"]["step"] == 2
    twin.update_from_batch(batch={k: v[:8] for k, v in batch.items()}, shuffle_batch_per_epoch=False)
    for part in ("rl_module", "targets", "optimizer", "variables", "buffers"):
        assert not states_differ(learner.get_state()[part], twin.get_state()[part])
    results = learner.update_from_batch(batch=regression_batch(8))
    assert results["default_policy"]["num_minibatch_steps"] == 2.0


def test_metrics_are_numbers(backend: str) -> None:
    class Vector(ToyLearner):
        def compute_loss_for_module(self, **kwargs: Any) -> Any:
            self.log("rows", kwargs["batch"]["value_targets"])
            return super().compute_loss_for_module(**kwargs)

    with pytest.raises(ConfigError, match=r"log\('rows'\).*one number"):
        build(backend, Vector)


def test_a_column_nobody_declared_is_named(backend: str) -> None:
    class Reads(ToyLearner):
        def compute_loss_for_module(self, **kwargs: Any) -> Any:
            return self.mean(kwargs["batch"]["weights"])

    with pytest.raises(lc.errors.BatchError, match=r"'weights'.*batch_spec"):
        build(backend, Reads)


def test_a_declared_column_is_read_and_checked(backend: str) -> None:
    from learner_core.learning.batch import ColumnSpec

    class Weighted(ToyLearner):
        def batch_spec(self, module_id: str | None = None) -> dict[str, ColumnSpec]:
            return {**super().batch_spec(module_id), "weights": ColumnSpec((), "float")}

        def compute_loss_for_module(self, **kwargs: Any) -> Any:
            self.log("weight", self.mean(kwargs["batch"]["weights"]))
            return super().compute_loss_for_module(**kwargs)

    learner = build(backend, Weighted)
    assert set(learner.batch_spec()) == {"obs", "value_targets", "weights"}
    with pytest.raises(lc.errors.BatchError, match=r"'weights'.*missing"):
        learner.update_from_batch(batch=regression_batch(4))
    results = learner.update_from_batch(batch=regression_batch(4, weights=np.full(4, 3.0)))
    assert results["default_policy"]["weight"] == 3.0
