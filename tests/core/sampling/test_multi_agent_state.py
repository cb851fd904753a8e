"""Several agents: a runner resumes exactly, and goes on while modules come and go."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from learner_core.errors import ConfigError, StateError

from support.agents import bytes_of, copied, crossing
from support.parallel_envs import PARTS, Crossing, make_agents_runner, make_crossing, specs_for
from support.sampling import same_tree


def test_a_state_goes_on_to_the_last_bit() -> None:
    runner = crossing(normalize_observations=True)
    runner.sample(5)
    state = copied(runner.get_state())
    assert state["env_state"] == "exact"
    expected = [runner.sample(7), runner.evaluate(2), runner.sample(3), runner.metrics()["episodes"]]
    other = crossing(normalize_observations=True, seed=99)
    other.sample(2)
    assert other.set_state(state) == "exact"
    got = [other.sample(7), other.evaluate(2), other.sample(3), other.metrics()["episodes"]]
    for left, right in ((got[0], expected[0]), (got[2], expected[2])):
        assert left.keys() == right.keys()
        assert all(same_tree(left[m].columns, right[m].columns) for m in right)
    assert got[3] == expected[3]
    for part in ("game", "lanes", "normalizers"):
        left, right = other.get_state()[part], runner.get_state()[part]
        assert bytes_of({"x": left}) == bytes_of({"x": right})


def test_environments_that_cannot_be_saved_begin_new_episodes_the_same_in_every_run() -> None:
    def opaque(env_config: dict[str, Any]) -> Crossing:
        env = Crossing(PARTS)
        env.window = object()  # nothing that could be saved
        return env

    runner = make_agents_runner(opaque, {"m": "a"})
    runner.sample(5)
    state = runner.get_state()
    assert state["env_state"] == "restarted" and "window" in runner.env_state_reason
    samples = []
    for _ in range(2):
        other = make_agents_runner(opaque, {"m": "a"})
        assert other.set_state(state) == "restarted"
        samples.append(other.sample(4)["m"].columns)
        assert other.metrics()["num_episodes_lost_lifetime"] == 2
        assert other.metrics()["num_env_steps_sampled_lifetime"] == 10 + 8
    assert same_tree(*samples)


def test_states_that_do_not_fit_change_nothing() -> None:
    runner = crossing()
    runner.sample(3)
    state = runner.get_state()
    before = bytes_of(runner.get_state())
    for wrong, words in (
        ({**state, "num_envs": 3}, "num_envs: expected 2, got 3"),
        ({**state, "normalizers": {"m": None}}, "normalizers/n: missing"),
        ({k: v for k, v in state.items() if k != "game"}, "game: missing"),
        ({**state, "normalizers": {"m": {}, "n": None}}, "normalisation"),
    ):
        with pytest.raises(StateError, match=words):
            runner.set_state(wrong)
    assert bytes_of(runner.get_state()) == before


def test_modules_come_and_go_while_episodes_go_on() -> None:

    runner = make_agents_runner(make_crossing, {"m": "a"}, 1, normalize_observations=True)
    runner.sample(2)
    specs = specs_for(make_crossing({}), {"m": "a", "old": "a"})
    weights = {mid: runner.players["m"].policy.module.init(np.random.default_rng(3)) for mid in specs}

    def mapping(agent: str) -> str:
        return "old" if agent == "a" else "m"

    def change(specs: Any, **settings: Any) -> None:
        config = SimpleNamespace(**{**vars(runner._config), "policies_to_train": None, **settings})
        runner.set_modules(config, specs, weights=weights, statistics_of={"old": "m"})

    count = runner.players["m"].normalizer.moments["obs"].count
    change(specs, policy_mapping_fn=mapping, policies_to_train=["m"])
    assert runner.players["old"].normalizer.moments["obs"].count == count
    assert runner.take_statistics()["observations/old/obs"]["count"] == 0  # the others have it already
    rollouts = runner.sample(4)
    assert rollouts["m"].columns["valid"][:2, 0].all()  # a stays with m until the episode ends
    assert rollouts["old"].columns["valid"][:, 0].tolist() == [False, False, True, True]
    assert runner.players["old"].normalizer.moments["obs"].count == count  # it is not trained
    runner.sample(1)
    with pytest.raises(ConfigError, match="'a' to 'old'"):
        change(specs_for(make_crossing({}), {"m": "a"}), policy_mapping_fn=mapping)
    change(specs_for(make_crossing({}), {"m": "a"}), policy_mapping_fn=None)
    assert list(runner.players) == ["m"]
    assert runner.sample(1)["m"].columns["valid"][0, 0]  # in the middle of its episode
    assert [a.module_id for a in runner.metrics()["episodes"][-1].agents] == ["m", "m", "m"]
