"""BatchNorm over learners in processes of their own: running statistics are those of one learner, whatever N is."""

from __future__ import annotations

import sys
from collections.abc import Callable

import cloudpickle
import numpy as np
import pytest
from gymnasium.spaces import Discrete

import learner_core as lc
from learner_core.group.learner_group import LearnerGroup

from .conftest import ppo_config
from support import row_networks
from support.learners import OBS, flat_state, ppo_batch

# The learners cannot import these files.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
cloudpickle.register_pickle_by_value(row_networks)

Make = Callable[..., LearnerGroup]


@pytest.mark.parametrize(
    ("backend", "size"),
    [
        ("torch", 2),
        pytest.param("tf", 2, marks=pytest.mark.slow),
        pytest.param("torch", 4, marks=pytest.mark.slow),
        pytest.param("tf", 4, marks=pytest.mark.slow),
    ],
)
def test_any_number_of_learners_has_the_statistics_of_one(groups: Make, backend: str, size: int) -> None:
    """Three updates, left to the default of ``compile``; a minibatch of 7 rows among them."""
    network = row_networks.norm_network(backend)
    config = ppo_config(backend, precision="float64").training(train_batch_size=64, minibatch_size=16, num_epochs=1)
    config.rl_module(rl_module_spec=lc.RLModuleSpec(network, OBS, Discrete(2)), model={})
    one = groups(config.copy().learners(num_learners=1))
    several = groups(config.copy().learners(num_learners=size))
    start = one.get_state()
    several.set_state(start)
    for seed, rows in enumerate((64, 55, 16)):
        for group in (one, several):
            group.update_from_batch(batch=ppo_batch(rows, Discrete(2), seed=seed))
    parts = ("rl_module", "buffers")
    alone, together = (flat_state({part: group.get_state()[part] for part in parts}) for group in (one, several))
    assert sorted(alone) == sorted(together)
    for path, value in alone.items():
        np.testing.assert_allclose(value, together[path], rtol=0, atol=1e-7, err_msg=path)
    before = flat_state({"buffers": start["buffers"]})
    assert max(np.abs(alone[path] - value).max() for path, value in before.items()) > 0.1
