"""Actions of several kinds at once: Dict and Tuple spaces, from the distribution to environments of every form."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

import learner_core as lc
from learner_core import numpy_xp
from learner_core.action_parts import NestedActions, action_parts, row_of
from learner_core.errors import BatchError, SpaceError
from learner_core.maths.distributions import distribution_for
from learner_core.spaces import check_actions
from learner_core_algorithms import BCConfig, IMPALAConfig, PPOConfig, SACConfig

CONTROLS = spaces.Dict(
    {
        "gear": spaces.Discrete(3, start=1),
        "lights": spaces.Tuple((spaces.MultiBinary(2), spaces.MultiDiscrete([2, 4]))),
        "steer": spaces.Box(-1.0, 1.0, (2,), np.float32),
    }
)


class Car(gym.Env[Any, Any]):
    """Paid for each part of the action that fits what is seen; refuses what is not in its space. Eight steps."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = CONTROLS
    metadata: dict[str, Any] = {}

    def __init__(self, config: Any = None) -> None:
        self.clock = 0
        self.goal = np.zeros(2, np.float32)

    def _seen(self) -> np.ndarray:
        self.goal = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.goal

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.clock = 0
        return self._seen(), {}

    def step(self, action: Any) -> Any:
        assert CONTROLS.contains(action), action
        self.clock += 1
        bits, choices = action["lights"]
        right = [action["gear"] == (3 if self.goal[0] > 0 else 1), bits[0] == 1, choices[1] == 2]
        reward = float(sum(right)) - float(np.abs(action["steer"] - self.goal).sum())
        return self._seen(), reward, False, self.clock == 8, {}


def make_vector(config: Any) -> Any:
    return gym.vector.SyncVectorEnv([Car] * 4, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)


@pytest.fixture
def backend(training_backend_name: str) -> str:
    return training_backend_name


def ppo(backend: str, **training: Any) -> Any:
    config = PPOConfig().environment(Car).framework(backend, compile=False).rl_module(model={"hidden": [16]})
    config.env_runners(num_envs_per_env_runner=4)
    return config.training(**{"train_batch_size": 128, "minibatch_size": 64, "num_epochs": 2, "lr": 1e-2, **training})


# ---- rows of numbers


def test_a_row_is_the_parts_in_the_order_of_the_space() -> None:
    assert [(part.path, part.start, part.size) for part in action_parts(CONTROLS)] == [
        (("gear",), 0, 1),
        (("lights", 0), 1, 2),
        (("lights", 1), 3, 2),
        (("steer",), 5, 2),
    ]
    action = {"gear": 2, "lights": (np.array([1, 0]), np.array([0, 3])), "steer": np.array([0.5, -0.25])}
    row = row_of(CONTROLS, action)
    np.testing.assert_array_equal(row, np.float32([2, 1, 0, 0, 3, 0.5, -0.25]))
    both = NestedActions(CONTROLS, np.stack([row, row]))
    assert len(both) == 2 and CONTROLS.contains(both[1])
    again = both[0]
    assert again["gear"] == 2 and again["lights"][1].tolist() == [0, 3] and again["steer"].tolist() == [0.5, -0.25]
    assert both.batched["lights"][0].tolist() == [[1, 0], [1, 0]] and both.batched["steer"].dtype == np.float32


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([0, 1, 0, 0, 3, 0.5, 0], r"gear of the actions must be in Discrete\(3, start=1\); row 0 is 0"),
        ([2, 1, 0.5, 0, 3, 0.5, 0], "lights/0 of the actions must be in MultiBinary"),
        ([2, 1, 0, 0, 4, 0.5, 0], "lights/1 of the actions"),
        ([2, 1, 0, 0, 3, 1.5, 0], "steer of the actions"),
        ([2, 1, 0, 0, 3, np.nan, 0], "steer of the actions"),
        ([2, 1, 0, 0, 3, 0.5], r"expected actions of shape \['B', 7\], one row of numbers each"),
    ],
)
def test_rows_outside_the_space_are_refused(row: list[float], words: str) -> None:
    with pytest.raises(BatchError, match=words):
        check_actions(CONTROLS, np.array([row], np.float32), bounds=True)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (spaces.Tuple((spaces.Text(3),)), "0: expected Box"),
        (spaces.Dict({"a": spaces.Box(0, 9, (1,), np.int64)}), "a: a Box of int64"),
        (spaces.Dict({"a": spaces.Discrete(2**25)}), "a: choices beyond"),
        (spaces.Dict({}), "has no parts"),
    ],
)
def test_parts_without_a_distribution_are_refused(space: Any, words: str) -> None:
    with pytest.raises(SpaceError, match=words):
        distribution_for(space, numpy_xp)


# ---- the distribution


def test_what_is_said_of_a_row_is_the_sum_over_its_parts() -> None:
    """Against the closed forms of the parts, by hand."""
    space = spaces.Tuple((spaces.Discrete(2), spaces.Box(-1.0, 1.0, (1,), np.float32)))
    kind = distribution_for(space, numpy_xp)
    assert kind.input_size(space) == 4 and kind.noise_shape(space) == (5,)
    logits, mean, log_std = np.log([0.25, 0.75]), 0.5, math.log(2.0)
    dist = kind.from_logits(np.array([[*logits, mean, log_std]]))
    normal = -0.5 * ((1.5 - mean) / 2.0) ** 2 - log_std - 0.5 * math.log(2 * math.pi)
    assert float(dist.logp(np.array([[1.0, 1.5]]))[0]) == pytest.approx(math.log(0.75) + normal)
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) + log_std + 0.5 * math.log(2 * math.pi * math.e)
    assert float(dist.entropy()[0]) == pytest.approx(entropy)
    other = kind.from_logits(np.array([[0.0, 0.0, 0.0, 0.0]]))
    discrete = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    gauss = math.log(1.0 / 2.0) + (4.0 + mean**2) / 2.0 - 0.5
    assert float(dist.kl(other)[0]) == pytest.approx(discrete + gauss)
    assert dist.mode().tolist() == [[1.0, 0.5]]
    noise = np.random.default_rng(0).normal(size=(20_000, 5))
    rows = kind.from_logits(np.tile(np.array([[*logits, mean, log_std]]), (20_000, 1))).sample(noise)
    assert rows[:, 0].mean() == pytest.approx(0.75, abs=0.02)
    assert (rows[:, 1].mean(), rows[:, 1].std()) == (pytest.approx(0.5, abs=0.06), pytest.approx(2.0, abs=0.05))


