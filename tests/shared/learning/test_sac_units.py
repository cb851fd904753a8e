"""SAC's updates for batches in any unit of the actions are those for the same batch on [-1, 1]."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box

import learner_core as lc
from learner_core_algorithms import SACConfig

from support.learners import OBS, assert_states_equal, build_on_spaces, sac_batch

MID = "default_policy"
#: Bounds of two dimensions: the same power of two, others, asymmetric.
BOXES = [([-4.0, -4.0], [4.0, 4.0]), ([-0.01, -100.0], [0.01, 100.0]), ([-2.0, 0.5], [1.0, 4.0])]


def learner_on(backend: str, low: Any, high: Any, **training: Any) -> Any:
    config = SACConfig().framework(backend, compile=False, precision="float64")
    config.training(train_batch_size=8, prioritized_replay=True, **training)
    config.rl_module(model={"hidden": [6], "activation": "tanh"})
    return build_on_spaces(config, OBS, Box(np.asarray(low), np.asarray(high), (2,), np.float64))


def batch_on(low: Any, high: Any, seed: int) -> dict[str, np.ndarray]:
    batch = sac_batch(8, seed=seed)
    centre, half = (np.asarray(high) + low) / 2, (np.asarray(high) - low) / 2
    return {**batch, "actions": centre + half * batch["actions"], "weights": np.linspace(0.5, 1.0, 8)}


@pytest.mark.fast_on_torch
@pytest.mark.parametrize(("low", "high"), BOXES, ids=["powers of two", "two units", "asymmetric"])
@pytest.mark.parametrize("target_entropy", ["auto", -0.5])
def test_updates_do_not_depend_on_the_unit(backend: str, low: Any, high: Any, target_entropy: Any) -> None:
    results = []
    learners = []
    for bounds in ([-1.0, -1.0], [1.0, 1.0]), (low, high):
        learner = learner_on(backend, *bounds, target_entropy=target_entropy)
        for seed in range(3):
            metrics = learner.update_from_batch(batch=batch_on(*bounds, seed))[MID]
        results.append({**metrics, "td": learner.td_errors(batch_on(*bounds, 3))})
        learners.append(learner)
    exact = low == [-4.0, -4.0]
    assert_states_equal(learners[0].get_state(), learners[1].get_state(), atol=0.0 if exact else 1e-13)
    for name, value in results[0].items():
        if not name.endswith("seconds"):
            np.testing.assert_allclose(results[1][name], value, rtol=0, atol=1e-12, err_msg=name)


def test_q_values_take_actions_in_their_own_unit(backend: str) -> None:
    """By hand: one linear layer, weight 1 on the action; centre 2, half width 3: the action 5 is 1 on [-1, 1]."""
    config = SACConfig().framework(backend, compile=False, precision="float64").training(train_batch_size=8)
    config.rl_module(model={"hidden": []})
    learner = build_on_spaces(config, OBS, Box(-1.0, 5.0, (1,), np.float64))
    weights = learner.get_module_state()
    for name in weights[MID]:
        if name.startswith("qf"):
            weights[MID][name][...] = 0.0
    weights[MID]["qf.0.weight"][0, 3] = 1.0
    weights[MID]["qf_twin.0.weight"][0, 3] = 2.0
    learner.set_module_state(weights)
    arrays = learner.backend.from_numpy({"obs": np.zeros((3, 3)), "actions": np.array([[5.0], [2.0], [-1.0]])})
    q, twin = learner.module[MID].q(arrays["obs"], arrays["actions"])
    found = learner.backend.to_numpy({"q": q, "twin": twin})
    assert found["q"].tolist() == [1.0, 0.0, -1.0]
    assert found["twin"].tolist() == [2.0, 0.0, -2.0]


def test_slack_around_the_bounds_is_in_proportion_to_them(backend: str) -> None:
    learner = learner_on(backend, [-1e-6, -1e-6], [1e-6, 1e-6])
    batch = batch_on([-1e-6, -1e-6], [1e-6, 1e-6], 0)
    learner.update_from_batch(batch=batch)
    batch["actions"][3, 1] = 1.5e-6
    with pytest.raises(lc.BatchError, match="row 3"):
        learner.update_from_batch(batch=batch)
