"""An environment's exception ends the run with its own traceback, or is survived by choice; mistakes are neither."""

from __future__ import annotations

import time
import traceback
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from learner_core.errors import ConfigError, EnvError, EnvOutputError
from learner_core_algorithms import PPOConfig

from support.parallel_envs import Signals
from support.told import Told, told


class Falls(Told):
    """Raises in the third step of its episodes, or of the first one alone; says nothing else."""

    def __init__(self, always: bool) -> None:
        super().__init__()
        self.always, self.episode = always, 0

    def reset(self, **options: Any) -> Any:
        self.episode += 1
        return super().reset(**options)

    def step(self, action: Any) -> Any:
        if self.clock == 2 and (self.always or self.episode == 1):
            raise ValueError("the robot fell over")
        return super().step(action)


class FallingSignals(Signals):
    """Raises in the third step."""

    def step(self, actions: Any) -> Any:
        if self.clock == 2:
            raise ValueError("the line is dead")
        return super().step(actions)


def make_falls(env_config: dict[str, Any]) -> Falls:
    return Falls(env_config.get("always", True))


HOW: dict[str, dict[str, Any]] = {
    "here": {},
    "processes": {"num_env_runners": 1},
    "async": {"vectorization": "async"},
}


@pytest.mark.parametrize("how", HOW)
def test_it_ends_the_run_at_once_with_its_own_traceback(
    training_backend_name: str, how: str, recwarn: pytest.WarningsRecorder
) -> None:
    config = told("ppo", training_backend_name).environment(make_falls, env_config={}).env_runners(**HOW[how])
    with config.build() as algo, pytest.raises(EnvError, match="the robot fell over") as caught:
        algo.train()
    runner, words = int(how == "processes"), str(caught.value)
    assert f"environment 0 of runner {runner} (make_falls), vector step 2" in words
    assert how == "async" or "step 3 of its episode: raised ValueError: the robot fell over (at " in words
    assert words.endswith("N times at most: .environment(..., max_env_restarts=N)")
    whole = "".join(traceback.format_exception(caught.value))  # with what it was raised from, and its notes
    assert 'raise ValueError("the robot fell over")' in whole and "test_env_exceptions.py" in whole
    if how != "processes":
        assert isinstance(caught.value.__cause__, ValueError)
    assert not [one for one in recwarn if "fell over" in str(one.message)]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.fast_on_torch
def test_by_choice_it_is_made_anew_told_and_counted(training_backend_name: str, how: str) -> None:
    config = told("ppo", training_backend_name).env_runners(**HOW[how])
    config.environment(make_falls, env_config={"always": True}, max_env_restarts=30)
    words = r"raised ValueError: the robot fell over.*of 30 times"
    with config.build() as algo, pytest.warns(RuntimeWarning, match=words) as warned:
        results = algo.train()["env_runners"]
    assert results["num_env_restarts_lifetime"] == len([w for w in warned if "fell over" in str(w.message)]) > 1
    assert results["num_episodes_lost_lifetime"] >= results["num_env_restarts_lifetime"]
    with config.copy().environment(max_env_restarts=1).build() as algo, warnings.catch_warnings(record=True) as told_of:
        warnings.simplefilter("always")
        with pytest.raises(EnvError, match="=1 rebuilds are used up") as caught:
            algo.train()
    # Of a fragment that never came the error has what was to be told.
    texts = [str(one.message) for one in told_of] + getattr(caught.value, "__notes__", [])
    assert sum("1 of 1 times" in text for text in texts) == 1


@pytest.mark.fast_on_torch
def test_an_evaluation_tells_it_as_well(training_backend_name: str) -> None:
    config = told("ppo", training_backend_name).environment(make_falls, env_config={"always": True})
    with config.build() as algo, pytest.raises(EnvError, match=r"environment 0 of an evaluation in runner 0 .*fell"):
        algo.evaluate(1)
    made: list[Falls] = []

    def make(env_config: dict[str, Any]) -> Falls:
        made.append(Falls(always=False))
        made[-1].episode = len(made[1:])  # the first one falls
        return made[-1]

    with config.environment(make, max_env_restarts=1, env_config={}).build() as algo:
        made.clear()
        with pytest.warns(RuntimeWarning, match="of an evaluation in runner 0 .*fell over"):
            assert algo.evaluate(1)["num_episodes"] == 1


class Hangs(Told):
    def step(self, action: Any) -> Any:
        time.sleep(60)


