"""What environments return is copied before they can change it, and refused, never repaired, where it does not fit."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from learner_core.errors import EnvOutputError
from learner_core.sampling.rollout import per_module

from support.env_answers import (
    FLAGS,
    REWARDS,
    AnswerEnv,
    AnswerGame,
    AnswerTurns,
    AnswerVector,
    draw_space,
    observe,
    spoil,
)
from support.parallel_envs import make_agents_runner
from support.sampling import CountEnv, make_runner, same_tree

MODES = ["NextStep", "SameStep", "Disabled"]
BOX = spaces.Box(-9.0, 9.0, (3,), np.float32)


def sampled(runner: Any) -> Any:
    """The columns of 20 steps, by module; and of an evaluation."""
    try:
        columns = {module_id: part.columns for module_id, part in per_module(runner.sample(20)).items()}
        return columns, runner.evaluate(3)
    finally:
        runner.close()


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_one_agent_that_reuses_its_arrays(vectorization: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(12 if vectorization == "sync" else 2):
        space = draw_space(rng)
        fresh, reused = (
            sampled(make_runner(lambda _, r=reuse, s=space: AnswerEnv(s, reuse=r), 2, vectorization=vectorization))
            for reuse in (False, True)
        )
        assert same_tree(*[columns["default_policy"] for columns, _ in (fresh, reused)]), space
        assert fresh[1] == reused[1]
        assert not (fresh[0]["default_policy"]["actions"] == 77.0).any()  # the environment wrote into its own


def test_an_environment_writes_into_actions_of_its_own() -> None:
    """``AnswerEnv`` writes 77 into what it is given; who watches sees what the policy did."""
    runner, seen = make_runner(lambda _: AnswerEnv(BOX), 2), list[np.ndarray]()
    runner.evaluate(2, watch=lambda before, answer, *rest: seen.append(np.array(answer["actions"])))
    assert len(seen) >= 3 and not (np.stack(seen) == 77.0).any()


@pytest.mark.parametrize("mode", MODES)
def test_vector_environments_that_reuse_their_arrays(mode: str) -> None:
    fresh, reused = (sampled(make_runner(lambda _, r=reuse: AnswerVector(mode, reuse=r), 2)) for reuse in (False, True))
    assert same_tree(fresh[0]["default_policy"], reused[0]["default_policy"])
    assert fresh[1] == reused[1]
    columns, valid = reused[0]["default_policy"], reused[0]["default_policy"]["valid"]
    ended = columns["truncateds"][:, 0] & valid[:, 0]
    assert ended.sum() >= 4 and (columns["next_obs"][ended, 0, 0] == 3).all()
    assert (columns["rewards"][ended, 0] % 1 == 0.25).all()


@pytest.mark.parametrize("kind", [AnswerGame, AnswerTurns])
def test_several_agents_that_reuse_their_arrays_and_dicts(kind: Any) -> None:
    rng = np.random.default_rng(2)
    for _ in range(12):
        space = draw_space(rng)
        fresh, reused = (
            sampled(make_agents_runner(lambda _, r=reuse, s=space: kind(s, reuse=r), {"m": "a"}))
            for reuse in (False, True)
        )
        assert same_tree(fresh[0]["m"], reused[0]["m"]), space
        assert fresh[1] == reused[1]


def test_the_last_observation_of_an_episode_is_not_the_next_ones_first() -> None:
    """Literally: a parallel environment with one array, which shows 10 * episode + step."""

    class Counting(AnswerGame):
        def __init__(self) -> None:
            super().__init__(spaces.Box(-np.inf, np.inf, (1,), np.float32))
            self.array, self.episode = np.zeros(1, np.float32), -1

        def _kept(self, place: int, values: dict[str, Any]) -> dict[str, Any]:
            if place == 0:
                self.episode += self.clock == 0
                self.array[0] = 10 * self.episode + self.clock
                return dict.fromkeys(values, self.array)
            return values

    (rollout,) = make_agents_runner(lambda _: Counting(), {"m": "a"}, 1).sample(6).values()
    assert rollout.columns["obs"][:, 0, 0].tolist() == [0, 1, 2, 10, 11, 12]
    assert rollout.columns["next_obs"][:, 0, 0].tolist() == [1, 2, 3, 11, 12, 13]


# ------------------------------------------------------------------------------------------------- what is wrong


def spoilt_reward(reward: Any) -> Callable[[Any], Any]:
    return lambda answer: (answer[0], reward, *answer[2:])


def spoilt_obs(obs: Any) -> Callable[[Any], Any]:
    return lambda answer: (obs, *answer[1:])


def refused(make: Callable[[], Any]) -> str:
    """What the error says, which samples and evaluations end with."""
    runner = make()
    try:
        with pytest.raises(EnvOutputError) as caught:
            runner.sample(20)
        with pytest.raises(EnvOutputError, match=r"of an evaluation in runner 0 .*, step 3"):
            runner.evaluate(3)
        assert runner.metrics()["num_env_restarts_lifetime"] == 0
        return str(caught.value)
    finally:
        runner.close()


def single(spoilt: Any, space: Any = BOX, **settings: Any) -> Callable[[], Any]:
    return lambda: make_runner(lambda _: AnswerEnv(space, spoilt=spoilt), 2, vectorization="sync", **settings)


def agents(spoilt: Any, space: Any = BOX) -> Callable[[], Any]:
    return lambda: make_agents_runner(lambda _: AnswerGame(space, spoilt=spoilt), {"m": "a"})


def turns(spoilt: Any, space: Any = BOX) -> Callable[[], Any]:
    return lambda: make_agents_runner(lambda _: AnswerTurns(space, spoilt=spoilt), {"m": "a"})


@pytest.mark.parametrize("makes", [single, agents, turns])
@pytest.mark.parametrize("number", range(60))
def test_any_mistake_in_any_observation_is_refused(makes: Any, number: int) -> None:
    rng = np.random.default_rng(number)
    space = draw_space(rng)
    bad, path = spoil(space, observe(space, rng), rng)
    said = refused(makes(spoilt_obs(bad), space))
    assert "environment 0 of runner 0" in said and "vector step 2" in said
    assert (f"observation {path!r}" if path else "observation") in said
    assert ("agent 'b'" in said) == (makes is not single)


@pytest.mark.parametrize("makes", [single, agents, turns])
@pytest.mark.parametrize(("reward", "words"), REWARDS)
def test_rewards_that_are_no_finite_numbers(makes: Any, reward: Any, words: str) -> None:
    said = refused(makes(spoilt_reward(reward)))
    assert "reward" in said and re.search(words, said) and "environment 0 of runner 0" in said, said


@pytest.mark.parametrize("makes", [single, agents, turns])
def test_flags_that_are_neither_true_nor_false(makes: Any) -> None:
    for place, name in ((2, "terminated"), (3, "truncated")):
        for flag in FLAGS:
            said = refused(makes(lambda answer, p=place, f=flag: (*answer[:p], f, *answer[p + 1 :])))
            assert f"{name} must be True or False" in said


def test_another_number_of_things() -> None:
    assert "got 4 things: (ndarray, float, bool, bool)" in refused(single(lambda answer: answer[:4]))
    assert "got NoneType None" in refused(single(lambda answer: None))

    class Bare(CountEnv):
        """Shows two numbers and no info, which would pass for both."""

        def reset(self, **options: Any) -> Any:
            return super().reset(**options)[0]

    with pytest.raises(EnvOutputError, match=r"reset\(\) must return \(observation, info\), got an array of float32"):
        make_runner(lambda _: Bare(), 1)


def test_the_same_values_in_another_form_are_taken() -> None:
    space = spaces.Dict({"b": spaces.Box(0, 255, (2,), np.uint8), "a": spaces.Discrete(3), 1: BOX})
    obs = {1: [1, 2.5, 3], "a": np.int8(2), "b": np.array([7.0, 255.0])}
    answer = (obs, np.array(2, np.int32), np.int64(0), 0, {})
    runner = make_runner(lambda _: AnswerEnv(space, spoilt=lambda _: answer), 1)
    columns = runner.sample(3).columns
    assert columns["next_obs"]["b"][2, 0].tolist() == [7, 255] and columns["next_obs"]["b"].dtype == np.uint8
    assert columns["next_obs"]["1"][2, 0].tolist() == [1.0, 2.5, 3.0]
    assert (columns["next_obs"]["a"][2, 0], columns["rewards"][2, 0]) == (2, 2.0)


@pytest.mark.parametrize("mode", MODES)
def test_vector_environments_that_answer_wrongly(mode: str) -> None:
    def place(index: int, value: Any) -> Any:
        return lambda answer: (*answer[:index], value, *answer[index + 1 :])

    nan = np.array([[0, 0], [0, np.nan]], np.float32)
    for spoilt, words in [
        (place(0, nan), r"environment 1 of runner 0 .*observation\[1\] is nan"),
        (place(0, nan[:1]), r"observation must have the shape \(2, 2\), got shape \(1, 2\)"),
        (place(0, [None, None]), "observation must be numbers"),
        (place(1, [1.0, 1e39]), r"environment 1 of runner 0 .*reward that is beyond float32"),
        (place(1, [[1.0], [1.0]]), r"gave rewards of shape \(2, 1\), expected \(2,\)"),
        (place(1, [None, 1.0]), "rewards must be 2 numbers"),
        (place(2, [0, 2]), "environment 1 of runner 0 .*terminateds must be True or False, got 2"),
        (place(3, [False]), r"gave truncateds of shape \(1,\)"),
        (lambda answer: answer[:4], "got 4 things"),
    ]:
        said = refused(lambda s=spoilt: make_runner(lambda _: AnswerVector(mode, spoilt=s), 2))
        assert re.search(words, said) and "vector step 2" in said, said


def test_processes_of_gymnasium_compare_before_they_cast() -> None:
    image = spaces.Box(0, 255, (3,), np.uint8)
    for spoilt, space, words in [
        (spoilt_obs(np.array([0.7, 0, 0])), image, r"environment [01] of runner 0 .*observation\[0\] is 0.7"),
        (spoilt_reward(None), BOX, r"environment [01] of runner 0 .*the reward must be one number, got NoneType"),
        (spoilt_reward(np.nan), BOX, "reward that is not finite"),
        (lambda answer: answer[:4], BOX, "got 4 things"),
    ]:
        said = refused(
            lambda s=spoilt, o=space: make_runner(lambda _: AnswerEnv(o, spoilt=s), 2, vectorization="async")
        )
        assert re.search(words, said) and "vector step 2" in said, said


class _Reusing:
    """A policy that answers in the same arrays every time."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy
        self.kept: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    def compute_actions(self, obs: Any, **options: Any) -> dict[str, Any]:
        for name, value in self.policy.compute_actions(obs, **options).items():
            self.kept.setdefault(name, np.array(value))[...] = value
        return dict(self.kept)


@pytest.mark.parametrize("several", [False, True])
def test_policies_that_answer_in_the_same_arrays(several: bool) -> None:
    columns = []
    for reuse in (False, True):
        if several:
            runner = make_agents_runner(lambda _: AnswerGame(BOX), {"m": "a"})
            player = runner.players["m"]
            player.policy = _Reusing(player.policy) if reuse else player.policy
        else:
            runner = make_runner(lambda _: AnswerEnv(BOX), 2)
            runner.policy = _Reusing(runner.policy) if reuse else runner.policy
            runner._memory._policy = runner.policy
        columns.append(sampled(runner)[0])
    assert same_tree(*columns)
