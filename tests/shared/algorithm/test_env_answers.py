"""What an environment answers wrongly ends the run in words, through the door; nothing is repaired in silence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

import learner_core as lc
from learner_core_algorithms import PPOConfig

from support.env_answers import AnswerEnv, AnswerGame, AnswerTurns, AnswerVector
from support.sampling import same_tree

IMAGE = spaces.Box(0, 255, (3,), np.uint8)
BOX = spaces.Box(-9.0, 9.0, (3,), np.float32)
FOUR = spaces.Discrete(4)
NUMBERED = spaces.Dict({0: spaces.Box(-9.0, 9.0, (1,), np.float32), 1: spaces.Box(-9.0, 9.0, (1,), np.float32)})
ONE, TWO = np.ones(1, np.float32), np.full(1, 2.0, np.float32)

OBSERVATIONS: list[tuple[Any, Any, str]] = [
    (IMAGE, np.array([0.7, 0.0, 0.0]), r"observation\[0\] is 0\.7, and Box\(0, 255, \(3,\), uint8\) has no such value"),
    (IMAGE, np.array([0, -1, 0]), r"observation\[1\] is -1"),
    (IMAGE, np.array([0, 0, 300]), r"observation\[2\] is 300"),
    (FOUR, 2.7, r"observation is 2\.7, and Discrete\(4\) has no such value"),
    (FOUR, 4, r"observation is 4: not in Discrete\(4\)"),
    (BOX, np.zeros(1, np.float32), r"must have the shape \(3,\), got shape \(1,\)"),
    (BOX, np.float32(1), r"must have the shape \(3,\), got shape \(\)"),
    (NUMBERED, {0: ONE, 1: ONE, 2: ONE}, r"the keys \[0, 1\]: \[2\] not in the space"),
    (NUMBERED, {0: ONE}, r"the keys \[0, 1\]: \[1\] missing"),
    (NUMBERED, {"0": ONE, "1": ONE}, r"\[0, 1\] missing and \['0', '1'\] not in the space"),
]
REWARDS: list[tuple[Any, str]] = [
    (None, "the reward must be one number, got NoneType None"),
    (np.ones(1), "the reward must be one number, got an array of float64 of shape"),
    (1e39, r"a reward that is beyond float32: float 1e\+39"),
    (float("nan"), "a reward that is not finite"),
]


def config(backend: str, make: Callable[[dict[str, Any]], Any], *, agents: bool = False, **runners: Any) -> Any:
    made = (
        PPOConfig()
        .environment(make)
        .framework(backend, compile=False)
        .training(train_batch_size=16, minibatch_size=16, num_epochs=1)
        .rl_module(model={"hidden": [4]})
        .env_runners(num_envs_per_env_runner=2, **runners)
    )
    return made.multi_agent(policies=["m"]) if agents else made


def said(made: Any) -> str:
    """What training ends with; the learners have learned nothing."""
    with made.build() as algo:
        before = algo.learner_group.get_weights()
        with pytest.raises(lc.EnvOutputError) as caught:
            algo.train()
        assert same_tree(before, algo.learner_group.get_weights())
        return str(caught.value)


def with_obs(obs: Any) -> Callable[[Any], Any]:
    return lambda answer: (obs, *answer[1:])


def with_reward(reward: Any) -> Callable[[Any], Any]:
    return lambda answer: (answer[0], reward, *answer[2:])


@pytest.mark.fast_on_torch
@pytest.mark.parametrize("agents", [False, True])
def test_what_is_not_in_the_space_is_refused_by_environment_step_key_and_value(
    training_backend_name: str, agents: bool
) -> None:
    import re

    env = AnswerGame if agents else AnswerEnv
    cases = [(space, with_obs(obs), words) for space, obs, words in OBSERVATIONS]
    cases += [(BOX, with_reward(reward), words) for reward, words in REWARDS]
    for space, spoilt, words in cases if not agents else cases[::3]:
        text = said(config(training_backend_name, lambda _, o=space, s=spoilt: env(o, spoilt=s), agents=agents))
        assert re.search(words, text), text
        assert re.match(r"environment 0 of runner 0 \(.*\), vector step 2", text), text
        assert ("agent 'b'" in text) == agents


@pytest.mark.fast_on_torch
@pytest.mark.parametrize("runners", ["processes", "agents in processes", "turns", "async", "vector"])
def test_every_runner_refuses(training_backend_name: str, runners: str) -> None:
    agents, settings = runners.startswith(("agents", "turns")), {}
    if "processes" in runners:
        settings = {"num_env_runners": 2}
    if runners == "async":
        settings = {"vectorization": "async"}
    for spoilt, words in [(with_obs(np.full((2, 2), np.nan)), "observation"), (with_reward([None, 1.0]), "reward")]:

        def make(_: dict[str, Any], spoilt: Any = spoilt) -> Any:
            if runners == "vector":
                return AnswerVector("SameStep", spoilt=spoilt)
            kind = AnswerTurns if runners == "turns" else AnswerGame if agents else AnswerEnv
            return kind(BOX, spoilt=spoilt)

        text = said(config(training_backend_name, make, agents=agents, **settings))
        assert words in text and f"of runner {1 if settings.get('num_env_runners') else 0}" in text, text


@pytest.mark.parametrize("agents", [False, True])
def test_entries_of_a_dict_may_come_in_any_order(training_backend_name: str, agents: bool) -> None:
    """Int keys too, which were taken in the order in which they came."""

    def swapped(answer: Any) -> Any:
        return ({1: TWO, 0: ONE}, *answer[1:])

    env = AnswerGame if agents else AnswerEnv
    made = config(training_backend_name, lambda _: env(NUMBERED, spoilt=swapped), agents=agents)
    with made.build() as algo:
        rollout = algo.runner.sample(3)
        next_obs = (rollout["m"] if agents else rollout).columns["next_obs"]
        third = {name: column[2, 1 if agents else 0].tolist() for name, column in next_obs.items()}
        assert third == {"0": [1.0], "1": [2.0]}
        algo.train()


@pytest.mark.parametrize("runners", ["here", "processes", "async"])
@pytest.mark.parametrize("agents", [False, True])
def test_environments_that_reuse_their_arrays_train_as_others_do(
    training_backend_name: str, agents: bool, runners: str
) -> None:
    if agents and runners == "async":
        pytest.skip("several agents are stepped one after the other")
    settings = {"processes": {"num_env_runners": 1}, "async": {"vectorization": "async"}}.get(runners, {})
    env, weights = (AnswerGame if agents else AnswerEnv), []
    for reuse in (False, True):
        with config(
            training_backend_name, lambda _, r=reuse: env(BOX, reuse=r), agents=agents, **settings
        ).build() as algo:
            algo.train()
            weights.append(algo.learner_group.get_weights())
    assert same_tree(*weights)