@pytest.mark.fast_on_torch
def test_one_that_hangs_in_a_process_of_its_own_is_named(training_backend_name: str) -> None:
    config = told("ppo", training_backend_name).environment(lambda env_config: Hangs(), env_config={})
    config.env_runners(vectorization="async", env_step_timeout_s=1.0)
    with config.build() as algo, pytest.raises(EnvError, match=r"the vector .*TimeoutError.*env_step_timeout_s=1\)"):
        algo.train()


@pytest.mark.fast_on_torch
def test_several_agents(training_backend_name: str) -> None:
    config = told("ppo", training_backend_name).environment(lambda env_config: FallingSignals(), env_config={})
    config.multi_agent(policies=["speaker", "listener"])
    with config.build() as algo, pytest.raises(EnvError, match=r"step 3 of its episode: raised ValueError: the line"):
        algo.train()
    with config.environment(max_env_restarts=9).build() as algo, pytest.warns(RuntimeWarning, match="the line is dead"):
        assert algo.train()["env_runners"]["num_env_restarts_lifetime"] > 0


def test_the_setting_has_moved() -> None:
    with pytest.raises(ConfigError, match=r"It belongs to \.environment\(max_env_restarts=\.\.\.\)"):
        PPOConfig().env_runners(max_env_restarts=3)
    assert PPOConfig().max_env_restarts == 0


# ---- mistakes against the interface ----------------------------------------------------------------------------------


class FourThings(Told):
    def step(self, action: Any) -> Any:
        return super().step(action)[:4]


class NoInfo(Told):
    def reset(self, **options: Any) -> Any:
        return super().reset(**options)[0]


class NoSeed(Told):
    def reset(self) -> Any:
        return super().reset()


class OtherShape(Told):
    def step(self, action: Any) -> Any:
        return np.zeros(3, np.float32), *super().step(action)[1:]


class Text(Told):
    def step(self, action: Any) -> Any:
        return "zeros", *super().step(action)[1:]


FIVE = r"step\(\) must return \(observation, reward, terminated, truncated, info\)"
MISTAKES: dict[type, str] = {
    FourThings: rf"{FIVE}.*Of one `done` flag: terminated says",
    NoInfo: r"reset\(\) must return \(observation, info\).*Return `observation, \{\}`",
    NoSeed: r"reset\(\) must take a seed and options: def reset\(self, \*, seed=None, options=None\)",
    OtherShape: rf"observation must have the shape \(2,\), got shape \(3,\)|{FIVE}.*wrong shape",
    Text: rf"observation must be numbers of Box|{FIVE}",
}


#: Processes take seconds: in the short tier one mistake is made in them.
PLACES = [
    pytest.param(mistake, how, marks=[pytest.mark.slow] if how == "processes" and mistake is not FourThings else [])
    for mistake in MISTAKES
    for how in [*HOW, "gymnasium.make", "vector"]
]


@pytest.mark.parametrize(("mistake", "how"), PLACES)
@pytest.mark.fast_on_torch
def test_a_mistake_is_no_crash(training_backend_name: str, mistake: type, how: str, recwarn: Any) -> None:
    """However many restarts there may be: none is made, and the rule is said with the remedy."""
    env: Any = {
        "gymnasium.make": f"{mistake.__name__}-v0",
        "vector": lambda env_config: gym.vector.SyncVectorEnv([mistake] * 2),
    }.get(how, lambda env_config: mistake())
    gym.registry.pop(f"{mistake.__name__}-v0", None)
    gym.register(f"{mistake.__name__}-v0", entry_point=mistake, max_episode_steps=9)
    config = told("ppo", training_backend_name).environment(env, env_config={}, max_env_restarts=5)
    config.env_runners(**HOW.get(how, {}))
    with pytest.raises(EnvOutputError, match=rf"environment 0 of runner [01] .*({MISTAKES[mistake]})"):
        _train(config)
    assert not [one for one in recwarn if "max_env_restarts" in str(one.message)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:gymnasium", "ignore::UserWarning:gymnasium")
def _train(config: Any) -> None:
    with config.build() as algo:
        algo.train()


@pytest.mark.parametrize("words", ["own affair", "unexpected keyword argument"])
@pytest.mark.fast_on_torch
def test_an_exception_of_the_environments_own_is_none(training_backend_name: str, words: str) -> None:
    class Own(Told):
        def step(self, action: Any) -> Any:
            raise TypeError(words)

    config = told("ppo", training_backend_name).environment(lambda env_config: Own(), env_config={})
    with config.build() as algo, pytest.raises(EnvError, match=words) as caught:
        algo.train()
    assert type(caught.value) is EnvError
