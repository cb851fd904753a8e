"""Environments that answer in Torch's tensors, as batched simulators do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from learner_core.config.foreign_arrays import ArrayForm, as_numpy
from learner_core.errors import EnvOutputError
from learner_core_algorithms import PPOConfig, SACConfig

from support.told import Told, told_to
from support.vector_envs import Clocks, own_reset_modes


def _config(env: Any) -> Any:
    config = PPOConfig().environment(env).framework("torch", compile=False).rl_module(model={"hidden": [4]})
    return config.training(train_batch_size=24, minibatch_size=12, num_epochs=1)


@pytest.mark.parametrize("mode", own_reset_modes(), ids=lambda mode: mode.value)
def test_a_vector_in_tensors(mode: Any) -> None:
    def make(env_config: Any) -> Any:
        return Clocks(torch.as_tensor, torch.Tensor, mode)

    for env in (make, make({})):
        with _config(env).build() as algo:
            algo.learner_group.set_weights(told_to(algo.learner_group.get_weights(), 1))
            results = algo.train()["env_runners"]
            assert results["episode_return_mean"] == results["episode_len_mean"] > 3.0
    with _config(make).build() as algo:
        assert [e.episode_length for e in algo.runner.evaluate(4)] == [3, 4, 3, 4]


class TorchTold(Told):
    """Tensors that carry gradients, an action in a tensor; of a Box if ``continuous``."""

    def reset(self, **options: Any) -> Any:
        obs, info = super().reset(**options)
        return torch.tensor(obs, requires_grad=True), info

    def step(self, action: Any) -> Any:
        assert isinstance(action, torch.Tensor) and action.dtype in (torch.int64, torch.float32)
        obs, reward, terminated, truncated, info = super().step(action.numpy())
        return torch.tensor(obs), torch.tensor(reward), torch.tensor(terminated), torch.tensor(truncated), info


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_one_environment_in_tensors(vectorization: str) -> None:
    config = _config(lambda env_config: TorchTold())
    with config.env_runners(num_envs_per_env_runner=2, vectorization=vectorization).build() as algo:
        algo.learner_group.set_weights(told_to(algo.learner_group.get_weights(), 1))
        assert algo.train()["env_runners"]["episode_return_mean"] == 5.0


def test_sac_in_tensors() -> None:
    config = SACConfig().environment(lambda env_config: TorchTold(continuous=True)).framework("torch", compile=False)
    config.training(train_batch_size=4, learning_starts=4, timesteps_per_iteration=10, buffer_capacity=64)
    with config.rl_module(model={"hidden": [4]}).build() as algo:
        assert algo.train()["num_env_steps_sampled_lifetime"] >= 10


def test_a_dtype_that_numpy_does_not_have_is_refused_in_words() -> None:
    class Half(TorchTold):
        def reset(self, **options: Any) -> Any:
            obs, info = super().reset(**options)
            return obs.to(torch.bfloat16), info

    with pytest.raises(EnvOutputError, match=r"environment 0 of runner 0 .*observation is no array of numbers"):
        _config(lambda env_config: Half()).build()


def test_what_is_read_and_given() -> None:
    form = ArrayForm()
    obs, info = form.read(({"a": torch.ones(2), "b": (torch.tensor(3), 4)}, {}))
    assert type(obs["a"]) is np.ndarray and obs["a"].tolist() == [1.0, 1.0]
    assert type(obs["b"][0]) is np.ndarray and obs["b"][1] == 4 and info == {}
    action = np.arange(3)
    given = form.give(action)
    assert isinstance(given, torch.Tensor) and given.tolist() == [0, 1, 2]
    given[0] = 7
    assert action.tolist() == [0, 1, 2]  # a copy: the environment may write into it
    assert form.give({"x": np.float32(2)})["x"] == torch.tensor(2.0)
    assert as_numpy([torch.tensor([True])])[0].dtype == np.bool_
    plain = ArrayForm()
    for _ in range(3):
        assert plain.read(action) is action and plain.give(action) is action
