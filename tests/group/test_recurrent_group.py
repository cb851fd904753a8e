"""Sequences through learner processes: nested states in shared memory, the same numbers as one learner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from learner_core.group.learner_group import LearnerGroup

from support.learners import assert_states_equal
from support.sequences import LENGTH, recurrent_config, sequence_batch

_STATE = {name: np.zeros(3, np.float32) for name in ("pi_h", "pi_c", "vf_h", "vf_c")}


def test_two_learners_compute_what_one_computes(groups: Callable[[Any], LearnerGroup]) -> None:
    config = recurrent_config("torch", minibatch_size=3 * LENGTH, num_epochs=2, lr=0.05, burn_in=1)
    config.learners(collective="torch")
    one, two = (groups(config.copy().learners(num_learners=number)) for number in (1, 2))
    for seed in range(3):
        batch = sequence_batch(8, _STATE, pad=True, seed=seed)
        for group in (one, two):
            results = group.update_from_batch(batch=batch)
            assert results["default_policy"]["num_minibatch_steps"] == 6.0
    first, second = two.foreach_learner(lambda learner: learner.get_state())
    assert_states_equal(first, second)
    assert_states_equal(one.get_weights(), two.get_weights(), atol=1e-10)
