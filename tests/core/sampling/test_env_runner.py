"""The runner: what it records, that it resumes exactly, what it refuses."""

from __future__ import annotations

import traceback
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from learner_core.errors import ConfigError, EnvError, StateError
from learner_core.sampling.episodes import Episode
from learner_core.state.format import decode, encode

from support.sampling import CountEnv, LinearModule, NestedEnv, SpacesEnv, make_runner, same_tree

MODES = ["own", "NextStep", "SameStep", "Disabled", "async"]


def count_env(mode: str, num_envs: int = 2) -> Any:
    """CountEnv in each way of stepping; ``own`` and ``async`` are made by the runner."""
    if mode in ("own", "async"):
        return lambda config: CountEnv()
    return lambda config: gym.vector.SyncVectorEnv([CountEnv] * num_envs, autoreset_mode=mode)


def lane_rows(rollout: Any, lane: int) -> list[tuple[Any, ...]]:
    """The valid rows of a lane as plain tuples."""
    columns = rollout.columns
    rows = []
    for t in np.flatnonzero(columns["valid"][:, lane]):
        names = ("obs", "rewards", "next_obs", "terminateds", "truncateds")
        rows.append(tuple(columns[name][t, lane].tolist() for name in names))
    return rows


EXPECTED = [
    ([0, 0], 1, [0, 1], False, False),
    ([0, 1], 2, [0, 2], False, False),
    ([0, 2], 3, [0, 3], True, False),
    ([1, 0], 11, [1, 1], False, False),
    ([1, 1], 12, [1, 2], False, False),
    ([1, 2], 13, [1, 3], False, True),
    ([2, 0], 21, [2, 1], False, False),
]


@pytest.mark.parametrize("mode", MODES)
def test_every_autoreset_mode_gives_the_same_experience(mode: str) -> None:
    runner = make_runner(count_env(mode), vectorization="async" if mode == "async" else "auto")
    rollout = runner.sample(9)
    for lane in range(2):
        assert lane_rows(rollout, lane)[:7] == EXPECTED
    filler = mode == "NextStep"
    assert rollout.num_env_steps == (14 if filler else 18)
    assert [episode.to_plain() for episode in rollout.episodes[:4]] == [[6, 3], [6, 3], [36, 3], [36, 3]]
    assert runner.metrics()["num_env_steps_sampled_lifetime"] == rollout.num_env_steps
    runner.close()


@pytest.mark.parametrize("mode", MODES[:-1])
@pytest.mark.parametrize("length", [5, 6, 8])
def test_bootstrap_values_are_those_of_the_true_next_observation(mode: str, length: int) -> None:
    """Also where a fragment is cut right after an episode's end."""
    runner = make_runner(count_env(mode))
    rollout = runner.sample(length)
    columns = rollout.columns
    expected = runner.policy.values(columns["next_obs"].reshape(-1, 2)).reshape(length, 2)
    expected = np.where(columns["terminateds"], 0, expected)
    valid = columns["valid"]
    np.testing.assert_allclose(rollout.bootstrap_values[valid], expected[valid], rtol=1e-6)
    assert rollout.bootstrap_values.dtype == np.float32


def test_rollout_columns_have_the_promised_shapes_and_dtypes() -> None:
    runner = make_runner(lambda config: NestedEnv(), num_envs=3)
    columns = runner.sample(4).columns
    shapes = {name: (c.shape, c.dtype.name) for name, c in columns.items() if not isinstance(c, dict)}
    assert shapes == {
        "actions": ((4, 3, 2), "int64"),
        "action_logp": ((4, 3), "float32"),
        "action_dist_inputs": ((4, 3, 5), "float32"),
        "vf_preds": ((4, 3), "float32"),
        "rewards": ((4, 3), "float32"),
        "terminateds": ((4, 3), "bool"),
        "truncateds": ((4, 3), "bool"),
        "valid": ((4, 3), "bool"),
    }
    assert columns["obs"]["image"].shape == (4, 3, 4, 4, 1) and columns["obs"]["image"].dtype == np.uint8
    assert columns["obs"]["pair"]["0"].dtype == np.float32 and columns["obs"]["pair"]["1"].dtype == np.int64


