"""A group of runners computes what its runners would by themselves, together or on their own, here or elsewhere."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest

from learner_core.errors import ConfigError, EnvError
from learner_core.sampling.normalize import RunningMoments
from learner_core.state.format import decode, encode

from support.runners import BOUND_S, group_config, group_of, pids, running
from support.sampling import SPEC, CountEnv, NestedEnv, make_runner, same_tree

cloudpickle.register_pickle_by_value(sys.modules[__name__])

Make = Callable[..., Any]


@pytest.fixture
def groups() -> Iterator[Make]:
    """``groups(env, number, ...)``; every group is closed afterwards, in bounded time, and no process is left."""
    made: list[Any] = []

    def make(*arguments: Any, **settings: Any) -> Any:
        made.append(group_of(*arguments, **settings))
        return made[-1]

    yield make
    for group in made:
        numbers = pids(group)
        began = time.monotonic()
        group.close()
        assert time.monotonic() - began < BOUND_S
        assert not running(numbers)


def same_rollout(one: Any, other: Any) -> bool:
    """Bit for bit."""
    if not np.array_equal(one.bootstrap_values, other.bootstrap_values) or one.episodes != other.episodes:
        return False
    return same_tree(one.columns, other.columns)


@pytest.mark.parametrize("env", ["CartPole-v1", lambda config: NestedEnv()], ids=["native", "nested"])
def test_processes_sample_what_their_runners_would_here(groups: Make, env: Any) -> None:
    group = groups(env)
    runners = [make_runner(env, worker_index=index) for index in (1, 2)]
    for runner in runners:
        runner.set_weights(group.local.policy.module.init(np.random.default_rng(1)))
    episodes = []
    for length in (30, 1, 50):
        rollouts = group.sample(length)
        expected = [runner.sample(length) for runner in runners]
        assert all(map(same_rollout, rollouts, expected))
        episodes += [episode for rollout in expected for episode in rollout.episodes]
    obs, following = rollouts[0].columns["obs"], rollouts[0].columns["next_obs"]
    if env == "CartPole-v1":  # resets in steps of its own: what is one array there is one here
        assert np.shares_memory(obs, following)
        assert obs.flags.writeable
    metrics = [runner.metrics() for runner in runners]
    together = group.metrics()
    assert together["episodes"] == episodes and len(episodes) > 5
    for name in ("num_env_steps_sampled_lifetime", "num_episodes_lifetime"):
        assert together[name] == sum(m[name] for m in metrics)


def test_without_processes_the_runner_of_this_one_samples(groups: Make) -> None:
    group, runner = groups("CartPole-v1", 0), make_runner("CartPole-v1")
    assert group.num_runners == 1 and not pids(group)
    (rollout,) = group.sample(20)
    assert same_rollout(rollout, runner.sample(20))
    assert group.ready(0) == []
    group.request(5)
    group.set_weights({"default_policy": _weights(group, 2)}, version=4)
    (fragment,) = group.ready(0)
    assert (fragment.worker_index, fragment.weights_version, fragment.rollout.num_steps) == (0, 4, 5)


def _weights(group: Any, seed: int) -> Any:
    return group.local.policy.module.init(np.random.default_rng(seed))


class Announced(gym.Env):
    """Its observations can be told beforehand: drawn from a generator that is seeded by the reset."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self._obs(), {}

    def step(self, action: Any) -> Any:
        return self._obs(), float(self.np_random.normal()), bool(self.np_random.random() < 0.1), False, {}

    def _obs(self) -> np.ndarray:
        return (5 + 3 * self.np_random.normal(size=3)).astype(np.float32)


def _announced(config: Any) -> Announced:
    return Announced()


NORMALIZED = {"normalize_observations": True, "normalize_rewards": True}


def test_statistics_are_those_of_everything_that_all_have_seen(groups: Make) -> None:
    group = groups(_announced, 2, 3, **NORMALIZED)
    plain = [make_runner(_announced, 3, worker_index=index) for index in (1, 2)]
    seen = [runner._obs.copy() for runner in plain]
    for _ in range(3):
        group.sample(20)
        # Actions change nothing in this environment.
        for runner in plain:
            columns = runner.sample(20).columns
            seen.append(columns["next_obs"].reshape(-1, 3))
            ends = columns["terminateds"]
            starts = columns["obs"][1:][ends[:-1]]
            seen.extend([starts, runner._obs[ends[-1]]])
    everything = np.concatenate(seen).astype(np.float64)
    moments = group.local.normalizer.moments["obs"]
    assert moments.count == len(everything)
    np.testing.assert_allclose(moments.mean, everything.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.variance, everything.var(axis=0), rtol=1e-12)
    # Every runner goes on with them: in the next fragment its own come on top.
    group.sample(1)
    counts = group.foreach_runner(lambda runner: runner.normalizer.moments["obs"].count)
    assert all(count > len(everything) for count in counts)


