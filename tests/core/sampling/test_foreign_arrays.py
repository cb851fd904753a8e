"""Arrays of other libraries, without one: what numpy answers in stays as it is, and what comes later is still seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from learner_core.config.foreign_arrays import ArrayForm, as_numpy, is_foreign
from learner_core.config.info_masks import with_info_masks
from learner_core.sampling.multi_agent_env_runner import MultiAgentEnvRunner

from support.parallel_envs import Crossing, specs_for
from support.sampling import runner_config
from support.told import Told
from support.turn_envs import Duel
from support.vector_envs import Tensor, fake_library

PARTS = {"a": (0, 4, "truncated"), "b": (0, 2, "terminated")}


@pytest.fixture(autouse=True)
def _library(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_library(monkeypatch)


def test_numpys_and_plain_values_are_none() -> None:
    for value in (np.zeros(2), np.float32(1), 1, 2.0, True, None, "text", [1], {"a": 1}, object()):
        assert not is_foreign(value)
    assert is_foreign(Tensor([1.0]))


class Spaced:
    """An array of the array API, whose library knows no devices."""

    def __init__(self, values: Any) -> None:
        self.values, self.device = np.asarray(values), "here"

    def __dlpack__(self, **options: Any) -> Any:
        return self.values.__dlpack__(**options)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self.values, dtype)

    def __array_namespace__(self) -> Any:
        class Library:
            asarray = Spaced

        return Library


def test_a_library_of_the_array_api() -> None:
    form = ArrayForm()
    assert form.read((Spaced([1, 2]), 0.5))[0].tolist() == [1, 2]
    assert isinstance(form.give(np.ones(2)), Spaced)


def test_steps_may_answer_otherwise_than_resets() -> None:
    form = ArrayForm()
    assert form.read(np.zeros(2)).tolist() == [0, 0]
    assert form.read((np.zeros(2), Tensor(1.5), False, False))[1] == 1.5
    assert isinstance(form.give(np.ones(2)), Tensor) and form.give(np.ones(2)).device == "chip"


def test_a_mask_in_info_may_be_one() -> None:
    class Masked(Told):
        def reset(self, **options: Any) -> Any:
            return super().reset(**options)[0], {"action_mask": Tensor([0, 1])}

        def step(self, action: Any) -> Any:
            return *super().step(action)[:4], {"action_mask": Tensor([0, 1])}

    env = with_info_masks(Masked())
    assert env.reset()[0]["action_mask"].tolist() == env.step(1)[0]["action_mask"].tolist() == [0, 1]


def test_an_array_that_numpy_cannot_take_is_left_for_who_reads_it() -> None:
    class Odd(Tensor):
        __module__ = "fake_tensors.core"

        def cpu(self) -> Any:
            return self

    odd = Odd([1.0])
    assert is_foreign(odd) and as_numpy({"a": odd})["a"] is odd


def _tensors(values: Any) -> Any:
    return {key: Tensor(value) for key, value in values.items()}


class TensorCrossing(Crossing):
    """Agents of a parallel environment in tensors."""

    def reset(self, **options: Any) -> Any:
        obs, infos = super().reset(**options)
        return _tensors(obs), infos

    def step(self, actions: Any) -> Any:
        assert all(isinstance(action, Tensor) for action in actions.values())
        obs, *rest, infos = super().step(actions)
        return _tensors(obs), *(_tensors(part) for part in rest), infos


class TensorDuel(Duel):
    """Agents that take turns, in tensors."""

    def last(self, **options: Any) -> Any:
        obs, reward, terminated, truncated, info = super().last(**options)
        shown = None if obs is None else Tensor(obs)
        return shown, Tensor(reward), Tensor(bool(terminated)), Tensor(bool(truncated)), info

    def step(self, action: Any) -> None:
        assert action is None or isinstance(action, Tensor)
        super().step(None if action is None else action.values)


@pytest.mark.parametrize(("plain", "tensors"), [(lambda: Crossing(PARTS), lambda: TensorCrossing(PARTS)),
                                                (lambda: Duel(length=9), lambda: TensorDuel(length=9))])  # fmt: skip
def test_several_agents_in_tensors(plain: Any, tensors: Any) -> None:
    found = []
    for make in (plain, tensors):
        specs = specs_for(plain(), {"m": "a"})
        config = runner_config(lambda env_config, make=make: make(), 2)
        runner = MultiAgentEnvRunner(config, specs, seed=3)
        found.append(runner.sample(12, random_actions=True)["m"].columns)
    for name in ("obs", "rewards", "terminateds", "truncateds", "actions"):
        assert np.array_equal(found[0][name], found[1][name]), name
