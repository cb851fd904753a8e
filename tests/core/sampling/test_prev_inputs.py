"""A memory that is told the action and the reward of the step before: what sampling shows it and what training does."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from learner_core import numpy_xp
from learner_core.errors import ConfigError
from learner_core.learning.actor_critic import ActorCriticModule
from learner_core.learning.rl_module import RLModule, RLModuleSpec
from learner_core.maths.action_inputs import ActionInputs
from learner_core.sampling.env_runner import EnvRunner
from learner_core.sampling.multi_agent_env_runner import MultiAgentEnvRunner
from learner_core.sampling.sequences import rollout_to_sequences

from support.parallel_envs import make_signals
from support.sampling import runner_config, same_tree
from support.turn_envs import make_duel

MODES = ["own", "NextStep", "SameStep", "Disabled"]
ACTIONS: dict[str, Any] = {
    "discrete": spaces.Discrete(3, start=2),
    "box": spaces.Box(np.array([0, -4], np.float32), np.array([1, 4], np.float32)),
    "unbounded": spaces.Box(-np.inf, np.inf, (2,), np.float32),
    "several": spaces.MultiDiscrete([2, 3], start=[1, 0]),
    "bits": spaces.MultiBinary(2),
}


class Paying(gym.Env[Any, Any]):
    """Pays another amount each step; episodes of four steps, every second one cut off instead of ended."""

    def __init__(self, actions: str = "discrete") -> None:
        self.observation_space = spaces.Box(-9, 9, (2,), np.float32)
        self.action_space = ACTIONS[actions]
        self.episode = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.clock, self.episode = 0, self.episode + 1
        return self._obs(), {}

    def _obs(self) -> Any:
        return np.array([self.np_random.normal(), self.clock], np.float32)

    def step(self, action: Any) -> Any:
        self.clock += 1
        done, cut = self.clock == 4, self.episode % 2 == 0
        reward = float(np.sum(action)) + 0.1 * self.clock
        return self._obs(), reward, done and not cut, done and cut, {}


def env_of(mode: str, actions: str) -> Any:
    if mode == "own":
        return lambda config: Paying(actions)
    return lambda config: gym.vector.SyncVectorEnv([lambda: Paying(actions)] * 2, autoreset_mode=mode)


TOLD = {"hidden": [4], "recurrent": "lstm", "recurrent_size": 3, "use_prev_action": True, "use_prev_reward": True}


def make_runner(env: Any, model: dict[str, Any] | None = None, **settings: Any) -> EnvRunner:
    spec = RLModuleSpec(ActorCriticModule, model={**TOLD, **(model or {})})
    runner = EnvRunner(runner_config(env, 2, **settings), spec, seed=7)
    module = runner.policy.module  # type: ignore[attr-defined]
    runner.set_weights({name: 3.0 * value for name, value in module.init(np.random.default_rng(1)).items()})
    return runner


def said(runner: Any, batch: dict[str, Any]) -> dict[str, Any]:
    policy: Any = runner.policy
    answer: dict[str, Any] = policy.module.forward_train(policy._params, batch)
    return answer


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("actions", ACTIONS)
def test_what_is_told_is_what_was_done(mode: str, actions: str) -> None:
    """At every step; zeros in an episode's first, and over the border of two fragments."""
    runner = make_runner(env_of(mode, actions), normalize_rewards=mode == "own")
    first, second = runner.sample(7), runner.sample(6)
    encode = ActionInputs(ACTIONS[actions]).encode
    done: Any = None
    for rollout in (first, second):
        columns = rollout.columns
        for t in range(rollout.num_steps):
            told = {leaf: columns["state_in"][leaf][t] for leaf in ("prev_action", "prev_reward")}
            for lane in range(2):
                if columns["resets"][t, lane]:
                    assert not told["prev_action"][lane].any() and not told["prev_reward"][lane].any()
                    continue
                np.testing.assert_array_equal(told["prev_action"][lane], done[0][lane])
                assert told["prev_reward"][lane] == done[1][lane]
            done = (encode(numpy_xp, columns["actions"][t], np.float32), columns["rewards"][t])
    assert (np.abs(done[0]) <= 1).all() or actions in ("box", "unbounded")
    runner.close()