def test_logp_is_that_of_the_recorded_action() -> None:
    runner = make_runner("CartPole-v1", num_envs=3)
    columns = runner.sample(20).columns
    dist = runner.policy.module.get_train_action_dist_cls().from_logits(columns["action_dist_inputs"])
    np.testing.assert_array_equal(dist.logp(columns["actions"]), columns["action_logp"])


def test_rows_flatten_valid_rows_in_order_of_time() -> None:
    runner = make_runner(count_env("NextStep"))
    rollout = runner.sample(5)
    rows = rollout.rows({"advantages": np.arange(10.0).reshape(5, 2)})
    assert rows["rewards"].tolist() == [1, 1, 2, 2, 3, 3, 11, 11]
    assert rows["advantages"].tolist() == [0, 1, 2, 3, 4, 5, 8, 9]
    assert rollout.ends[-1].all() and rollout.ends[2].all() and not rollout.ends[0].any()


ENVS: list[Any] = ["CartPole-v1", "Pendulum-v1", lambda config: NestedEnv()]


@pytest.mark.parametrize("env", ENVS, ids=["native", "sync", "nested"])
@pytest.mark.parametrize("normalize", [False, True])
def test_fragments_may_be_cut_anywhere(env: Any, normalize: bool) -> None:
    settings = {"normalize_observations": normalize, "normalize_rewards": normalize}
    whole, parts = make_runner(env, **settings), make_runner(env, **settings)
    long = whole.sample(90).columns
    pieces = [parts.sample(length).columns for length in (1, 40, 49)]
    for name in long:
        joined = _concat([piece[name] for piece in pieces])
        assert same_tree(long[name], joined), name


def _concat(columns: list[Any]) -> Any:
    if isinstance(columns[0], dict):
        return {key: _concat([column[key] for column in columns]) for key in columns[0]}
    return np.concatenate(columns)


@pytest.mark.parametrize("env", ENVS, ids=["native", "sync", "nested"])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_resumed_runner_goes_on_bit_for_bit(env: Any, normalize: bool) -> None:
    settings = {"normalize_observations": normalize, "normalize_rewards": normalize}
    first = make_runner(env, **settings)
    first.sample(70)
    state = decode(encode(first.get_state()).tobytes())  # through the file format: everything is plain
    assert state["env_state"] == first.env_state == "exact"
    expected, expected_metrics = first.sample(60), first.metrics()
    second = make_runner(env, seed=99, **settings)
    second.sample(3)
    assert second.set_state(state) == "exact"
    got = second.sample(60)
    for name in expected.columns:
        assert same_tree(expected.columns[name], got.columns[name]), name
    assert same_tree(expected.bootstrap_values, got.bootstrap_values)
    assert expected.episodes == got.episodes and expected_metrics == second.metrics()
    assert same_tree_state(first.get_state(), second.get_state())


def same_tree_state(first: Any, second: Any) -> bool:
    return encode(first).tobytes() == encode(second).tobytes()


def test_state_shares_no_memory_with_the_runner() -> None:
    runner = make_runner("CartPole-v1", normalize_observations=True)
    state = runner.get_state()
    before = encode(state).tobytes()
    runner.sample(30)
    assert encode(state).tobytes() == before


class OpaqueEnv(CountEnv):
    """Holds something that cannot be saved."""

    def __init__(self) -> None:
        super().__init__()
        self.world = object()


def test_environments_that_cannot_be_saved_are_restarted_and_say_so() -> None:
    runner = make_runner(lambda config: OpaqueEnv())
    runner.sample(4)
    assert runner.env_state == "restarted" and "OpaqueEnv.world" in runner.env_state_reason
    state = runner.get_state()
    assert state["env_state"] == "restarted" and state["envs"] is None
    resumed = [make_runner(lambda config: OpaqueEnv(), seed=s) for s in (1, 2)]
    assert [other.set_state(state) for other in resumed] == ["restarted"] * 2
    rollouts = [other.sample(5) for other in resumed]
    assert same_tree(rollouts[0].columns["actions"], rollouts[1].columns["actions"])
    assert [row[0][1] for row in lane_rows(rollouts[0], 0)] == [0, 1, 2, 0, 1]  # a new episode
    assert resumed[0].metrics()["num_episodes_lost_lifetime"] == 2


