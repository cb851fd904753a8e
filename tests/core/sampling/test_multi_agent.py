"""Several agents: what a runner records of each, who plays whom, evaluation, normalisation, masks and memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from learner_core.config.agents import AgentMapping
from learner_core.errors import ConfigError, EnvError
from learner_core.learning.rl_module import RLModuleSpec
from learner_core.sampling.multi_agent_env_runner import MultiAgentEnvRunner
from learner_core.sampling.rollout import per_module

from support.agents import MODULES, copied, crossing, rows_of, who
from support.parallel_envs import PARTS, Crossing, Signals, make_agents_runner, make_crossing, make_signals
from support.sampling import LinearModule, runner_config, same_tree

# ---- what is recorded ------------------------------------------------------------------------------------------------


def test_each_agent_has_its_lane_while_it_is_there() -> None:
    rollouts = crossing().sample(6)
    m, n = rollouts["m"], rollouts["n"]
    assert (m.num_envs, n.num_envs) == (4, 2)  # a and c, and b, in each of two copies
    a, c, b = rows_of(m, 0), rows_of(m, 1), rows_of(n, 0)
    assert a == [
        (0, [0, 0, 0], 1, [0, 1, 0], False, False),
        (1, [0, 1, 0], 2, [0, 2, 0], False, False),
        (2, [0, 2, 0], 3, [0, 3, 0], False, False),
        (3, [0, 3, 0], 4, [0, 4, 0], False, True),  # truncated with the final observation, then a new episode
        (4, [1, 0, 0], 11, [1, 1, 0], False, False),
        (5, [1, 1, 0], 12, [1, 2, 0], False, False),
    ]
    assert c == [
        (1, [0, 1, 2], 202, [0, 2, 2], False, False),  # came late
        (2, [0, 2, 2], 203, [0, 2, 2], False, True),  # gone without a word: truncated where it was last
        (5, [1, 1, 2], 212, [1, 2, 2], False, False),
    ]
    assert b == [
        (0, [0, 0, 1], 101, [0, 1, 1], False, False),
        (1, [0, 1, 1], 102, [0, 2, 1], True, False),  # left by itself
        (4, [1, 0, 1], 111, [1, 1, 1], False, False),
        (5, [1, 1, 1], 112, [1, 2, 1], True, False),
    ]
    assert rows_of(m, 2) == a  # the other copy
    assert len(m.rows()["rewards"]) == m.num_env_steps == 18


def test_values_are_bootstrapped_where_a_part_is_cut_and_not_where_it_ended() -> None:
    runner = crossing()
    rollouts = runner.sample(6)
    for module_id, rollout in rollouts.items():
        values = runner.players[module_id].policy.values
        columns, bootstrap = rollout.columns, rollout.bootstrap_values
        assert bootstrap is not None
        valid = columns["valid"]
        expected = np.where(columns["terminateds"], 0, values(columns["next_obs"].reshape(-1, 3)).reshape(valid.shape))
        np.testing.assert_allclose(bootstrap[valid], expected[valid], atol=1e-6)
    assert (bootstrap[valid] == 0).any() and (rollouts["m"].bootstrap_values[rollouts["m"].columns["valid"]] != 0).all()


def test_episodes_say_what_every_agent_got() -> None:
    runner = crossing()
    rollouts = runner.sample(6)
    metrics = runner.metrics()
    assert [list(e[:2]) for e in metrics["episodes"]] == [[1 + 2 + 3 + 4 + 101 + 102 + 202 + 203, 4]] * 2
    assert [list(a) for a in metrics["episodes"][0].agents] == [
        ["a", "m", 10, 4],
        ["b", "n", 203, 2],
        ["c", "m", 405, 2],
    ]
    assert [e.episode_return for e in rollouts["n"].episodes] == [203, 203]
    assert metrics["num_env_steps_sampled_lifetime"] == 12
    assert metrics["num_agent_steps_sampled_lifetime"] == 26
    assert type(metrics["episodes"][0]).from_plain(metrics["episodes"][0].to_plain()) == metrics["episodes"][0]


def test_fragments_of_any_length_are_the_same_experience() -> None:
    whole, pieces = crossing(), crossing()
    together = whole.sample(8)
    cut = [pieces.sample(3), pieces.sample(5)]
    for module_id, rollout in together.items():
        rows = [part[module_id].rows() for part in cut]
        for name, column in rollout.rows().items():
            assert np.array_equal(column, np.concatenate([part[name] for part in rows])), (module_id, name)


def test_a_module_answers_all_its_agents_in_all_copies_at_once() -> None:
    runner = crossing(3)
    calls: list[int] = []
    policy = runner.players["m"].policy
    ask = policy.compute_actions
    policy.compute_actions = lambda obs, **more: calls.append(len(obs)) or ask(obs, **more)
    runner.sample(4)
    assert calls == [3, 6, 6, 3]


def test_noise_is_an_agents_own_whoever_else_is_there() -> None:
    def alone(env_config: dict[str, Any]) -> Crossing:
        return Crossing({"a": PARTS["a"]})

    both = crossing().sample(6)["m"]
    one = make_agents_runner(alone, {"m": "a"}).sample(6)["m"]
    assert np.array_equal(one.columns["actions"][:, 0], both.columns["actions"][:, 0])
    assert both.columns["actions"][:, 0].std() > 0


def test_agents_of_different_spaces() -> None:
    runner = make_agents_runner(make_signals, {"speaker": "speaker", "listener": "listener"})
    rollouts = runner.sample(12)
    assert rollouts["speaker"].columns["obs"].shape == (12, 2)
    assert rollouts["listener"].columns["obs"].shape == (12, 2, 4)
    random = runner.sample(12, random_actions=True)
    assert "action_logp" not in random["speaker"].columns
    assert per_module(random).keys() == {"speaker", "listener"}
    assert list(per_module(random["speaker"])) == ["default_policy"]


# ---- who plays whom --------------------------------------------------------------------------------------------------


def test_the_mapping_is_asked_once_per_agent_and_episode() -> None:
    asked: list[tuple[str, int]] = []

    def mapping(agent: str, episode: int) -> str:
        asked.append((agent, episode))
        return "m" if episode % 2 else "n"

    runner = make_agents_runner(make_crossing, {"m": "a", "n": "a"}, 1, policy_mapping_fn=mapping)
    rollouts = runner.sample(8)
    # Two episodes and the beginning of a third; c comes late in each.
    assert asked == [("a", 0), ("b", 0), ("c", 0), ("a", 1), ("b", 1), ("c", 1), ("a", 2), ("b", 2)]
    assert rollouts["n"].columns["valid"][:4, 0].all() and not rollouts["n"].columns["valid"][4:].any()
    assert rollouts["m"].columns["valid"][4:, 0].all() and not rollouts["m"].columns["valid"][:4].any()


def test_episode_numbers_are_never_used_twice() -> None:
    numbers: list[int] = []

    def mapping(agent: str, episode: int) -> str:
        if agent == "a":
            numbers.append(episode)
        return "m"

    for worker in (1, 2):
        runner = make_agents_runner(
            make_crossing, {"m": "a"}, 2, policy_mapping_fn=mapping, worker_index=worker, num_env_runners=2
        )
        runner.sample(13)
    assert len(numbers) == len(set(numbers)) == 16


def test_without_a_function_agents_map_to_their_own_module_or_the_only_one() -> None:
    assert AgentMapping(None, ["a", "b"]).module_of("b", 0) == "b"
    assert AgentMapping(None, ["shared"]).module_of("b", 0) == "shared"
    with pytest.raises(
        ConfigError, match=r"agent 'walker_3': there is no module of that name; set .*Did you mean .walker_1"
    ):
        AgentMapping(None, ["walker_1", "b"]).module_of("walker_3", 0)


def test_a_mapping_to_an_unknown_module_is_refused_at_once_or_where_it_happens() -> None:
    with pytest.raises(ConfigError, match=r"maps agent 'a' to 'q', which is no module\. There is: m, n"):
        make_agents_runner(make_crossing, MODULES, policy_mapping_fn=lambda agent: "q")

    def late(agent: str) -> str:
        return "q" if agent == "c" and not fine else "m"

    fine = False
    runner = make_agents_runner(make_crossing, {"m": "a"}, policy_mapping_fn=late)
    with pytest.raises(ConfigError, match="agent 'c' to 'q'"):
        runner.sample(6)
    fine = True  # nothing but the fragment is lost
    assert runner.sample(6)["m"].num_env_steps == 26
    with pytest.raises(ConfigError, match=r"policy_mapping_fn .* raised KeyError"):
        make_agents_runner(make_crossing, {"m": "a"}, policy_mapping_fn=lambda agent: {}[agent])


# ---- evaluation, normalisation, masks, memory ------------------------------------------------------------------------


def test_evaluation_leaves_training_alone() -> None:
    runner, other = crossing(), crossing()
    runner.sample(3)
    other.sample(3)
    first, second = runner.evaluate(3), runner.evaluate(3)
    assert [e.episode_length for e in first] == [4, 4, 4]
    assert [a.agent_id for a in first[0].agents] == ["a", "b", "c"]
    assert first[0].episode_return < second[0].episode_return  # Crossing counts its episodes
    after, expected = runner.sample(5), other.sample(5)
    assert all(same_tree(after[m].columns, expected[m].columns) for m in expected)
    assert runner.metrics()["num_episodes_lifetime"] == 4
    with pytest.raises(ConfigError, match="recorded or watched"):
        runner.evaluate(1, watch=lambda *args: None)


def test_observations_are_normalised_by_module_and_not_of_one_that_rests() -> None:
    runner = crossing(normalize_observations=True, policies_to_train=["m"])
    rollouts = runner.sample(40)
    moments = {m: runner.players[m].normalizer.moments["obs"] for m in ("m", "n")}
    assert moments["m"].count == rollouts["m"].num_env_steps and moments["n"].count == 0
    seen = np.concatenate([rows_of_obs(rollouts["m"])])
    assert abs(seen[:, 1].mean()) < 0.5 and seen.dtype == np.float32
    np.testing.assert_allclose(moments["m"].mean[2], np.mean([0, 0, 0, 0, 2, 2]), atol=0.1)
    told = runner.take_statistics()
    assert set(told) == {"observations/m/obs", "observations/n/obs"} and told["observations/m/obs"]["count"] > 0
    other = crossing(normalize_observations=True)
    other.set_statistics(told)
    assert same_tree(other.get_statistics()["observations/m/obs"], told["observations/m/obs"])


def rows_of_obs(rollout: Any) -> np.ndarray:
    return rollout.rows()["obs"]


class Masked(Signals):
    """Signals in which the number seen may not be said, and the listener may always say all."""

    def __init__(self) -> None:
        super().__init__()
        for agent in self.possible_agents:
            seen = self.observation_spaces[agent]
            mask = spaces.Box(0, 1, (self.SIZE,), np.int8)
            self.observation_spaces[agent] = spaces.Dict({"observation": seen, "action_mask": mask})

    def _obs(self) -> dict[str, Any]:
        masks = {"speaker": np.arange(self.SIZE) != self.number, "listener": np.ones(self.SIZE, bool)}
        shown = super()._obs()
        return {a: {"observation": shown[a], "action_mask": masks[a].astype(np.int8)} for a in shown}


@pytest.mark.parametrize("random_actions", [False, True])
def test_masked_actions_are_never_taken(random_actions: bool) -> None:
    specs = {
        agent: RLModuleSpec(LinearModule).filled(
            module_class=None,
            observation_space=Masked().observation_space(agent),
            action_space=Masked().action_space(agent),
            model={},
        )
        for agent in ("speaker", "listener")
    }

    config = runner_config(lambda config: Masked(), 2)
    runner = MultiAgentEnvRunner(config, specs, seed=1)
    runner.set_weights({m: p.policy.module.init(np.random.default_rng(0)) for m, p in runner.players.items()})
    columns = runner.sample(50, random_actions=random_actions)["speaker"].columns
    assert columns["obs"].shape == (50, 2)
    assert not (columns["actions"] == columns["obs"]).any()
    np.testing.assert_array_equal(columns["action_mask"], np.arange(3) != columns["obs"][..., np.newaxis])
    assert len(np.unique(columns["actions"])) == 3

    class Stuck(Masked):
        def _obs(self) -> dict[str, Any]:
            obs = super()._obs()
            for agent in obs:
                obs[agent]["action_mask"][:] = self.clock < 2
            return obs

    config.env = lambda config: Stuck()
    runner = MultiAgentEnvRunner(config, specs, seed=1)
    with pytest.raises(EnvError, match="allows agents 'listener', 'speaker' no action, and nobody else may act"):
        runner.sample(5, random_actions=True)


class Counter(LinearModule):
    """Its state counts its steps, and its value is that count plus one."""

    def initial_state(self) -> dict[str, np.ndarray]:
        return {"count": np.zeros(1, np.float32)}

    def forward_train(self, params: Any, batch: Any) -> dict[str, Any]:
        out = super().forward_train(params, batch)
        count = batch["state_in"]["count"] + 1
        return {**out, "vf_preds": count[..., 0], "state_out": {"count": count}}


def test_a_recurrent_modules_state_is_its_agents_own() -> None:
    env = make_crossing({})
    spec = RLModuleSpec(Counter, env.observation_space("a"), env.action_space("a"))

    def make() -> Any:
        config = runner_config(make_crossing, 1)
        runner = MultiAgentEnvRunner(config, {"m": spec}, seed=1)
        runner.set_weights({"m": runner.players["m"].policy.module.init(np.random.default_rng(0))})
        return runner

    runner = make()
    first = runner.sample(3)["m"].columns
    state = copied(runner.get_state())
    columns = runner.sample(3)["m"].columns
    assert first["state_in"]["count"][:, 0, 0].tolist() == [0, 1, 2]  # a
    assert first["state_in"]["count"][1:, 2, 0].tolist() == [0, 1]  # c, from its own first step
    assert first["resets"][:, 2].tolist() == [True, True, False]
    # The fourth step ends the episode; a and b then begin anew.
    assert columns["state_in"]["count"][:, 0, 0].tolist() == [3, 0, 1]
    assert columns["resets"][:, 0].tolist() == [False, True, False]
    other = make()
    other.set_state(state)
    again = other.sample(3)["m"].columns
    assert same_tree(again, columns)


class _ByItself(Crossing):
    """A user's class: it takes the ``env_config``."""

    def __init__(self, env_config: dict[str, Any]) -> None:
        super().__init__(PARTS)


def test_a_class_is_a_callable_that_makes_environments() -> None:
    """It has ``step`` and ``observation_space`` as its objects have, and is none of them."""
    rollouts = make_agents_runner(_ByItself, MODULES, policy_mapping_fn=who).sample(6)
    expected = crossing().sample(6)
    assert all(same_tree(rollouts[mid].columns, expected[mid].columns) for mid in ("m", "n"))