def test_how_actions_are_encoded() -> None:
    def encoded(actions: str, *rows: Any) -> list[Any]:
        got: list[Any] = ActionInputs(ACTIONS[actions]).encode(numpy_xp, np.array(rows), np.float32).tolist()
        return got

    assert encoded("discrete", 2, 4) == [[1, 0, 0], [0, 0, 1]]
    assert encoded("several", [1, 2], [2, 0]) == [[1, 0, 0, 0, 1], [0, 1, 1, 0, 0]]
    assert encoded("bits", [1, 0]) == [[1, 0]]
    assert encoded("box", [0.5, 0.0], [1.0, -4.0], [2.0, 8.0]) == [[0, 0], [1, -1], [3, 2]]  # not clipped
    assert encoded("unbounded", [5.0, -7.0]) == [[5, -7]]
    square = spaces.Box(0, 2, (2, 2), np.float32)
    assert ActionInputs(square).encode(numpy_xp, np.ones((3, 5, 2, 2)), np.float32).shape == (3, 5, 4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("length", [13, 4, 3])
@pytest.mark.parametrize("shared", [True, False])
def test_training_computes_what_sampling_computed(mode: str, length: int, shared: bool) -> None:
    """Of every step that counts, in sequences shorter than the fragment, longer than an episode, and over its ends."""
    runner = make_runner(env_of(mode, "discrete"), {"vf_share_layers": shared}, normalize_rewards=mode == "own")
    runner.sample(3)  # so that the fragment begins in the middle of an episode
    batch = rollout_to_sequences(runner.sample(13), length, burn_in=1 if length == 4 else 0)
    inputs = {name: batch[name] for name in ("obs", "actions", "rewards", "resets", "state_in")}
    answer = said(runner, inputs)
    counts = batch["loss_mask"] > 0
    assert counts.sum() >= 18
    for name in ("action_dist_inputs", "vf_preds"):
        np.testing.assert_allclose(answer[name][counts], batch[name][counts], rtol=1e-4, atol=1e-5)
    # Neither is told for nothing.
    for name in ("actions", "rewards"):
        other = said(runner, {**inputs, name: batch[name] * 0 + (2 if name == "actions" else 0)})
        assert np.abs(other["vf_preds"] - answer["vf_preds"])[counts].max() > 1e-3
    runner.close()


@pytest.mark.parametrize("mode", MODES)
def test_a_cut_episode_is_bootstrapped_knowing_its_last_step(mode: str) -> None:
    """The value of what followed: one more step, told the last action and reward, also where the lane began anew."""
    runner = make_runner(env_of(mode, "box"))
    rollout = runner.sample(14)
    columns, checked = rollout.columns, 0
    assert rollout.bootstrap_values is not None
    for lane in range(2):
        for t in np.flatnonzero(columns["valid"][:, lane]):
            expected = rollout.bootstrap_values[t, lane]
            if columns["terminateds"][t, lane]:
                assert expected == 0.0
                continue
            begin = t - int(columns["obs"][t, lane, 1])
            if begin < 0:
                continue
            steps = slice(begin, t + 1)

            def more(name: str, steps: slice = steps, lane: int = lane) -> np.ndarray:
                rows: np.ndarray = columns[name][steps, lane]
                return np.concatenate([rows, rows[-1:]])[None]

            obs = np.concatenate([columns["obs"][steps, lane], columns["next_obs"][t : t + 1, lane]])[None]
            zeros = {
                leaf: np.zeros((1, *leaf_in.shape[2:]), np.float32) for leaf, leaf_in in columns["state_in"].items()
            }
            batch = {
                "obs": obs, "actions": more("actions"), "rewards": more("rewards"), "state_in": zeros,
                "resets": np.zeros(obs.shape[:2], bool),
            }  # fmt: skip
            assert expected == pytest.approx(said(runner, batch)["vf_preds"][0, -1], rel=1e-4, abs=1e-5)
            checked += 1
    assert checked >= 10
    runner.close()


def test_the_step_after_a_sequence_is_told_its_last_step() -> None:
    """As IMPALA asks for the value behind a sequence: one step, of which no action is known."""
    runner = make_runner(env_of("own", "discrete"))
    runner.sample(3)
    batch = rollout_to_sequences(runner.sample(6), 6)
    whole = said(runner, batch)
    head = {k: v[:, :4] if k != "state_in" else v for k, v in batch.items()}
    step = {"obs": batch["obs"][:, 4:5], "state_in": said(runner, head)["state_out"], "resets": batch["resets"][:, 4:5]}
    np.testing.assert_allclose(said(runner, step)["vf_preds"], whole["vf_preds"][:, 4:5], rtol=1e-5)


def test_a_runner_goes_on_bit_for_bit_in_the_middle_of_episodes() -> None:
    runner = make_runner(lambda config: Paying(), normalize_rewards=True)
    runner.sample(6)
    state = runner.get_state()
    assert np.abs(state["memory"]["state"]["prev_reward"]).max() > 0
    expected = [runner.sample(4), runner.sample(3)]
    again = make_runner(lambda config: Paying(), normalize_rewards=True)
    assert again.set_state(state) == "exact"
    for rollout in expected:
        assert same_tree(rollout.columns, again.sample(rollout.num_steps).columns)


class Next(RLModule):
    """Does the action after the one that it did before, the first one in the beginning."""

    def init(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"shift": np.roll(np.eye(3, dtype=np.float32), 1, axis=0)}

    def initial_state(self) -> dict[str, np.ndarray]:
        return {"prev_action": np.zeros(3, np.float32)}

    def forward_train(self, params: Any, batch: Any) -> dict[str, Any]:
        state = batch["state_in"]
        return {"action_dist_inputs": self.xp.linear(state["prev_action"], params["shift"]), "state_out": state}


def test_an_evaluation_tells_it_too() -> None:
    """Actions 2, 3, 4, 2, and 0.1 + ... + 0.4: whether it is trained or evaluated."""
    runner = EnvRunner(runner_config(lambda config: Paying(), 2), RLModuleSpec(Next), seed=0)
    runner.set_weights(runner.policy.module.init(np.random.default_rng(0)))  # type: ignore[attr-defined]
    rollout = runner.sample(8, explore=False)
    assert rollout.columns["actions"][:, 0].tolist() == [2, 3, 4, 2, 2, 3, 4, 2]
    for episodes in (rollout.episodes, runner.evaluate(4)):
        assert [episode.episode_return for episode in episodes] == pytest.approx([12.0] * 4)


# ---- several agents --------------------------------------------------------------------------------------------------


def agents_runner(make: Any, **env: Any) -> Any:
    made = make(env)
    agents = dict.fromkeys(made.possible_agents, made)
    model = {**TOLD, "vf_share_layers": True}
    specs = {
        agent: RLModuleSpec(ActorCriticModule, made.observation_space(agent), made.action_space(agent), model)
        for agent in agents
    }
    config = runner_config(make, 2, env_config=env)
    runner = MultiAgentEnvRunner(config, specs, seed=3)
    rng = np.random.default_rng(0)
    runner.set_weights(
        {mid: {n: 2 * v for n, v in spec.build(numpy_xp).init(rng).items()} for mid, spec in specs.items()}
    )
    return runner


@pytest.mark.parametrize("make", [make_signals, make_duel])
def test_agents_are_told_what_they_did_and_were_paid(make: Any) -> None:
    """An agent that waits is told all that it was paid since it acted; over fragments, and after a resume."""
    runner = agents_runner(make, length=5)
    again = agents_runner(make, length=5)
    open_rows: dict[Any, Any] = {}
    checked = paid = followed = 0
    for number in range(4):
        if number == 2:
            assert again.set_state(runner.get_state()) == "exact"
        for module_id, rollout in runner.sample(7).items():
            columns, player = rollout.columns, runner.players[module_id]
            inputs = {name: columns[name].swapaxes(0, 1) for name in ("obs", "actions", "rewards", "resets")} | {
                "state_in": {leaf: value[0] for leaf, value in columns["state_in"].items()}
            }
            answer = player.policy.module.forward_train(player.policy._params, inputs)
            valid = columns["valid"].swapaxes(0, 1)
            for name in ("action_dist_inputs", "vf_preds"):
                np.testing.assert_allclose(
                    answer[name][valid], columns[name].swapaxes(0, 1)[valid], rtol=1e-4, atol=1e-5
                )
            encode = ActionInputs(player.action_space).encode
            for lane in range(rollout.num_envs):
                for t in range(1, rollout.num_steps):
                    if not columns["valid"][t - 1 : t + 1, lane].all() or columns["resets"][t, lane]:
                        continue
                    told = {leaf: columns["state_in"][leaf][t, lane] for leaf in ("prev_action", "prev_reward")}
                    done = encode(numpy_xp, columns["actions"][t - 1 : t, lane], np.float32)[0]
                    np.testing.assert_array_equal(told["prev_action"], done)
                    assert told["prev_reward"][0] == columns["rewards"][t - 1, lane]
                    checked, paid = checked + 1, paid + bool(told["prev_reward"][0])
            followed += _check_what_follows(player, rollout)
            if number >= 2:
                open_rows.setdefault(number, {})[module_id] = rollout
    assert checked > 20 and paid > 5 and (make is make_duel or followed > 5)
    for number in (2, 3):
        got = again.sample(7)
        assert got.keys() == open_rows[number].keys()
        for module_id, rollout in open_rows[number].items():
            assert same_tree(rollout.columns, got[module_id].columns)
            np.testing.assert_array_equal(rollout.bootstrap_values, got[module_id].bootstrap_values)


def _check_what_follows(player: Any, rollout: Any) -> int:
    """The value behind a fragment is of an agent that knows its last action and what it was paid for it."""
    columns, checked = rollout.columns, 0
    for lane in np.flatnonzero(columns["valid"].all(0) & ~(columns["terminateds"] | columns["truncateds"])[-1]):

        def more(name: str, last: Any, lane: int = lane) -> np.ndarray:
            return np.concatenate([columns[name][:, lane], last])[None]

        batch = {
            "obs": more("obs", columns["next_obs"][-1:, lane]),
            "resets": more("resets", [False]),
            **{name: more(name, columns[name][-1:, lane]) for name in ("actions", "rewards")},
            "state_in": {leaf: value[:1, lane] for leaf, value in columns["state_in"].items()},
        }
        values = player.policy.module.forward_train(player.policy._params, batch)["vf_preds"]
        assert rollout.bootstrap_values[-1, lane] == pytest.approx(values[0, -1], rel=1e-4, abs=1e-5)
        checked += 1
    return checked


# ---- modules of a user's own -----------------------------------------------------------------------------------------


class Echo(RLModule):
    """A user's own module that is told: its state's leaves have the names."""

    size = 3

    def init(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"w": np.zeros((3, self.size), np.float32)}

    def initial_state(self) -> dict[str, np.ndarray]:
        return {"prev_action": np.zeros(self.size, np.float32)}

    def forward_train(self, params: Any, batch: Any) -> dict[str, Any]:
        told = batch["state_in"]["prev_action"]
        return {"action_dist_inputs": told * 9, "state_out": {"prev_action": told}}


def test_a_users_own_module_is_told() -> None:
    runner = EnvRunner(runner_config(lambda config: Paying(), 2), RLModuleSpec(Echo), seed=0)
    runner.set_weights({"w": np.zeros((3, 3), np.float32)})
    columns = runner.sample(4).columns
    assert columns["state_in"]["prev_action"][1].argmax(-1).tolist() == (columns["actions"][0] - 2).tolist()
    with pytest.raises(ConfigError, match=r"'prev_action' is what the step before was, of shape \[3\]; got \[4\]"):
        EnvRunner(runner_config(lambda config: Paying(), 2), RLModuleSpec(type("Other", (Echo,), {"size": 4})), seed=0)
