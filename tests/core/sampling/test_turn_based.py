"""Turn-based games: an agent's row stays open until it acts again, and has all that it is paid meanwhile."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from learner_core.algorithm.on_policy import with_advantages
from learner_core.config.environments import make_env
from learner_core.errors import EnvError, StateError
from learner_core.learning.rl_module import RLModuleSpec
from learner_core.sampling.multi_agent_env_runner import MultiAgentEnvRunner

from support.agents import bytes_of, copied, rows_of
from support.parallel_envs import Signals, make_agents_runner
from support.sampling import LinearModule, runner_config, same_tree
from support.turn_envs import Duel, make_duel, make_masked_duel

SIDES = {"a": "a", "b": "b"}
#: (place, obs, reward, next_obs, terminated, truncated) of the first two episodes of three turns.
ROWS_A = [
    (0, [0, 0, 0], 20, [0, 2, 0], False, False),  # 0 for its own turn, 20 for b's
    (1, [0, 2, 0], 100, [0, 3, 0], True, False),
    (3, [1, 0, 0], 20, [1, 2, 0], False, False),
    (4, [1, 2, 0], 100, [1, 3, 0], True, False),
]
ROWS_B = [
    (1, [0, 1, 1], -70, [0, 3, 1], True, False),  # lost by a's last turn: 30 - 100. The 10 before its turn are nowhere
    (4, [1, 1, 1], -70, [1, 3, 1], True, False),
]


def duel(modules: dict[str, str] = SIDES, num_envs: int = 1, env: Any = make_duel, **settings: Any) -> Any:
    return make_agents_runner(env, modules, num_envs, **settings)


def masked_runner(config: Any, env: Any, agent: str) -> Any:
    """One module that plays everybody, whose observations have masks."""
    spaces_of = {"observation_space": env.observation_space(agent), "action_space": env.action_space(agent)}
    spec = RLModuleSpec(LinearModule).filled(module_class=None, model={}, **spaces_of)
    runner = MultiAgentEnvRunner(config, {"m": spec}, seed=1)
    runner.set_weights({"m": runner.players["m"].policy.module.init(np.random.default_rng(0))})
    return runner


def without_place(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [row[1:] for row in rows]


@pytest.mark.parametrize("num_envs", [1, 2])
def test_rows_of_players_that_take_turns(num_envs: int) -> None:
    rollouts = duel(num_envs=num_envs).sample(6)
    for copy in range(num_envs):
        assert rows_of(rollouts["a"], copy) == ROWS_A
        assert rows_of(rollouts["b"], copy) == ROWS_B


def test_one_module_plays_both_sides() -> None:
    rollout = duel({"m": "a"}).sample(6)["m"]
    assert rows_of(rollout, 0) == ROWS_A
    assert rows_of(rollout, 1) == ROWS_B
    assert rollout.num_env_steps == 6


def test_episodes_count_turns_and_all_that_was_paid() -> None:
    runner = duel()
    runner.sample(6)
    metrics = runner.metrics()
    assert [list(e[:2]) for e in metrics["episodes"]] == [[60, 3]] * 2  # 10 + 20 + 30 + 100 - 100
    assert [list(agent) for agent in metrics["episodes"][0].agents] == [["a", "a", 120, 2], ["b", "b", -60, 1]]
    assert metrics["num_env_steps_sampled_lifetime"] == metrics["num_agent_steps_sampled_lifetime"] == 6


@pytest.mark.parametrize("length", [1, 2, 4, 5, 7])
def test_fragments_of_any_length_have_the_same_rows(length: int) -> None:
    runner, found = duel(), {"a": [], "b": []}
    for _ in range(-(-30 // length)):
        for module_id, rollout in runner.sample(length).items():
            assert rollout.num_steps == length
            found[module_id] += without_place(rows_of(rollout, 0))
    whole = duel().sample(length * -(-30 // length))
    for module_id, rows in found.items():
        assert rows == without_place(rows_of(whole[module_id], 0))
        assert len(rows) >= 8


def test_no_turn_of_the_others_discounts_a_return() -> None:
    rollout = duel({"m": "a"}).sample(6)["m"]
    batch = with_advantages(rollout, SimpleNamespace(gamma=0.5, lambda_=1.0, use_critic=True))
    by_obs = {tuple(obs): float(target) for obs, target in zip(batch["obs"], batch["value_targets"], strict=True)}
    assert by_obs[0, 0, 0] == pytest.approx(20 + 0.5 * 100, rel=1e-5)
    assert by_obs[0, 2, 0] == pytest.approx(100, rel=1e-5)
    assert by_obs[0, 1, 1] == pytest.approx(-70, rel=1e-5)


def test_a_row_before_an_open_one_is_bootstrapped() -> None:
    """Five turns an episode; after three of them a's second row is open, and its first one ends in what a saw then."""
    runner = duel({"m": "a"}, env=lambda config: Duel(length=5))
    rollout = runner.sample(3)["m"]
    assert rows_of(rollout, 0) == [(0, [0, 0, 0], 20, [0, 2, 0], False, False)]
    assert rows_of(rollout, 1) == [(1, [0, 1, 1], 30, [0, 3, 1], False, False)]
    value = runner.players["m"].policy.values(np.array([[0, 2, 0]], np.float32))[0]
    assert rollout.bootstrap_values[0, 0] == pytest.approx(value, abs=1e-6)
    batch = with_advantages(rollout, SimpleNamespace(gamma=0.5, lambda_=1.0, use_critic=True))
    assert batch["value_targets"][0] == pytest.approx(20 + 0.5 * value, abs=1e-5)


