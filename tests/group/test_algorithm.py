"""An Algorithm whose learners are processes: it samples, trains, saves, and goes on with another number of them."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

import learner_core as lc
from learner_core_algorithms import PPOConfig


def _config(num_learners: int) -> Any:
    config = PPOConfig().environment("CartPole-v1").framework("torch")
    config.training(train_batch_size=256, minibatch_size=64, num_epochs=2).rl_module(model={"hidden": [16]})
    return config.learners(num_learners=num_learners, collective="torch")


def test_two_learners_train_as_one_and_the_checkpoint_goes_on_with_one(tmp_path: Any) -> None:
    with _config(1).build() as one, _config(2).build() as two:
        for _ in range(2):
            one.train()
            results = two.train()
        assert results["learners"]["default_policy"]["num_minibatch_steps"] == 8.0
        for name, value in one.learner_group.get_weights()["default_policy"].items():
            np.testing.assert_allclose(two.learner_group.get_weights()["default_policy"][name], value, atol=2e-6)
        two.save(tmp_path / "checkpoint")
        two.train()
        expected = two.learner_group.get_weights()["default_policy"]
    with lc.Algorithm.from_checkpoint(tmp_path / "checkpoint", num_learners=1) as resumed:
        resumed.train()
        for name, value in resumed.learner_group.get_weights()["default_policy"].items():
            np.testing.assert_allclose(expected[name], value, atol=2e-6)
    assert "torch" not in sys.modules