def test_set_state_refuses_what_does_not_fit() -> None:
    runner = make_runner("CartPole-v1", num_envs=2)
    with pytest.raises(StateError, match="num_envs: expected 2, got 3"):
        runner.set_state(make_runner("CartPole-v1", num_envs=3).get_state())
    with pytest.raises(StateError, match="observations: normalisation is off here"):
        runner.set_state(make_runner("CartPole-v1", normalize_observations=True).get_state())
    with pytest.raises(StateError, match=r"obs: expected shape \(2, 4\), got \(2, 3\)"):
        runner.set_state(make_runner("Pendulum-v1").get_state())
    with pytest.raises(StateError, match="num_vector_steps: missing"):
        runner.set_state({"seed": 1, "num_envs": 2})
    single = make_runner(lambda config: CountEnv())
    before = encode(single.get_state()).tobytes()
    with pytest.raises(
        StateError, match=r"envs/\[0\]: expected the environment \['CountEnv'\], got one of \['OpaqueEnv'"
    ):
        state = single.get_state()
        state["envs"][0]["layers"][0]["class"] = "OpaqueEnv"
        single.set_state(state)
    assert encode(single.get_state()).tobytes() == before


def test_another_way_of_stepping_restarts_the_environments() -> None:
    runner = make_runner("CartPole-v1")
    state = runner.get_state()
    assert make_runner("CartPole-v1", vectorization="sync").set_state(state) == "restarted"


def test_seeds_and_workers_have_noise_and_environments_of_their_own() -> None:
    def start(**settings: Any) -> tuple[np.ndarray, np.ndarray]:
        columns = make_runner("CartPole-v1", num_envs=4, **settings).sample(30).columns
        return columns["obs"][0], columns["actions"]

    obs, actions = start(seed=1)
    assert np.array_equal(obs, start(seed=1)[0]) and np.array_equal(actions, start(seed=1)[1])
    for other in (start(seed=2), start(seed=1, worker_index=1)):
        assert not np.array_equal(obs, other[0]) and not np.array_equal(actions, other[1])


class BadEnv(CountEnv):
    def __init__(self, what: str, at: int) -> None:
        super().__init__(length=50)
        self.what, self.at = what, at

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        if self.steps == self.at:
            if self.what == "raise":
                raise ValueError("boom")
            if self.what == "reward":
                reward = float("nan")
            else:
                obs[1] = np.inf
        return obs, reward, terminated, truncated, info


@pytest.mark.parametrize("what", ["reward", "observation"])
@pytest.mark.parametrize("normalize", [False, True])
def test_values_that_are_not_finite_are_refused_by_environment_and_step(what: str, normalize: bool) -> None:
    made = iter([CountEnv(), BadEnv(what, 4)])
    runner = make_runner(lambda config: next(made), normalize_observations=normalize)
    runner.sample(3)
    with pytest.raises(EnvError, match=rf"environment 1 of runner 0 .*, vector step 3: .*{what}.*not finite"):
        runner.sample(3)


def test_an_environment_that_raises_is_rebuilt_and_its_episode_dropped() -> None:
    made = [0]

    def make(config: Any) -> Any:
        made[0] += 1
        return BadEnv("raise", 4) if made[0] == 2 else CountEnv(length=5)

    runner = make_runner(make, max_env_restarts=1)
    first = runner.sample(2)
    assert first.columns["valid"].all()
    place = r"environment 1 of runner 0 .*, vector step 3, step 4 of its episode: raised ValueError: boom \(at .*:\d+\)"
    with pytest.warns(RuntimeWarning, match=rf"{place}.* 1 of 1 times \(max_env_restarts\)"):
        second = runner.sample(6)
    assert second.columns["valid"][:, 0].all()
    assert second.columns["valid"][:, 1].tolist() == [False, False, True, True, True, True]
    assert second.columns["truncateds"][:, 1].tolist() == [False, True, False, False, False, False]
    assert [row[0] for row in lane_rows(second, 1)] == [[0, 0], [0, 1], [0, 2], [0, 3]]
    metrics = runner.metrics()
    assert metrics["episodes"] == [Episode(15.0, 5)]
    assert metrics["num_env_restarts_lifetime"] == 1 and metrics["num_episodes_lost_lifetime"] == 1