# ---- runs


@pytest.mark.fast_on_torch
def test_a_run_learns_every_part(backend: str, tmp_path: Path) -> None:
    with ppo(backend, num_epochs=6).build() as algo:
        spec = algo.learner_group.batch_rules()["default_policy"].specs["actions"]
        assert (spec.shape, spec.dtype) == ((7,), "float")
        returns = [algo.train()["env_runners"]["episode_return_mean"] for _ in range(12)]
        assert returns[-1] > returns[0] + 5.0
        algo.save(tmp_path / "run")
        expected = algo.train()["learners"]["default_policy"]
    with lc.Algorithm.from_checkpoint(tmp_path / "run", import_modules=[__name__]) as again:
        assert again.train()["learners"]["default_policy"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.fast_on_torch
@pytest.mark.parametrize(
    "settings",
    [
        {"vectorization": "async"},
        {"num_env_runners": 2},
        {"normalize_observations": True, "normalize_rewards": True},
    ],
)
def test_environments_of_every_form_are_given_nested_actions(backend: str, settings: dict[str, Any]) -> None:
    with ppo(backend).env_runners(**settings).build() as algo:
        algo.train()
        algo.evaluate(num_episodes=2)


@pytest.mark.fast_on_torch
def test_vectors_of_gymnasiums_are_given_batched_ones(backend: str) -> None:
    config = PPOConfig().environment(make_vector).framework(backend, compile=False).training(train_batch_size=64)
    with config.build() as algo:
        algo.train()


@pytest.mark.fast_on_torch
@pytest.mark.parametrize("num_learners", [0, 2])
def test_a_memory_is_told_its_last_action(backend: str, num_learners: int) -> None:
    """Training computes what sampling did, so that nothing has diverged before the first step."""
    config = ppo(backend, num_epochs=1, lr=0.0, max_seq_len=8).learners(num_learners=num_learners)
    config.rl_module(model={"hidden": [8], "recurrent": "gru", "use_prev_action": True, "use_prev_reward": True})
    with config.build() as algo:
        metrics = algo.train()["learners"]["default_policy"]
    assert metrics["approx_kl"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.fast_on_torch
def test_asynchronous_algorithms_learn_from_them(backend: str) -> None:
    config = IMPALAConfig().environment(Car).framework(backend, compile=False).rl_module(model={"hidden": [8]})
    config.training(train_batch_size=80, minibatch_size=80, timesteps_per_iteration=160)
    config.env_runners(rollout_fragment_length=10, num_envs_per_env_runner=4)
    with config.build() as algo:
        for _ in range(5):
            if algo.train()["learners"].get("default_policy", {}).get("num_minibatch_steps"):
                break
        else:
            raise AssertionError("nothing was learned")


@pytest.mark.fast_on_torch
def test_recordings_hold_rows_and_are_cloned(backend: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    obs = rng.uniform(-1, 1, (200, 2)).astype(np.float32)
    CONTROLS.seed(0)
    rows = np.stack([row_of(CONTROLS, CONTROLS.sample()) for _ in obs])
    lc.save_state(
        tmp_path / "play.lcstate", {"format": "learner_core/recording", "columns": {"obs": obs, "actions": rows}}
    )
    config = BCConfig().environment(Car).framework(backend, compile=False).rl_module(model={"hidden": [8]})
    config.training(input_path=str(tmp_path / "play.lcstate"), train_batch_size=100, minibatch_size=50)
    with config.build() as algo:
        assert math.isfinite(algo.train()["learners"]["default_policy"]["total_loss"])
    # A choice that there is not is refused beside a Gaussian, whose own numbers may be any.
    learner = config.build_learner()
    rows[3, 0], rows[4, 5] = 9.0, 3.0
    with pytest.raises(BatchError, match="gear of the actions"):
        learner.update_from_batch(batch={"obs": obs, "actions": rows})


@pytest.mark.fast_on_torch
def test_an_export_answers_with_rows(backend: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    with ppo(backend).build() as algo:
        algo.train()
        lc.export(algo, tmp_path / "car.onnx", to="onnx")
        session = onnxruntime.InferenceSession(str(tmp_path / "car.onnx"))
        obs = np.float32([[0.5, -0.5]])
        answers = dict(zip([out.name for out in session.get_outputs()], session.run(None, {"obs": obs}), strict=True))
        answer = algo.runner.policy.compute_actions(obs, noise=None, explore=False)
    np.testing.assert_allclose(answers["actions"], answer["actions"], atol=1e-5)


@pytest.mark.fast_on_torch
def test_those_that_cannot_say_so(backend: str) -> None:
    config = SACConfig().environment(observation_space=Car.observation_space, action_space=CONTROLS)
    with pytest.raises(SpaceError, match="SAC needs a bounded Box of actions"):
        config.framework(backend, compile=False).build_learner()
