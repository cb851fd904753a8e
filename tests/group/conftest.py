"""Groups of learner processes. The test itself imports no framework: one worker computes what one learner does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gymnasium.spaces import Discrete

from learner_core.group.learner_group import LearnerGroup
from learner_core_algorithms import PPOConfig

from support.learners import OBS
from support.runners import gone


def ppo_config(backend: str, *, precision: str = "float32", compile: bool | None = None, **learners: Any) -> Any:
    """PPO on three observations and two actions: 12 steps an update."""
    config = PPOConfig().framework(backend, compile=compile, precision=precision)
    config.training(lr=3e-4, train_batch_size=384, minibatch_size=64, num_epochs=2)
    config.environment(observation_space=OBS, action_space=Discrete(2)).rl_module(model={"hidden": [16, 16]})
    return config.learners(**learners)


@pytest.fixture
def groups() -> Iterator[Callable[..., LearnerGroup]]:
    """``groups(config) -> LearnerGroup``; every group is shut down afterwards, and none of its processes is left."""
    made: list[LearnerGroup] = []

    def make(config: Any) -> LearnerGroup:
        group: LearnerGroup = config.build_learner_group()
        made.append(group)
        return group

    yield make
    for group in made:
        pids = [member.pid for member in group._learners._members]
        group.shutdown()
        assert gone(pids)