def test_an_environment_that_raises_too_often_ends_the_run() -> None:
    runner = make_runner(lambda config: BadEnv("raise", 2), max_env_restarts=3)
    with (
        pytest.warns(RuntimeWarning) as told,
        pytest.raises(EnvError, match=r"raised ValueError: boom .*max_env_restarts=3 rebuilds are used up") as caught,
    ):
        runner.sample(20)
    assert isinstance(caught.value.__cause__, ValueError)
    assert len(told) == 3 and runner.metrics()["num_env_restarts_lifetime"] == 3


def test_an_environment_that_raises_ends_the_run_at_once_by_default() -> None:
    runner = make_runner(lambda config: BadEnv("raise", 2))
    words = r"environment 0 of runner 0 .*step 2 of its episode: raised ValueError: boom .*max_env_restarts=N"
    with pytest.raises(EnvError, match=words) as caught:
        runner.sample(20)
    trace = caught.value.__cause__.__traceback__ if caught.value.__cause__ else None
    assert isinstance(caught.value.__cause__, ValueError) and trace is not None
    assert "raise ValueError" in "".join(traceback.format_tb(trace))
    assert runner.metrics()["num_env_restarts_lifetime"] == 0


@pytest.mark.parametrize("big", [1e38, -3e38])
def test_large_observations_are_no_errors(big: float) -> None:
    """Their sum may overflow although they are finite."""

    class LargeEnv(CountEnv):
        def _obs(self) -> np.ndarray:
            return np.full(2, big, np.float32)

    rollout = make_runner(lambda config: LargeEnv(), num_envs=9).sample(2)
    assert (rollout.columns["obs"] == np.float32(big)).all()


def test_a_process_whose_environment_raises_is_replaced() -> None:
    runner = make_runner(lambda config: BadEnv("raise", 2), vectorization="async", max_env_restarts=2)
    try:
        with pytest.warns(RuntimeWarning, match="the vector environment of environment 0 of runner 0 .*boom"):
            rollout = runner.sample(3)
        assert rollout.columns["valid"].tolist() == [[False] * 2, [False] * 2, [True] * 2]
        assert runner.metrics()["num_env_restarts_lifetime"] == 1
        with pytest.warns(RuntimeWarning), pytest.raises(EnvError, match="max_env_restarts=2") as caught:
            runner.sample(9)
        notes = "".join(caught.value.__cause__.__notes__) if caught.value.__cause__ else ""
        assert "its traceback" in notes and "raise ValueError" in notes
    finally:
        runner.close()


def test_a_vector_environment_that_raises_is_rebuilt_whole() -> None:
    made = [0]

    def make(config: Any) -> Any:
        made[0] += 1
        inner = (lambda: BadEnv("raise", 3)) if made[0] == 1 else CountEnv
        return gym.vector.SyncVectorEnv([inner, inner])

    runner = make_runner(make, max_env_restarts=1)
    with pytest.warns(RuntimeWarning, match="1 of 1 times"):
        rollout = runner.sample(5)
    assert rollout.columns["valid"][:, 0].tolist() == [False, False, False, True, True]
    assert rollout.columns["obs"][3].tolist() == [[0, 0], [0, 0]]
    assert runner.metrics()["num_env_restarts_lifetime"] == 1


@pytest.mark.parametrize("mode", MODES)
def test_evaluation_takes_as_many_episodes_of_each_lane(mode: str) -> None:
    runner = make_runner(count_env(mode), vectorization="async" if mode == "async" else "auto")
    runner.sample(4)
    state = encode(runner.get_state()["episodes"]).tobytes()
    assert runner.evaluate(5) == [Episode(6, 3), Episode(6, 3), Episode(36, 3), Episode(36, 3), Episode(66, 3)]
    assert encode(runner.get_state()["episodes"]).tobytes() == state
    assert [row[0] for row in lane_rows(runner.sample(1), 0)] in ([[1, 1]], [[1, 0]])
    runner.close()


def test_evaluation_does_not_prefer_short_episodes() -> None:
    """Two of three lanes have episodes of 1 step, one of 9: what finishes first would be nearly all short."""
    lengths = iter([1, 9, 1] * 2)
    runner = make_runner(lambda config: CountEnv(length=next(lengths)), num_envs=3)
    assert [episode.episode_length for episode in runner.evaluate(7)] == [1, 9, 1, 1, 9, 1, 1]


