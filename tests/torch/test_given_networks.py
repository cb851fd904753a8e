"""Torch's own kinds of modules in ``module_class``: they work, or are refused in words with what to give instead."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import nn

import learner_core as lc
from learner_core.errors import ConfigError
from learner_core_algorithms import PPOConfig

from support.learners import ppo_batch

MID = "default_policy"
OBS, ACTIONS = Box(-1, 1, (3,)), Discrete(2)


class Network(nn.Module):
    """Policy and value over one hidden layer, which is given."""

    def __init__(self, hidden: nn.Module | None = None) -> None:
        super().__init__()
        self.body = hidden if hidden is not None else nn.Linear(3, 5)
        self.pi, self.vf = nn.Linear(5, 2), nn.Linear(5, 1)

    def forward(self, obs: torch.Tensor) -> Any:
        hidden = torch.tanh(self.body(obs))
        return self.pi(hidden), self.vf(hidden)


def lazy_network() -> nn.Module:
    return Network(nn.LazyLinear(5))


def build(network: Any) -> Any:
    spec = lc.RLModuleSpec(network, observation_space=OBS, action_space=ACTIONS)
    config = PPOConfig().framework("torch", compile=False).training(train_batch_size=8, minibatch_size=4)
    return config.rl_module(rl_module_spec=spec).build_learner()


@pytest.mark.parametrize("given", [lazy_network, lazy_network()], ids=["function", "instance"])
def test_lazy_layers_take_their_sizes_from_the_observations(given: Any) -> None:
    learner = build(given)
    before = learner.get_module_state()[MID]
    assert before["body.weight"].shape == (5, 3) and np.abs(before["body.weight"]).max() > 0.01
    assert learner.update_from_batch(batch=ppo_batch(8, ACTIONS))[MID]["num_minibatch_steps"] > 0
    assert not np.array_equal(learner.get_module_state()[MID]["body.weight"], before["body.weight"])


def test_a_function_with_lazy_layers_starts_from_the_seed_alone() -> None:
    first, second = (build(lazy_network).get_module_state()[MID] for _ in range(2))
    for name, value in first.items():
        np.testing.assert_array_equal(second[name], value)


def test_a_compiled_network_is_the_one_inside() -> None:
    network = Network()
    learner = build(torch.compile(network))
    assert sorted(learner.get_module_state()[MID]) == sorted(network.state_dict())
    np.testing.assert_array_equal(learner.get_module_state()[MID]["pi.weight"], network.pi.weight.detach().numpy())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.DataParallel(Network()), r"is a DataParallel: give the network in it, its \.module"),
        (lambda: Network(nn.DataParallel(nn.Linear(3, 5))), "layer 'body' is a DataParallel"),
        (lambda: torch.jit.script(Network()), "is a ScriptModule: give the nn.Module that it was made from"),
        (lambda: torch.jit.trace(Network(), torch.zeros(2, 3)), "is a ScriptModule"),
        (lambda: Network(torch.jit.script(nn.Linear(3, 5))), "layer 'body' is a ScriptModule"),
        (lambda: Network(nn.Linear(3, 5, device="meta")), "'body.weight' is on the device 'meta'"),
        (lambda: torch.export.export(Network(), (torch.zeros(2, 3),)), "is an exported program: give the nn.Module"),
        (
            lambda: torch.ao.quantization.quantize_dynamic(Network(), {nn.Linear}, dtype=torch.qint8),
            "layer 'body' is quantized .*: give the network in float",
        ),
    ],
)
def test_what_cannot_be_trained_says_what_to_give(make: Any, words: str) -> None:
    given = make()
    with pytest.raises(ConfigError, match=words):
        build(given)


def test_a_function_that_makes_one_is_refused_alike() -> None:
    with pytest.raises(ConfigError, match="is a DataParallel"):
        build(lambda: nn.DataParallel(Network()))


def test_a_function_that_raises_is_named() -> None:
    def broken() -> nn.Module:
        raise KeyError("sizes")

    with pytest.raises(ConfigError, match=r"broken raised KeyError: 'sizes'") as refused:
        build(broken)
    assert isinstance(refused.value.__cause__, KeyError)


class OfTwo(Network):
    """Takes two observations and no other number."""

    def forward(self, obs: torch.Tensor) -> Any:
        return super().forward(obs.reshape(2, 3))


def test_a_network_of_one_number_of_rows_is_refused_when_it_is_built() -> None:
    with pytest.raises(ConfigError, match=r"forward\(obs\) failed on three observations of Box.*RuntimeError: shape"):
        build(OfTwo())
