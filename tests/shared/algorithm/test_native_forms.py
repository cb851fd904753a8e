"""An environment's own vectorised form is taken where it is the same environment, and nowhere else."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

import learner_core as lc
from learner_core.sampling.gym_lanes import GymLanes
from learner_core.sampling.sync_lanes import SyncLanes
from learner_core_algorithms import PPOConfig

from support.env_answers import AnswerEnv, AnswerVector


class Single(AnswerEnv):
    """What ``AnswerVector`` is several of."""

    def __init__(self, size: int = 2) -> None:
        super().__init__(spaces.Box(-np.inf, np.inf, (size,), np.float32), action_space=spaces.Discrete(2))


class Vector(AnswerVector):
    """As it is registered: with the number of environments."""

    def __init__(self, num_envs: int, actions: int = 2, count: int = 2, **options: Any) -> None:
        super().__init__("NextStep", **options)
        self.single_action_space = spaces.Discrete(actions)
        self.num_envs = count


def refuses(num_envs: int, **options: Any) -> Any:
    raise ModuleNotFoundError("No module named 'cv2'")


#: The vectorised form, settings of the environment, and whether it is taken.
FORMS: dict[str, tuple[Any, dict[str, Any], bool]] = {
    "the same": (Vector, {}, True),
    "other observations": (Vector, {"size": 3}, False),
    "other actions": (lambda num_envs: Vector(num_envs, actions=3), {}, False),
    "another number": (lambda num_envs: Vector(num_envs, count=3), {}, False),
    "needs what is not there": (refuses, {}, False),
}


@pytest.fixture(params=list(FORMS))
def form(request: pytest.FixtureRequest) -> Iterator[tuple[dict[str, Any], bool]]:
    vector, settings, is_taken = FORMS[request.param]
    made = (lambda num_envs, size: vector(num_envs)) if settings else vector
    gym.register("Formed-v0", Single, vector_entry_point=made)
    yield settings, is_taken
    del gym.registry["Formed-v0"]


def config(backend: str, name: str, **settings: Any) -> Any:
    return (
        PPOConfig()
        .environment(name, env_config=settings)
        .framework(backend, compile=False)
        .env_runners(num_envs_per_env_runner=2)
        .training(train_batch_size=8, minibatch_size=8, num_epochs=1)
        .rl_module(model={"hidden": [4]})
    )


def test_defaults_train_whatever_the_vectorised_form_is(
    training_backend_name: str, form: tuple[dict[str, Any], bool]
) -> None:
    settings, is_taken = form
    with config(training_backend_name, "Formed-v0", **settings).build() as algo:
        assert type(algo.runner.lanes) is (GymLanes if is_taken else SyncLanes)
        assert algo.runner.observation_space == spaces.Box(-np.inf, np.inf, (settings.get("size", 2),), np.float32)
        algo.train()
        assert algo.evaluate(2)["num_episodes"] == 2


def test_cartpoles_is_taken(training_backend_name: str) -> None:
    with config(training_backend_name, "CartPole-v1").build() as algo:
        assert type(algo.runner.lanes) is GymLanes


@pytest.mark.parametrize("name", ["ALE/Pong-v5", "PongNoFrameskip-v4"])
def test_ataris_names_train_with_defaults(training_backend_name: str, name: str) -> None:
    pytest.importorskip("ale_py", reason='pip install "learner-core[atari]"')
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gymnasium's, of names that have newer versions
        algo: lc.Algorithm = config(training_backend_name, name).build()
    with algo:
        assert algo.runner.observation_space == spaces.Box(0, 255, (210, 160, 3), np.uint8)
        algo.train()
