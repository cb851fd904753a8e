"""``torch.inference_mode()`` around a learner: updates are refused, everything else leaves it fit to train."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import nn

import learner_core as lc
from learner_core_algorithms import BCConfig, PPOConfig

from support.learners import states_differ

OBS, ACTIONS = Box(-5, 5, (4,), np.float32), Discrete(3)
SAID = r"no gradients can be taken of the losses of default_policy: torch\.inference_mode\(\) is on"


class Cut(nn.Module):
    """Computes its policy in inference mode."""

    def __init__(self) -> None:
        super().__init__()
        self.pi = nn.Linear(4, 3)

    def forward(self, obs: Any) -> Any:
        with torch.inference_mode():
            return self.pi(obs)


def config(**learners: Any) -> Any:
    made = BCConfig().framework("torch", compile=False).training(train_batch_size=16, minibatch_size=8, lr=1e-2)
    made.rl_module(model={"hidden": [8]}, rl_module_spec=lc.RLModuleSpec(observation_space=OBS, action_space=ACTIONS))
    return made.learners(**learners)


def batch() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {"obs": rng.normal(size=(16, 4)).astype(np.float32), "actions": rng.integers(0, 3, 16)}


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_update_is_refused_and_changes_nothing(compile: bool) -> None:
    learner = config().framework("torch", compile=compile).build_learner()
    before = learner.get_state()
    with torch.inference_mode(), pytest.raises(lc.ConfigError, match=SAID):
        learner.update_from_batch(batch=batch(), timesteps={"num_env_steps_sampled_lifetime": 16})
    assert not states_differ(before, learner.get_state())
    learner.update_from_batch(batch=batch())
    assert states_differ(before, learner.get_state())


def test_a_group_and_an_algorithm_refuse_it_too() -> None:
    with config().build_learner_group() as group, torch.inference_mode(), pytest.raises(lc.ConfigError, match=SAID):
        group.update_from_batch(batch=batch())
    cart = PPOConfig().framework("torch", compile=False).environment("CartPole-v1").rl_module(model={"hidden": [8]})
    cart.training(train_batch_size=32, minibatch_size=32, num_epochs=1).env_runners(num_envs_per_env_runner=2)
    with cart.build() as algo:
        with torch.inference_mode(), pytest.raises(lc.ConfigError, match=SAID):
            algo.train()
        assert algo.train()["learners"]["default_policy"]["total_loss"] != 0.0


def test_what_was_built_and_restored_in_it_can_be_trained_outside() -> None:
    outside = config().build_learner()
    with torch.inference_mode():
        inside = config().build_learner()
        inside.set_state(outside.get_state())
        inside.set_module_state(outside.get_module_state())
    for learner in (inside, outside):
        learner.update_from_batch(batch=batch())
    assert not states_differ(inside.get_state(), outside.get_state())


def test_a_network_that_computes_in_it_is_named_at_build() -> None:
    own = BCConfig().framework("torch", compile=False).rl_module(rl_module_spec=lc.RLModuleSpec(Cut, OBS, ACTIONS))
    with pytest.raises(lc.ConfigError, match="the loss of module 'default_policy' reaches none of its parameters"):
        own.build_learner()
