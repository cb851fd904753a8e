"""A compiled learner computes what the eager one computes, whatever the batch, and is traced once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from support.learners import assert_states_equal, regression_batch, skipping, states_differ


def one(rows: int, seed: int = 0) -> dict[str, Any]:
    return {"left": regression_batch(rows, seed), "right": regression_batch(rows, seed + 100)}


@pytest.mark.parametrize("rows", [8, 7, 4, 3, 1, 5, 16, 29])
def test_any_number_of_rows(pair: Any, rows: int) -> None:
    """A full batch is 8, a minibatch 4: short last ones, smaller batches, and batches in chunks."""
    for update in range(2):
        compiled, _ = pair.update(batch=one(rows, update), timesteps={"num_env_steps_sampled_lifetime": 10 * update})
        assert compiled["__all__"]["compiled"] == 1.0
        assert compiled["left"]["num_minibatch_steps"] == -(-rows // 4)
        assert compiled["left"]["rows_seen"] == pytest.approx(1.0)
    pair.same()


@pytest.mark.parametrize("settings", [{"num_epochs": 3}, {"minibatch_size": 2}, {"shuffle_batch_per_epoch": False}])
def test_arguments_of_the_call(pair: Any, settings: dict[str, Any]) -> None:
    pair.update(batch=one(7), **settings)
    pair.same()


def test_modules_of_different_sizes_and_absent_ones(pair: Any) -> None:
    pair.update(batch={"left": regression_batch(8), "right": regression_batch(3)})
    pair.same()
    before = pair.compiled.get_state()
    pair.update(batch={"left": regression_batch(6)})
    pair.same()
    after = pair.compiled.get_state()
    changed = states_differ(before, after)
    assert changed and not [path for path in changed if "right" in path]


def test_loss_mask(pair: Any) -> None:
    mask = np.array([1, 0, 1, 1, 0, 1, 1], float)
    batch = one(7)
    batch["left"]["loss_mask"] = mask
    pair.update(batch=batch, shuffle_batch_per_epoch=False)
    pair.same()


def test_schedules_and_settings_move_without_a_trace(pair: Any) -> None:
    traces = type(pair.compiled).num_losses
    pair.compiled.set_config(lr=[[0, 0.05], [100, 0.0]], scale=[[0, 1.0], [100, 3.0]], shift=-0.5)
    pair.eager.set_config(lr=[[0, 0.05], [100, 0.0]], scale=[[0, 1.0], [100, 3.0]], shift=-0.5)
    for steps in (0, 50, 99, 1000):
        results, _ = pair.update(batch=one(8), timesteps={"num_env_steps_sampled_lifetime": steps})
        assert results["left"]["learning_rate/v"] == pytest.approx(0.05 * max(0.0, 1 - steps / 100))
    pair.same()
    assert type(pair.compiled).num_losses == traces


def test_host_variables_move_without_a_trace(pair: Any) -> None:
    traces = type(pair.compiled).num_losses
    for learner in (pair.compiled, pair.eager):
        learner.variables["left"]["kl_coeff"] = 1.75
    pair.update(batch=one(8))
    pair.same()
    assert pair.compiled.get_state()["variables"]["left"]["kl_coeff"] == 1.75
    assert type(pair.compiled).num_losses == traces


def test_one_trace_for_good(pair: Any, backend: str) -> None:
    """Row counts, absent modules, epochs and chunks never trace again."""
    traces = type(pair.compiled).num_losses
    for rows in (8, 1, 5, 23, 4):
        pair.compiled.update_from_batch(batch=one(rows), num_epochs=1 + rows % 2)
        pair.compiled.update_from_batch(batch={"right": regression_batch(rows)})
    assert type(pair.compiled).num_losses == traces
    loop = pair.compiled.executor._compiled["full"]
    if backend == "tf":
        assert loop.num_traces == 1


def test_a_skipped_step_leaves_no_hole(pair: Any) -> None:
    """A gradient that is not finite is skipped on the device: weights, moments and step counts stay."""
    batch = one(8)
    batch["left"]["value_targets"][2] = 1e200  # its square is an infinity
    before = pair.compiled.get_state()
    skipping(lambda: pair.update(batch=batch, shuffle_batch_per_epoch=False))
    pair.same()
    state = pair.compiled.get_state()
    assert state["optimizer"]["left"]["v"]["step"] == before["optimizer"]["left"]["v"]["step"] + 1
    assert state["optimizer"]["right"]["v"]["step"] == before["optimizer"]["right"]["v"]["step"] + 2
    pair.update(batch=one(8))
    pair.same()


def test_compiled_state_moves_to_the_eager_learner_and_back(pair: Any) -> None:
    pair.compiled.update_from_batch(batch=one(5))
    pair.eager.set_state(pair.compiled.get_state())
    assert not states_differ(pair.compiled.get_state(), pair.eager.get_state())
    pair.update(batch=one(8))
    assert_states_equal(pair.compiled.get_state(), pair.eager.get_state(), atol=1e-12)


def test_generated_infinities(pair: Any) -> None:
    """Reliability row 10: wherever they are, exactly the minibatches that hold one are skipped."""
    rng = np.random.default_rng(3)
    for case in range(200):
        rows = int(rng.integers(1, 13))
        batch = one(rows, case)
        bad = {}
        for module_id, columns in batch.items():
            chosen = rng.uniform(size=rows) < rng.choice([0.0, 0.1, 0.5, 1.0])
            columns["value_targets"][chosen] = rng.choice([1e200, -1e200, 1e160])
            bad[module_id] = [chosen[start : start + 4].any() for start in range(0, rows, 4)]
        before = pair.compiled.get_state()
        arguments = {"batch": batch, "shuffle_batch_per_epoch": False}
        results = skipping(lambda arguments=arguments: pair.compiled.update_from_batch(**arguments))
        after = pair.compiled.get_state()
        for module_id, skipped in bad.items():
            metrics = results[module_id]
            assert metrics["num_nonfinite_steps"] == sum(skipped), case
            assert metrics["num_minibatch_steps"] == len(skipped) - sum(skipped), case
            assert all(np.isfinite(value) for value in metrics.values()), case
            steps = after["optimizer"][module_id]["v"]["step"] - before["optimizer"][module_id]["v"]["step"]
            assert steps == len(skipped) - sum(skipped), case
            if all(skipped):
                for part in ("rl_module", "targets", "buffers", "variables", "optimizer"):
                    assert not states_differ(before[part][module_id], after[part][module_id]), case
