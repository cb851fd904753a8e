"""SAC learns the same whatever the unit of the action is, and actions stay in that unit wherever they are seen."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import learner_core as lc
from learner_core_algorithms import SACConfig

from support.learners import states_differ

MID = "default_policy"
STEPS = 120
slow = pytest.mark.slow
EXACT = [(-(2.0**-7), 2.0**-7), pytest.param(-128.0, 128.0, marks=slow)]
ROUNDED = [(-0.01, 0.01), pytest.param(-100.0, 100.0, marks=slow), pytest.param(3.0, 3.5, marks=slow)]


class Target(gym.Env[Any, Any]):
    """Pays -(y - 0.5)^2 for the action that is y on [-1, 1]; episodes of ten steps."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, low: float, high: float) -> None:
        self.action_space = gym.spaces.Box(low, high, (1,), np.float32)
        self.centre, self.half = 0.5 * (low + high), 0.5 * (high - low)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.clock = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.clock += 1
        y = (float(action[0]) - self.centre) / self.half
        return np.zeros(1, np.float32), -((y - 0.5) ** 2), False, self.clock == 10, {}


def make_target(env_config: dict[str, Any]) -> Target:
    return Target(env_config["low"], env_config["high"])


def config_for(backend: str, low: float, high: float, **training: Any) -> Any:
    rates = {"actor_lr": 3e-2, "critic_lr": 3e-2, "alpha_lr": 1e-2, "initial_alpha": 0.02}
    settings = {**rates, "gamma": 0.0, "train_batch_size": 32, "learning_starts": 40, **training}
    return (
        SACConfig()
        .environment(make_target, env_config={"low": low, "high": high})
        .framework(backend, compile=False)
        .training(**settings)
        .rl_module(model={"hidden": [16], "activation": "tanh"})
    )


def trained(backend: str, low: float, high: float, steps: int, **training: Any) -> dict[str, Any]:
    """What a run of one iteration comes to."""
    config = config_for(backend, low, high, timesteps_per_iteration=steps, **training)
    with config.build() as algo:
        metrics = algo.train()["learners"][MID]
        replay = algo.get_extra_state()["replay"]["storage"]["columns"]["actions"]
        evaluated = algo.evaluate(2)["episode_return_mean"]
        return {"metrics": metrics, "actions": replay, "return": evaluated, "state": algo.learner_group.get_state()}


@pytest.fixture(scope="module")
def unit_run(training_backend_name: str) -> dict[str, Any]:
    return trained(training_backend_name, -1.0, 1.0, STEPS)


@pytest.mark.fast_on_torch
def test_it_is_learned_in_the_unit_box(unit_run: dict[str, Any]) -> None:
    assert unit_run["return"] > -0.5  # the middle of the box is worth -2.5
    assert np.abs(unit_run["actions"]).max() <= 1.0


@pytest.mark.fast_on_torch
@pytest.mark.parametrize(("low", "high"), EXACT)
def test_powers_of_two_change_no_bit(
    training_backend_name: str, unit_run: dict[str, Any], low: float, high: float
) -> None:
    run = trained(training_backend_name, low, high, STEPS)
    assert not states_differ(run["state"], unit_run["state"])
    assert run["return"] == unit_run["return"]
    np.testing.assert_array_equal(run["actions"], high * unit_run["actions"])


@pytest.mark.fast_on_torch
@pytest.mark.parametrize(("low", "high"), ROUNDED)
def test_other_units_are_learned_as_well(
    training_backend_name: str, unit_run: dict[str, Any], low: float, high: float
) -> None:
    run = trained(training_backend_name, low, high, STEPS)
    assert run["return"] == pytest.approx(unit_run["return"], abs=1e-2)
    assert run["actions"].min() >= low - 1e-6 * abs(low)
    assert run["actions"].max() <= high + 1e-6 * abs(high)
    assert np.ptp(run["actions"]) > 0.5 * (high - low)
    for name in ("alpha", "entropy", "mean_q"):
        assert run["metrics"][name] == pytest.approx(unit_run["metrics"][name], abs=1e-2), name


@slow
def test_several_steps_by_priority_change_no_bit_either(training_backend_name: str) -> None:
    options = {"prioritized_replay": True, "n_step": 3, "gamma": 0.9}
    unit, small = (trained(training_backend_name, -s, s, STEPS, **options) for s in (1.0, 2.0**-7))
    assert not states_differ(small["state"], unit["state"])
    np.testing.assert_array_equal(small["actions"], 2.0**-7 * unit["actions"])


@slow
@pytest.mark.parametrize("s", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("options", [{}, {"prioritized_replay": True}], ids=["plain", "prioritized"])
def test_whole_runs_learn_it(training_backend_name: str, s: float, options: dict[str, Any]) -> None:
    """Single steps: of several, without a correction for the policy that took the later ones, the best action moves."""
    settings = {"actor_lr": 1e-3, "critic_lr": 1e-3, "alpha_lr": 1e-3, "initial_alpha": 1.0, "gamma": 0.9, **options}
    run = trained(training_backend_name, -s, s, 3000, **settings)
    assert run["return"] > -0.05
    assert run["metrics"]["alpha"] < 1.0


def test_a_checkpoint_of_the_other_meaning_is_refused_in_words(training_backend_name: str, tmp_path: Any) -> None:
    with config_for(training_backend_name, -2.0, 2.0).build() as algo:
        algo.save(tmp_path / "new")
        tree = lc.load_state(tmp_path / "new")
        assert tree["state"]["learner"]["schema"] == 2
        tree["state"]["learner"]["schema"] = 1
        lc.save_state(tmp_path / "old", tree)
        before = algo.get_state()
        with pytest.raises(lc.StateError, match=r"learner/schema: .*unit of Box\(-2.0, 2.0.*on \[-1, 1\] now.*'pi'"):
            algo.restore(tmp_path / "old")
        assert not states_differ(before["learner"], algo.get_state()["learner"])
        # What it says to do, does.
        policy = {n: a + 1.0 for n, a in before["learner"]["rl_module"][MID].items() if n.startswith("pi")}
        algo.learner_group.set_state({"rl_module": {MID: policy}}, strict=False)
        after = algo.learner_group.get_weights()[MID]
        assert all(np.array_equal(after[name], array) for name, array in policy.items())


def test_an_earlier_checkpoint_of_the_unit_box_still_means_the_same(training_backend_name: str, tmp_path: Any) -> None:
    with config_for(training_backend_name, -1.0, 1.0).build() as algo:
        algo.save(tmp_path / "new")
        tree = lc.load_state(tmp_path / "new")
        tree["state"]["learner"]["schema"] = 1
        lc.save_state(tmp_path / "old", tree)
        algo.restore(tmp_path / "old")
        assert algo.learner_group.get_state()["schema"] == 2