@pytest.mark.parametrize("steps", range(1, 8))
def test_a_state_goes_on_with_open_rows(steps: int) -> None:
    runner, other = duel(num_envs=2), duel(num_envs=2)
    runner.sample(steps)
    state = copied(runner.get_state())
    assert state["env_state"] == "exact"
    other.set_state(state)
    for _ in range(2):
        left, right = runner.sample(3), other.sample(3)
        assert left.keys() == right.keys()
        for module_id in left:
            assert same_tree(left[module_id].columns, right[module_id].columns)
    assert bytes_of(runner.get_state()) == bytes_of(other.get_state())


def test_states_without_open_rows_are_of_before_and_load() -> None:
    runner, other = duel(), duel()
    runner.sample(3)  # an episode has ended: nobody waits
    state = copied(runner.get_state())
    assert state.pop("waiting") == {}
    for copy in state["game"]["copies"]:
        assert copy.pop("waiting") == []
    other.set_state(state)
    assert same_tree(runner.sample(3)["a"].columns, other.sample(3)["a"].columns)


@pytest.mark.parametrize("lane", [[0, "b"], [0, "x"], [1, "a"]])
def test_a_state_whose_open_rows_are_of_nobody_that_waits_is_refused(lane: list[Any]) -> None:
    runner = duel(num_envs=2)
    runner.sample(1)
    state = copied(runner.get_state())
    assert state["waiting"]["a"]["lanes"] == [[0, "a"], [1, "a"]]
    state["waiting"]["a"]["lanes"] = [lane, [1 - lane[0], "a"]]
    if lane == [1, "a"]:  # of a, too, but another module's there
        state["game"]["copies"][1]["agents"][0][1] = "b"
    before = bytes_of(runner.get_state())
    with pytest.raises(StateError, match=r"waiting/a/lanes: expected agents that wait in environment [01]"):
        runner.set_state(state)
    assert bytes_of(runner.get_state()) == before


def test_an_episode_that_is_given_up_takes_open_rows_along() -> None:
    memory: dict[str, Any] = {}
    runner = duel(env=lambda config: Duel(length=9, raises=(0, 4), memory=memory), max_env_restarts=1)
    first = runner.sample(3)  # a waits, its row of turn 3 is open
    assert len(rows_of(first["a"], 0)) == 1
    with pytest.warns(RuntimeWarning, match="the table fell over"):
        second = runner.sample(4)
    assert not second["b"].columns["valid"][0].any()  # b's turn 4 fell with the table
    assert [row[1] for row in rows_of(second["a"], 0)] == [[0, 0, 0]]  # of the new episode; turn 3 of the old is gone
    assert runner.metrics()["num_episodes_lost_lifetime"] == 1


def test_random_actions_and_the_policys_do_not_mix_in_a_fragment() -> None:
    runner = duel()
    runner.sample(1)
    columns = runner.sample(5, random_actions=True)["a"].columns
    assert "vf_preds" not in columns
    assert columns["rewards"][columns["valid"]].tolist() == [100, 20, 100][: int(columns["valid"].sum())]


@pytest.mark.parametrize("random_actions", [False, True])
def test_masks_of_infos(random_actions: bool) -> None:
    config = runner_config(make_masked_duel, 2, action_mask_in_info=True)
    runner = masked_runner(config, make_env(config), "a")
    columns = runner.sample(30, random_actions=random_actions)["m"].columns  # the environment refuses others
    clock = columns["obs"][..., 1]
    valid = columns["valid"]
    np.testing.assert_array_equal(columns["actions"][valid], 1 - clock[valid] % 2)


def test_players_whose_masks_allow_nothing_wait() -> None:
    """A parallel environment that is turn-based by its masks."""

    class Turns(Signals):
        def __init__(self) -> None:
            super().__init__(4)
            seen = spaces.Box(0, 9, (2,), np.float32)
            mask = spaces.Box(0, 1, (self.SIZE,), np.int8)
            space = spaces.Dict({"observation": seen, "action_mask": mask})
            self.observation_spaces = {"speaker": space, "listener": space}

        def _obs(self) -> dict[str, Any]:
            return {
                agent: {
                    "observation": np.array([self.clock, side], np.float32),
                    "action_mask": np.full(self.SIZE, self.clock % 2 == side, np.int8),
                }
                for side, agent in enumerate(("speaker", "listener"))
            }

        def step(self, actions: dict[str, Any]) -> Any:
            (acting,) = actions
            assert acting == ("speaker", "listener")[self.clock % 2]
            obs, rewards, *rest = super().step({"speaker": 0, "listener": 0, **actions})
            return obs, {agent: float(self.clock) for agent in rewards}, *rest

    config = runner_config(lambda config: Turns(), 1)
    runner = masked_runner(config, Turns(), "speaker")
    rollout = runner.sample(4)["m"]
    assert rows_of(rollout, 0) == [
        (0, [0, 0], 1 + 2, [2, 0], False, False),
        (1, [2, 0], 3 + 4, [4, 0], False, True),
    ]
    assert rows_of(rollout, 1) == [
        (1, [1, 1], 2 + 3, [3, 1], False, False),
        (2, [3, 1], 4, [4, 1], False, True),
    ]


def test_an_environment_that_goes_on_with_an_agent_that_is_done_is_refused() -> None:
    class Stubborn(Duel):
        def _was_dead_step(self, action: Any) -> None:
            """It stays."""

    with pytest.raises(EnvError, match="agent 'b' is chosen again and again, though its part is over"):
        duel(env=lambda config: Stubborn()).sample(4)


def test_rewards_are_numbers() -> None:
    class Generous(Duel):
        def last(self, observe: bool = True) -> Any:
            obs, reward, *rest = super().last(observe)
            return obs, (float("inf") if self.clock == 2 else reward), *rest

    with pytest.raises(EnvError, match="agent 'a': gave a reward that is not finite"):
        duel(env=lambda config: Generous()).sample(4)
