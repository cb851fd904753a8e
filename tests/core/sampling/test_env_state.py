"""Environments saved exactly, or not at all and with a reason."""

from __future__ import annotations

import enum
from collections import deque
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from learner_core.errors import StateError
from learner_core.sampling.env_state import restore_env, save_env
from learner_core.state.format import decode, encode

from support.sampling import CountEnv, same_tree
from support.sampling_envs import SelfSampling

CLASSIC = ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCarContinuous-v0", "FrozenLake-v1", "Blackjack-v1"]
MUJOCO = ["HalfCheetah-v5", "Ant-v5", "Hopper-v5", "Reacher-v5"]


def play(env: Any, actions: list[Any]) -> list[Any]:
    """Everything an environment answers, resets included."""
    record = []
    for action in actions:
        obs, reward, terminated, truncated, _ = env.step(action)
        record.append((np.asarray(obs).tolist(), float(reward), terminated, truncated))
        if terminated or truncated:
            record.append(np.asarray(env.reset()[0]).tolist())
    return record


def random_actions(env: Any, count: int) -> list[Any]:
    env.action_space.seed(0)
    return [env.action_space.sample() for _ in range(count)]


@pytest.mark.parametrize("name", CLASSIC + MUJOCO)
def test_gymnasium_environments_go_on_exactly(name: str) -> None:
    if name in MUJOCO:
        pytest.importorskip("mujoco")
    first = gym.make(name)
    first.reset(seed=3)
    actions = random_actions(first, 60)
    play(first, actions[:25])
    state, reason = save_env(first)
    assert reason == ""
    state = decode(encode(state).tobytes())
    expected = play(first, actions[25:])
    second = gym.make(name)
    second.reset(seed=99)
    play(second, actions[:3])
    restore_env(second, state)
    assert play(second, actions[25:]) == expected


def test_wrappers_are_part_of_the_state() -> None:
    def make() -> Any:
        env = gym.wrappers.FrameStackObservation(gym.make("CartPole-v1", max_episode_steps=9), 3)
        return gym.wrappers.ClipReward(env, -0.5, 0.5)

    first, second = make(), make()
    first.reset(seed=0)
    second.reset(seed=1)
    play(first, [1, 0, 1])
    restore_env(second, save_env(first)[0] or {})
    assert play(first, [0, 1] * 8) == play(second, [0, 1] * 8)


def test_box2d_says_what_stands_in_the_way() -> None:
    pytest.importorskip("Box2D")
    env = gym.make("LunarLander-v3")
    env.reset(seed=0)
    state, reason = save_env(env)
    assert state is None and reason.startswith("LunarLander.world is a Box2D")


class Kind(enum.Enum):
    DAY = 1
    NIGHT = 2


class PlainEnv(CountEnv):
    """One attribute of every kind that can be saved."""

    def __init__(self) -> None:
        super().__init__()
        self.kind = Kind.DAY
        self.frames = deque([np.zeros(2), np.ones(2)], maxlen=2)
        self.table = {1: (2, [3, b"x"]), "big": 1 << 100, None: np.float32(0.5)}
        self.words = np.array([["ab", "c"]])
        self.word = np.str_("d")
        self.old = np.random.RandomState(5)
        self.rngs = [np.random.Generator(np.random.MT19937(1)), np.random.Generator(np.random.Philox(2))]


def test_every_plain_kind_of_attribute_comes_back() -> None:
    first, second = PlainEnv(), PlainEnv()
    first.reset(seed=0)
    second.reset(seed=1)
    first.kind, first.table[7] = Kind.NIGHT, {"new": [True]}
    first.frames.append(np.full(2, 7.0))
    first.late = 5
    second.early = 6
    draws = [first.old.rand(), *(rng.random() for rng in first.rngs)]
    assert draws[0] == np.random.RandomState(5).rand()
    state = save_env(first)[0]
    assert state is not None
    restore_env(second, decode(encode(state).tobytes()))
    assert second.kind is Kind.NIGHT and second.table == first.table and second.late == 5
    assert not hasattr(second, "early")
    assert second.words.tolist() == [["ab", "c"]] and type(second.word) is np.str_ and second.word == "d"
    assert [frame.tolist() for frame in second.frames] == [[1, 1], [7, 7]] and second.frames.maxlen == 2
    assert first.old.rand() == second.old.rand()
    assert [rng.random() for rng in first.rngs] == [rng.random() for rng in second.rngs]


