"""The smaller parts: lanes, random actions, noise in blocks, the numpy backend."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from learner_core import numpy_xp
from learner_core.errors import ConfigError, EnvError, SpaceError, StateError
from learner_core.learning.rl_module import RLModuleSpec
from learner_core.sampling.actions import ActionDoor
from learner_core.sampling.gym_lanes import GymLanes
from learner_core.sampling.noise_blocks import BLOCK, NoiseBlocks
from learner_core.sampling.numpy_backend import ForwardPolicy, NumpyBackend, NumpyPolicy, choose_inference
from learner_core.sampling.sync_lanes import SyncLanes

from support.sampling import CountEnv, LinearModule, SpacesEnv, make_lanes


def test_the_fastest_way_of_stepping_is_taken() -> None:
    native = make_lanes("CartPole-v1", num_envs=3)
    assert isinstance(native, GymLanes) and native.autoreset == "NextStep" and native.num_envs == 3
    assert isinstance(make_lanes("CartPole-v1", num_envs=3, vectorization="sync"), SyncLanes)
    assert isinstance(make_lanes("Pendulum-v1"), SyncLanes)
    given = gym.make("CartPole-v1", max_episode_steps=7)
    several = make_lanes(given, num_envs=2)
    assert isinstance(several, SyncLanes) and several.envs[1].spec.max_episode_steps == 7
    assert make_lanes(given).environments() == [given]


def test_settings_reach_the_environment() -> None:
    native: Any = make_lanes("CartPole-v1", env_config={"sutton_barto_reward": True})
    assert native.env._sutton_barto_reward and native.env.max_episode_steps == 500
    seen = []
    make_lanes(lambda config: seen.append(config) or CountEnv(), env_config={"a": 1}, num_envs=2)
    assert seen == [{"a": 1}] * 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"env": "CartPole-v1", "vectorization": "magic"}, ConfigError, "vectorization='magic'"),
        ({"env": "Pendulum-v1", "vectorization": "native"}, ConfigError, "no vectorised form of its own"),
        ({"env": "CartPole-v1", "num_envs": 0}, ConfigError, "num_envs=0"),
        ({"env": CountEnv(), "num_envs": 2}, ConfigError, "one environment object was given"),
        ({"env": "CartPol-v1"}, EnvError, "Did you mean 'CartPole"),
        ({"env": "CartPole-v1", "env_config": {"gravity": 3}}, EnvError, "gravity"),
        ({"env": lambda config: 1 / 0}, EnvError, "ZeroDivisionError"),
    ],
)
def test_environments_that_cannot_be_made_are_refused(arguments: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make_lanes(**arguments)


def test_same_step_without_final_observations_is_refused() -> None:
    env = gym.vector.SyncVectorEnv([CountEnv], autoreset_mode="NextStep")
    env.metadata["autoreset_mode"] = gym.vector.AutoresetMode.SAME_STEP
    lanes = make_lanes(env)
    out = np.empty((1, 2), np.float32)
    lanes.reset([0], out)
    with pytest.raises(EnvError, match="without infos"):
        for _ in range(3):
            lanes.step(np.zeros(1, np.int64), out)


def test_random_actions_are_distributed_as_the_space_samples_them() -> None:
    rows = (np.arange(1000) + 0.5)[:, None] / 1000
    discrete = ActionDoor(gym.spaces.Discrete(4, start=2)).random(rows)
    assert np.bincount(discrete).tolist() == [0, 0, 250, 250, 250, 250] and discrete.dtype == np.int64
    box = ActionDoor(gym.spaces.Box(-1, 3, (1,), np.float32)).random(rows)
    assert box.dtype == np.float32 and box.min() > -1 and box.max() < 3 and abs(box.mean() - 1) < 1e-6
    low = ActionDoor(gym.spaces.Box(2, np.inf, (1,), np.float32)).random(rows)
    assert low.min() > 2 and abs(low.mean() - 3) < 0.01
    free = ActionDoor(gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)).random(rows)
    assert abs(free.mean()) < 1e-3 and abs(free.std() - np.pi / np.sqrt(3)) < 0.02
    bits = ActionDoor(gym.spaces.MultiBinary(1)).random(rows)
    assert bits.mean() == 0.5
    extreme = ActionDoor(gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)).random(np.zeros((1, 1)))
    assert np.isfinite(extreme).all()


def test_spaces_without_a_door_are_refused() -> None:
    for space in (gym.spaces.Dict({"a": gym.spaces.Text(2)}), gym.spaces.Box(0, 5, (2,), np.int32)):
        with pytest.raises(SpaceError, match="action space"):
            ActionDoor(space)


def test_rounding_never_steps_over_a_bound() -> None:
    space = gym.spaces.Box(np.float32(-0.1), np.float32(0.1), (1,), np.float32)
    out = ActionDoor(space).to_env(np.array([[-5.0], [0.1], [5.0]], np.float64))
    assert all(space.contains(action) for action in out)


def test_noise_of_a_step_does_not_depend_on_what_was_asked_before() -> None:
    steps = [0, 1, BLOCK - 1, BLOCK, 5 * BLOCK + 3]
    fresh = [NoiseBlocks(3, "x", 2, (4,)).at(step).copy() for step in steps]
    one = NoiseBlocks(3, "x", 2, (4,))
    assert all(np.array_equal(one.at(step), noise) for step, noise in zip(steps, fresh, strict=True))
    assert not np.array_equal(fresh[0], fresh[1])
    uniform = NoiseBlocks(3, "x", 2, (4,), kind="uniform").at(0)
    assert uniform.dtype == np.float64 and (uniform >= 0).all() and (uniform < 1).all()


def test_numpy_policy_copies_its_weights_and_needs_them() -> None:
    env = SpacesEnv(gym.spaces.Discrete(3))
    policy = NumpyPolicy(RLModuleSpec(LinearModule, env.observation_space, env.action_space))
    obs = np.ones((2, 3), np.float32)
    with pytest.raises(StateError, match="set_weights"):
        policy.compute_actions(obs, noise=None, explore=False)
    weights = policy.module.init(np.random.default_rng(0))
    policy.set_weights(weights)
    before = policy.compute_actions(obs, noise=None, explore=False)
    weights["pi.weight"][:] = 0
    after = policy.compute_actions(obs, noise=None, explore=False)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    with pytest.raises(StateError, match=r"pi\.weight: expected an array"):
        policy.set_weights({"pi.weight": object()})


def test_a_module_with_an_initial_state_must_return_the_next_one() -> None:
    class Forgetful(LinearModule):
        def initial_state(self) -> dict[str, np.ndarray]:
            return {"h": np.zeros(4, np.float32)}

    env = SpacesEnv(gym.spaces.Discrete(3))
    policy = NumpyPolicy(RLModuleSpec(Forgetful, env.observation_space, env.action_space))
    policy.set_weights(policy.module.init(np.random.default_rng(0)))
    obs = np.zeros((2, *env.observation_space.shape), np.float32)
    with pytest.raises(ConfigError, match="must return 'state_out'"):
        policy.compute_actions(obs, noise=None, explore=False, state={"h": np.zeros((2, 4), np.float32)})


def test_a_forward_function_of_any_backend_acts_like_the_module_in_numpy() -> None:
    env = SpacesEnv(gym.spaces.Box(-1, 1, (2,), np.float32))
    numpy_policy = NumpyPolicy(RLModuleSpec(LinearModule, env.observation_space, env.action_space))
    weights = numpy_policy.module.init(np.random.default_rng(0))
    numpy_policy.set_weights(weights)
    given: list[Any] = []
    policy = ForwardPolicy(
        lambda batch, explore: numpy_policy.module.forward_train(given[-1], batch),
        env.action_space,
        set_weights=given.append,
    )
    policy.set_weights(weights)
    noise = np.random.default_rng(1).standard_normal((4, *policy.noise_shape)).astype(np.float32)
    obs = np.random.default_rng(2).standard_normal((4, 3)).astype(np.float32)
    expected = numpy_policy.compute_actions(obs, noise=noise, explore=True)
    got = policy.compute_actions(obs, noise=noise, explore=True)
    assert expected.keys() == got.keys() and all(np.array_equal(expected[k], got[k]) for k in got)


def test_inference_is_chosen_by_the_module() -> None:
    class Foreign(LinearModule):
        portable = False

    small, image = gym.spaces.Box(-1, 1, (3,)), gym.spaces.Box(0, 255, (84, 84, 4), np.uint8)
    action = gym.spaces.Discrete(2)
    assert choose_inference(RLModuleSpec(LinearModule, small, action)) == "numpy"
    assert choose_inference(RLModuleSpec(LinearModule, image, action)) == "backend"
    assert choose_inference(RLModuleSpec(LinearModule, gym.spaces.Dict({"a": image}), action)) == "backend"
    assert choose_inference(RLModuleSpec(Foreign, small, action)) == "backend"
    assert choose_inference(RLModuleSpec(LinearModule, image, action), setting="numpy") == "numpy"


def test_the_numpy_backend_copies_and_refuses_gradients() -> None:
    backend = NumpyBackend()
    tree = {"a": {"b": np.ones(2)}}
    copied = backend.to_numpy(backend.from_numpy(tree))
    assert copied["a"]["b"].tolist() == [1, 1] and not np.shares_memory(copied["a"]["b"], tree["a"]["b"])
    assert backend.xp is numpy_xp and not backend.trains
    with pytest.raises(ConfigError, match="computes no gradients"):
        backend.gradients(None, {}, {})
    with pytest.raises(ConfigError, match="device='cuda'"):
        NumpyBackend(device="cuda")
    with pytest.raises(ConfigError, match="precision='bfloat16'"):
        NumpyBackend(precision="bfloat16")
