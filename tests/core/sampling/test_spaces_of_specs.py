"""A module for other spaces than the environment's is refused with both, before it answers anything."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from learner_core.errors import SpaceError
from learner_core.learning.actor_critic import ActorCriticModule
from learner_core.learning.rl_module import RLModuleSpec
from learner_core.sampling.env_runner import EnvRunner
from learner_core.spaces import alike

from support.sampling import runner_config

BOX = spaces.Box(-1, 1, (4,), np.float32)


@pytest.mark.parametrize(
    ("observations", "actions", "said"),
    [
        (spaces.Box(-1, 1, (7,), np.float32), None, r"environment has observation_space Box.*\(4,\).*Box.*\(7,\)"),
        (spaces.Discrete(4), None, r"observation_space .* the module's is Discrete\(4\)"),
        (None, spaces.Discrete(3), r"has action_space Discrete\(2\), but the module's is Discrete\(3\)"),
    ],
)
def test_spaces_that_differ(observations: Any, actions: Any, said: str) -> None:
    spec = RLModuleSpec(ActorCriticModule, observations, actions, {"hidden": [4]})
    with pytest.raises(SpaceError, match=said):
        EnvRunner(runner_config("CartPole-v1"), spec, seed=0)


def test_bounds_and_dtypes_do_not_matter_shapes_and_names_do() -> None:
    assert alike(BOX, spaces.Box(-9, 9, (4,), np.float64))
    assert not alike(BOX, spaces.Box(-1, 1, (2, 2), np.float32))
    assert not alike(spaces.Dict({"a": BOX, "b": spaces.Discrete(3)}), spaces.Dict({"a": BOX, "b": spaces.Discrete(2)}))
    assert not alike(spaces.Dict({"a": BOX}), spaces.Dict({"c": BOX}))
    assert alike(spaces.Dict({"a": BOX}), spaces.Dict({"a": BOX}))