@pytest.mark.parametrize(
    ("attribute", "reason"),
    [
        (lambda env: object(), "CountEnv.extra is a builtins.object"),
        (lambda env: {"deep": [{1, 2}]}, "CountEnv.extra['deep'][0] is a builtins.set"),
        (lambda env: env.array[1:], "CountEnv.extra and CountEnv.array share memory"),
        (lambda env: [env.array], "CountEnv.extra[0] and CountEnv.array are one object"),
        (lambda env: env.np_random, "CountEnv.extra and CountEnv._np_random are one object"),
        (lambda env: np.array([object()]), "CountEnv.extra is an array of Python objects"),
        (lambda env: np.zeros(2, "M8[s]"), "CountEnv.extra is an array of datetime64[s]"),
        (lambda env: np.zeros(3_000_000), "CountEnv.extra: the environment holds more than 16 MiB"),
    ],
)
def test_what_cannot_be_saved_exactly_is_not_saved(attribute: Any, reason: str) -> None:
    env = CountEnv()
    env.reset(seed=0)
    env.array = np.zeros(3)
    env.extra = attribute(env)
    state, got = save_env(env)
    assert state is None and got == reason


class OwnStateEnv(CountEnv):
    """Knows how to save itself."""

    def __init__(self) -> None:
        super().__init__()
        self.world = object()

    def get_state(self) -> Any:
        return {"episode": self.episode, "steps": self.steps, "grid": np.arange(3)}

    def set_state(self, state: Any) -> None:
        assert state["grid"].tolist() == [0, 1, 2]
        self.episode, self.steps = state["episode"], state["steps"]


def test_environments_may_save_themselves() -> None:
    first, second = OwnStateEnv(), OwnStateEnv()
    first.reset()
    second.reset()
    play(first, [0] * 5)
    restore_env(second, decode(encode(save_env(first)[0]).tobytes()))
    assert play(first, [0] * 5) == play(second, [0] * 5)


def test_states_of_other_environments_are_refused_before_anything_changes() -> None:
    env = gym.make("CartPole-v1")
    env.reset(seed=0)
    state, _ = save_env(env)
    other = gym.make("Pendulum-v1")
    other.reset(seed=0)
    with pytest.raises(StateError, match="envs: expected the environment"):
        restore_env(other, state or {})
    damaged = decode(encode(state).tobytes())
    damaged["layers"][-1]["attributes"]["_np_random"]["generator"]["dict"][0][1] = "Evil"
    with pytest.raises(StateError, match="unknown bit generator 'Evil'"):
        restore_env(env, damaged)


def test_generators_of_spaces_come_back_and_are_looked_at_before_anything_changes() -> None:
    first, second = SelfSampling(), SelfSampling()
    for env in (first, second):
        env.observation_space.seed(1)  # and the action space has none yet
    state = save_env(first)[0]
    assert state is not None
    spaces = state["layers"][0]["spaces"]
    assert [len(generators) for generators in spaces.values()] == [5, 1] and spaces["action_space"] == [None]
    expected = [first.observation_space.sample() for _ in range(3)]
    second.observation_space.sample()
    restore_env(second, decode(encode(state).tobytes()))
    again = [second.observation_space.sample() for _ in range(3)]
    assert all(same_tree(one, other) for one, other in zip(expected, again, strict=True))
    before = save_env(second)[0]
    for wrong, words in [
        ({**spaces, "action_space": [None, None]}, r"spaces/action_space: expected generators of 1 spaces, got 2"),
        ({"action_space": [None]}, "expected generators of action_space, observation_space, got action_space"),
        ({**spaces, "action_space": [7]}, "expected a random generator, or None"),
        ({**spaces, "action_space": [{"generator": {"dict": []}}]}, "unknown bit generator None"),
    ]:
        with pytest.raises(StateError, match=words):
            restore_env(second, {"layers": [{**state["layers"][0], "spaces": wrong}]})
        assert save_env(second)[0] == before
    del state["layers"][0]["spaces"]  # as earlier versions saved it
    restore_env(second, state)