def test_asynchronous_statistics_count_everything_once(groups: Make) -> None:
    group = groups(_announced, 2, 3, **NORMALIZED, max_requests_in_flight_per_env_runner=2)
    group.request(7)
    for _ in range(12):
        group.ready(5.0)
    state = group.get_state()
    total = 0.0
    for part in state["runners"]:
        runner = part["runner"]
        # Initial observations, one per step, and one more wherever an episode ended.
        total += 3 + 3 * runner["num_vector_steps"] + runner["episodes"]["num_episodes"]
    untold = sum(part["untold"].get("observations/obs", {"count": 0})["count"] for part in state["runners"])
    assert state["statistics"]["observations/obs"]["count"] + untold == total


def test_merged_moments_are_the_moments_of_the_whole() -> None:
    from learner_core.sampling.normalize import merge_moments

    rng = np.random.default_rng(0)
    parts = [rng.normal(3, 2, (n, 4)) for n in (1, 0, 50, 7)]
    states = []
    for part in parts:
        moments = RunningMoments((4,))
        moments.update(part)
        states.append({"x": moments.get_state()})
    whole = np.concatenate(parts)
    merged = merge_moments(*states)["x"]
    assert merged["count"] == 58
    np.testing.assert_allclose(merged["mean"], whole.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(merged["m2"], whole.var(axis=0) * 58, rtol=1e-13)


# ---- on their own ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2])
def test_runners_go_on_with_the_newest_weights(groups: Make, limit: int) -> None:
    group = groups("CartPole-v1", max_requests_in_flight_per_env_runner=limit)
    group.request(10)
    versions: dict[int, list[int]] = {1: [0], 2: [0]}
    fragments: list[Any] = []
    version = 0
    deadline = time.monotonic() + 30.0
    # Which of them the machine lets go on is not for us to say; in the end both have.
    while min(seen[-1] for seen in versions.values()) <= 5 and time.monotonic() < deadline:
        for fragment in group.ready(10.0):
            versions[fragment.worker_index].append(fragment.weights_version)
            fragments.append(fragment)
        version += 1
        group.set_weights({"default_policy": _weights(group, version)}, version=version)
    assert group.weights_version == version
    # A runner that had not begun when newer weights came begins with those.
    assert fragments[0].weights_version == 0
    for seen in versions.values():
        assert seen == sorted(seen) and seen[-1] > 5
    for fragment in fragments[-2:]:
        policy = make_runner("CartPole-v1").policy
        policy.set_weights(_weights(group, fragment.weights_version or 1))
        columns = fragment.rollout.columns
        answer = policy.compute_actions(columns["obs"][3], noise=None, explore=True)
        np.testing.assert_array_equal(answer["action_dist_inputs"], columns["action_dist_inputs"][3])


def test_nothing_is_lost_when_an_asynchronous_group_is_saved(groups: Make) -> None:
    settings: dict[str, Any] = {"max_requests_in_flight_per_env_runner": 2}
    group = groups("CartPole-v1", **settings)
    group.request(5)
    taken = group.ready(10.0) + group.ready(10.0)
    state = decode(encode(group.get_state()).tobytes())
    steps = state["counts"]["num_env_steps_sampled_lifetime"]
    waiting = state["fragments"]
    assert len(waiting) >= 2
    again = groups("CartPole-v1", **settings)
    assert again.set_state(state) == "exact"
    assert again.weights_version == 0
    again.set_weights({"default_policy": _weights(again, 1)}, version=again.weights_version)
    again.request(5)
    handed = again.ready(10.0)
    for _ in range(3):
        handed += again.ready(10.0)
    known = sum(fragment.rollout.num_env_steps for fragment in taken) + sum(
        int(np.count_nonzero(fragment["rollout"]["columns"]["valid"])) for fragment in waiting
    )
    assert known == steps
    first = [(f.worker_index, f.weights_version) for f in handed[: len(waiting)]]
    assert first == [(f["worker_index"], f["weights_version"]) for f in waiting]
    assert same_tree(handed[0].rollout.columns, waiting[0]["rollout"]["columns"])
    # And each environment goes on where the fragments end.
    for index in (1, 2):
        own = [f.rollout.columns for f in handed if f.worker_index == index]
        for before, after in itertools.pairwise(own):
            done = before["terminateds"][-1] | before["truncateds"][-1] | ~before["valid"][-1]
            np.testing.assert_array_equal(before["next_obs"][-1][~done], after["obs"][0][~done])
    assert again.metrics()["num_env_steps_sampled_lifetime"] >= steps + 5


# ---- state -----------------------------------------------------------------------------------------------------------


def test_a_group_goes_on_from_its_state_as_if_it_had_never_stopped(groups: Make) -> None:
    group = groups(_announced, **NORMALIZED)
    group.sample(13)
    state = decode(encode(group.get_state()).tobytes())
    expected = [group.sample(9) for _ in range(2)]
    again = groups(_announced, **NORMALIZED)
    again.sample(3)
    assert again.set_state(state) == "exact"
    for rollouts in expected:
        assert all(map(same_rollout, again.sample(9), rollouts))
    assert encode(again.get_state()).tobytes() == encode(group.get_state()).tobytes()


@pytest.mark.parametrize(("before", "after"), [(2, 0), (0, 2), (2, 1), (1, 3)])
def test_another_number_of_runners_takes_over_what_it_can(groups: Make, before: int, after: int) -> None:
    group = groups("CartPole-v1", before, normalize_observations=True)
    group.sample(20)
    group.sample(20)
    steps = group.metrics()["num_env_steps_sampled_lifetime"]
    state = group.get_state()
    again = groups("CartPole-v1", after, normalize_observations=True)
    assert again.set_state(state) == "restarted"
    moments = again.local.normalizer.moments["obs"].get_state()
    assert same_tree(moments, state["statistics"]["observations/obs"])
    again.set_weights({"default_policy": _weights(again, 1)}, version=1)
    rollouts = again.sample(5)
    assert len(rollouts) == max(1, after)
    assert again.metrics()["num_env_steps_sampled_lifetime"] == steps + sum(r.num_env_steps for r in rollouts)
    # Nobody sees noise or seeds again that were used before.
    assert all(number > 40 for number in again.foreach_runner(lambda runner: runner.num_vector_steps))


# ---- what a process needs --------------------------------------------------------------------------------------------


def test_runner_processes_import_no_framework_and_find_what_a_script_registered(groups: Make) -> None:
    gym.register("support/Announced-v0", entry_point=Announced)
    try:
        group = groups("support/Announced-v0", 1)
        assert group.sample(3)[0].num_env_steps == 6
        (loaded,) = group.foreach_runner(lambda runner: sorted(sys.modules))
        roots = {name.partition(".")[0] for name in loaded}
        assert not roots & {"torch", "tensorflow", "keras", "jax", "ray", "horovod"}
    finally:
        del gym.registry["support/Announced-v0"]


def test_what_cannot_be_sent_is_refused_with_the_remedy() -> None:
    import threading

    lock = threading.Lock()
    with pytest.raises(ConfigError, match=r"num_env_runners=2.*cannot be sent.*num_env_runners=0"):
        group_of(lambda config: CountEnv() if lock else None)


def test_an_environment_that_cannot_be_made_elsewhere_says_so_with_its_traceback() -> None:
    import os

    here = os.getpid()

    def make(config: Any) -> Any:
        if os.getpid() != here:
            raise OSError("no display in this process")
        return CountEnv()

    began = time.monotonic()
    with pytest.raises(EnvError, match="no display in this process") as error:
        group_of(make)
    assert "in make" in "".join(error.value.__notes__)
    assert time.monotonic() - began < BOUND_S


def test_a_config_for_processes_is_a_config() -> None:
    """The settings' defaults are those that a group falls back to."""
    from learner_core import AlgorithmConfig
    from learner_core.sampling.runner_server import make_setup

    config = AlgorithmConfig().environment("CartPole-v1").freeze()
    sent = cloudpickle.loads(make_setup(config, {"default_policy": SPEC}, None))["config"]
    assert sent.env == "CartPole-v1" and sent.max_env_runner_restarts == 10
    assert group_config("CartPole-v1").num_env_runners == 2


def test_a_broadcast_that_missed_a_fragment_does_not_lose_it() -> None:
    """A runner two fragments ahead puts what the driver had not heard of on top of what the driver says."""
    from learner_core.sampling.normalize import merge_moments
    from learner_core.sampling.runner_server import RunnerServer, make_setup

    config = group_config(_announced, 1, 3, **NORMALIZED)
    weights = {"default_policy": make_runner(config.env, 3).policy.module.init(np.random.default_rng(1))}
    server = RunnerServer(iter([(0, weights), *[None] * 9]).__next__)
    server.build(setup=make_setup(config, {"default_policy": SPEC}, None), worker_index=1)
    how: dict[str, Any] = {"num_steps": 5, "explore": True, "random_actions": False}
    parts = [server.sample(number=n, statistics=None, includes=0, **how)["statistics"] for n in (1, 2)]
    others = {name: {**moments, "count": 1000.0} for name, moments in parts[0].items()}
    said = merge_moments(others, parts[0])
    parts.append(server.sample(number=3, statistics=said, includes=1, **how)["statistics"])
    expected = merge_moments(said, parts[1], parts[2])
    for name, moments in server.runner.get_statistics().items():
        assert moments["count"] == expected[name]["count"]
        np.testing.assert_allclose(moments["mean"], expected[name]["mean"], rtol=1e-12)
        np.testing.assert_allclose(moments["m2"], expected[name]["m2"], rtol=1e-9)
