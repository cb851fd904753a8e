"""PPO with a memory and with masked actions, from environments to checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

import learner_core as lc
from learner_core_algorithms import PPOConfig

from support.sampling import same_tree

MID = "default_policy"


def _config(backend: str, **training: Any) -> Any:
    settings = {"train_batch_size": 44, "minibatch_size": 16, "num_epochs": 2, "max_seq_len": 4, "burn_in": 1}
    return (
        PPOConfig()
        .environment("CartPole-v1")
        .framework(backend, compile=False)
        .env_runners(num_envs_per_env_runner=2, normalize_observations=True)
        .training(**{**settings, **training})
        .rl_module(model={"hidden": [4], "recurrent": "lstm", "recurrent_size": 3, "vf_share_layers": True})
    )


@pytest.mark.fast_on_torch
def test_a_run_with_a_memory_resumes_bit_for_bit(training_backend_name: str, tmp_path: Any) -> None:
    with _config(training_backend_name).build() as algo:
        algo.train()
        algo.save(tmp_path / "checkpoint")
        results = [algo.train(), algo.train()]
        assert results[-1]["learners"][MID]["num_minibatch_steps"] == 8.0
        uninterrupted = algo.get_state()
    with lc.Algorithm.from_checkpoint(tmp_path / "checkpoint") as again:
        memory = again.get_state()["env_runner"]
        resumed_results = [again.train(), again.train()]
        resumed = again.get_state()
    assert np.abs(_find(memory, "encoder_h")).max() > 0.0
    for part in ("learner", "env_runner", "algorithm"):
        assert _plain(uninterrupted[part]) == _plain(resumed[part])
    assert [r["learners"] for r in results] == [r["learners"] for r in resumed_results]


def _find(tree: Any, name: str) -> np.ndarray:
    """The first leaf of that name."""
    for key, value in tree.items() if isinstance(tree, Mapping) else ():
        if key == name:
            return np.asarray(value)
        found = _find(value, name) if isinstance(value, Mapping) else np.zeros(0)
        if found.size:
            return found
    return np.zeros(0)


def _plain(tree: Any) -> Any:
    """Arrays as bytes, so that trees compare exactly."""
    if isinstance(tree, Mapping):
        return {key: _plain(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_plain(value) for value in tree]
    return (str(tree.dtype), tree.shape, tree.tobytes()) if isinstance(tree, np.ndarray) else tree


def test_answers_of_the_backend_are_those_of_numpy(training_backend_name: str) -> None:
    columns = []
    for inference in ("numpy", "backend"):
        config = _config(training_backend_name).env_runners(inference=inference)
        with config.build() as algo:
            columns.append(algo.runner.sample(6).columns)
    np.testing.assert_array_equal(columns[0]["actions"], columns[1]["actions"])
    for leaf in ("encoder_h", "encoder_c"):
        np.testing.assert_allclose(columns[0]["state_in"][leaf], columns[1]["state_in"][leaf], rtol=1e-4, atol=1e-6)


class LeakyModule(lc.RLModule):
    """A user's own memory: a running mean of what was seen."""

    def init(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        size = self.observation_space.shape[0]
        return {
            "pi": (0.1 * rng.normal(size=(2, size))).astype(np.float32),
            "vf": (0.1 * rng.normal(size=(1, size))).astype(np.float32),
        }

    def initial_state(self) -> dict[str, np.ndarray]:
        return {"mean": np.zeros(self.observation_space.shape, np.float32)}

    def forward_train(self, params: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
        xp, obs = self.xp, batch["obs"]
        if len(xp.shape(obs)) == 2:
            after = 0.5 * batch["state_in"]["mean"] + 0.5 * obs
            return self._answer(params, after, after)
        keep = xp.expand_dims(1.0 - xp.astype(batch["resets"], obs.dtype), -1)

        def step(mean: Any, slices: Any) -> tuple[Any, Any]:
            mean = 0.5 * slices["keep"] * mean + 0.5 * slices["x"]
            return mean, mean

        xs = {"x": xp.permute_dims(obs, (1, 0, 2)), "keep": xp.permute_dims(keep, (1, 0, 2))}
        last, means = xp.scan(step, xp.astype(batch["state_in"]["mean"], obs.dtype), xs)
        return self._answer(params, xp.permute_dims(means, (1, 0, 2)), last)

    def _answer(self, params: Mapping[str, Any], x: Any, last: Any) -> dict[str, Any]:
        return {
            "action_dist_inputs": self.xp.linear(x, params["pi"]),
            "vf_preds": self.xp.squeeze(self.xp.linear(x, params["vf"]), -1),
            "state_out": {"mean": last},
        }


def test_a_users_own_memory_trains_and_starts_from_what_it_was_sampled_with(training_backend_name: str) -> None:
    config = _config(training_backend_name, num_epochs=1, minibatch_size=48, burn_in=0, use_kl_loss=True)
    config.rl_module(rl_module_spec=lc.RLModuleSpec(LeakyModule), model={})
    with config.build() as algo:
        for _ in range(2):
            results = algo.train()["learners"][MID]
            # One step on the whole batch, with the weights that it was sampled with.
            assert abs(results["approx_kl"]) < 1e-6 and abs(results["mean_kl"]) < 1e-6
            assert results["gradient_norm"] > 0.0
        assert algo.evaluate(3)["num_episodes"] == 3


class DoorEnv(gym.Env):
    """Only the action that the clock says is allowed; anything else raises."""

    def __init__(self) -> None:
        self.observation_space = spaces.Dict(
            observations=spaces.Box(-1, 1, (2,), np.float32), action_mask=spaces.MultiBinary(5)
        )
        self.action_space = spaces.MultiDiscrete([2, 3])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.clock = 0
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        if not (self.mask[action[0]] and self.mask[2 + action[1]]):
            raise ValueError(f"{action} is forbidden")
        self.clock += 1
        return self._observe(), 1.0, self.clock == 7, False, {}

    def _observe(self) -> Any:
        self.mask = self.np_random.uniform(size=5) < 0.5
        self.mask[[self.clock % 2, 2 + self.clock % 3]] = True
        return {"observations": self.np_random.uniform(-1, 1, 2).astype(np.float32), "action_mask": self.mask}


@pytest.mark.parametrize("recurrent", [None, "gru"])
def test_no_forbidden_action_is_taken_in_training_or_evaluation(
    training_backend_name: str, recurrent: str | None, tmp_path: Any
) -> None:
    config = _config(training_backend_name).environment(lambda env_config: DoorEnv())
    memory = {"recurrent": recurrent, "recurrent_size": 3} if recurrent else {}
    config.rl_module(model={"hidden": [4], **memory})
    if not recurrent:
        config.training(max_seq_len=16, burn_in=0)
    with config.build() as algo:
        for _ in range(2):
            results = algo.train()["learners"][MID]
            assert np.isfinite(results["total_loss"]) and results["entropy"] < np.log(6)
        assert algo.evaluate(4)["episode_return_mean"] == 7.0
        algo.save(tmp_path / "checkpoint")
        with lc.Algorithm.from_checkpoint(tmp_path / "checkpoint", env=lambda env_config: DoorEnv()) as again:
            assert same_tree(algo.runner.sample(5).columns, again.runner.sample(5).columns)