def test_evaluations_are_numbered_and_resume() -> None:
    first = make_runner("CartPole-v1")
    first.evaluate(2, explore=True)
    state = first.get_state()
    expected = first.evaluate(6, explore=True)
    second = make_runner("CartPole-v1", seed=3)
    second.set_state(state)
    assert second.evaluate(6, explore=True) == expected
    assert second.evaluate(6, explore=True) != expected


def test_evaluation_leaves_a_given_environment_alone() -> None:
    alone, disturbed = (make_runner(gym.make("CartPole-v1"), num_envs=1) for _ in range(2))
    for runner in (alone, disturbed):
        runner.sample(2)
    assert len(disturbed.evaluate(2)) == 2
    assert np.array_equal(alone.sample(5).columns["obs"], disturbed.sample(5).columns["obs"])


def test_evaluation_of_an_object_that_nobody_knows_how_to_make_is_refused() -> None:
    runner = make_runner(CountEnv(), num_envs=1)
    runner.sample(2)
    words = r"nobody knows how CountEnv was made .*environment\(lambda env_config: CountEnv\(\.\.\.\)\)"
    with pytest.raises(ConfigError, match=words):
        runner.evaluate(2)
    assert runner.sample(1).columns["obs"][0, 0].tolist() == [0, 2]


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Discrete(3, start=-1),
        gym.spaces.MultiDiscrete([2, 3]),
        gym.spaces.MultiBinary(4),
        gym.spaces.Box(-0.1, 0.1, (2,), np.float32),
        gym.spaces.Box(np.array([-1, -np.inf], np.float32), np.array([np.inf, 0.5], np.float32)),
        gym.spaces.Box(-0.1, 0.1, (2, 2), np.float64),
    ],
    ids=str,
)
@pytest.mark.parametrize("random_actions", [False, True])
def test_actions_reach_the_environment_inside_their_space(space: Any, random_actions: bool) -> None:
    made: list[SpacesEnv] = []
    runner = make_runner(lambda config: made.append(SpacesEnv(space)) or made[-1])
    columns = runner.sample(50, random_actions=random_actions).columns
    actions = columns["actions"][:, 0]
    assert actions.shape == (50, *space.shape)
    assert ("action_logp" in columns) is not random_actions
    received = np.stack(made[0].received)
    if isinstance(space, gym.spaces.Box):
        np.testing.assert_allclose(received, np.clip(actions, space.low, space.high), rtol=1e-6)
        if not random_actions:
            assert (actions != received).any()  # the batch keeps what was sampled
            dist = LinearModule.get_train_action_dist_cls(runner.policy.module)
            logp = dist.from_logits(columns["action_dist_inputs"]).logp(columns["actions"])
            np.testing.assert_allclose(logp, columns["action_logp"], atol=1e-4)
    else:
        assert np.array_equal(received, actions)


def test_greedy_actions_need_no_noise() -> None:
    runner = make_runner("CartPole-v1")
    columns = runner.sample(20, explore=False).columns
    np.testing.assert_array_equal(columns["actions"], columns["action_dist_inputs"].argmax(-1))


def test_normalised_columns_are_what_the_policy_saw() -> None:
    runner = make_runner("Pendulum-v1", normalize_observations=True, normalize_rewards=True)
    columns = runner.sample(100).columns
    logits = runner.policy.module.forward_train(runner.policy._params, {"obs": columns["obs"].reshape(-1, 3)})
    np.testing.assert_allclose(
        logits["action_dist_inputs"].reshape(columns["action_dist_inputs"].shape),
        columns["action_dist_inputs"],
        rtol=1e-5,
        atol=1e-6,
    )
    np.testing.assert_array_equal(columns["obs"][1:], columns["next_obs"][:-1])
    count = runner.normalizer.moments["obs"].count
    assert count == 2 * 101  # both resets and every step
    assert 0.1 < columns["obs"].std() < 3 and np.abs(columns["obs"]).max() <= 10
    assert np.abs(columns["rewards"]).max() <= 10


def test_metrics_report_raw_returns_although_rewards_are_scaled() -> None:
    runner = make_runner(count_env("own"), normalize_rewards=True)
    rollout = runner.sample(3)
    assert rollout.episodes == [Episode(6.0, 3), Episode(6.0, 3)]
    assert not np.array_equal(rollout.columns["rewards"], np.array([[1, 1], [2, 2], [3, 3]]))
    assert runner.metrics()["episodes"] == rollout.episodes and runner.metrics()["episodes"] == []
