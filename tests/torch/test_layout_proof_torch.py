"""Networks with reordered maps are tried with random numbers at build: what that finds, leaves alone and cannot do."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import nn
from torch.nn import functional as F

from learner_core import RLModuleSpec
from learner_core.learning import element_order as rules, layout_proof
from learner_core.learning.element_order import Elements
from learner_core_torch import xp

MAPS = Box(-5, 5, (6, 5, 4), np.float32)


class Flat(nn.Module):
    """What stands between a convolution and the head is a function; the head reads ``size`` features."""

    def __init__(self, between: Callable[[Any], Any], size: int = 36) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.pi = nn.Linear(size, 3)
        self.between = between

    def forward(self, obs: Any) -> Any:
        return self.pi(self.between(torch.tanh(self.norm(self.conv(obs.permute(0, 3, 1, 2))))))


def build(network: nn.Module) -> Any:
    spec = RLModuleSpec(module_class=network, observation_space=MAPS, action_space=Discrete(3))
    return spec.build(xp)


def flatten(x: Any) -> Any:
    return x.flatten(1)


def test_what_holds_is_portable() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = build(Flat(flatten))
    assert module.not_portable == {}
    assert module.not_proved == ""


def test_a_wrong_rule_for_reshapes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "reshaped", lambda elements, shape: rules.fresh(shape))
    with pytest.warns(
        UserWarning, match=r"not portable: pi\.bias: Linear pi: .* random numbers, it differs; pi\.weight"
    ):
        module = build(Flat(flatten))
    assert set(module.not_portable) == {"pi.weight", "pi.bias"}


def test_a_wrong_rule_for_reductions_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def turned(elements: Elements, axes: Any, *, keepdims: bool) -> Elements:
        numbers = elements.numbers.min(tuple(axes), keepdims=keepdims)[..., ::-1]
        return Elements(np.argsort(np.argsort(numbers.reshape(-1))).reshape(numbers.shape))

    monkeypatch.setattr(rules, "reduced", turned)
    with pytest.warns(UserWarning, match="Linear pi"):
        assert "pi.weight" in build(Flat(lambda x: x.mean(2).flatten(1), 9)).not_portable


def test_a_wrong_order_of_columns_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = rules.mixed

    def reversed_columns(*args: Any) -> tuple[np.ndarray, Elements]:
        order, made = right(*args)
        return order[::-1].copy(), made

    monkeypatch.setattr(rules, "mixed", reversed_columns)
    with pytest.warns(UserWarning, match="Linear pi"):
        assert set(build(Flat(flatten)).not_portable) == {"pi.weight", "pi.bias"}


def test_a_constant_on_flattened_maps_is_found() -> None:
    """It is not in the state: a network channels last would multiply other elements by it."""
    with pytest.warns(UserWarning, match="action_dist_inputs: mul: .* it differs"):
        build(Flat(lambda x: x.flatten(1) * torch.linspace(0.0, 1.0, 36)))


def test_a_weight_that_two_layers_use_on_different_orders_is_found() -> None:
    """The state has one order for it; the layer that reads no maps would need another one."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 3, 3)
            self.one, self.other, self.pi = nn.Linear(36, 36), nn.Linear(36, 36, bias=False), nn.Linear(36, 3)
            self.other.weight = self.one.weight

        def forward(self, obs: Any) -> Any:
            x = torch.tanh(self.one(self.conv(obs.permute(0, 3, 1, 2)).flatten(1)))
            return self.pi(torch.tanh(self.other(x)))

    with pytest.warns(UserWarning, match=r"not portable: one\.weight: Linear other: .* it differs$"):
        assert set(build(Shared()).not_portable) == {"one.weight"}


def test_the_maps_of_a_decoder_are_stored_channels_last() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Linear(120, 12)
            self.up = nn.ConvTranspose2d(2, 3, 2)
            self.pi = nn.Linear(36, 3)

        def forward(self, obs: Any) -> Any:
            maps = torch.tanh(self.features(obs.flatten(1))).view(-1, 2, 2, 3)
            return self.pi(self.up(maps).flatten(1))

    network = Decoder()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = build(network)
    # Rows of features count [2, 2, 3] channels first, in the state [2, 3, 2]: its first two are the first place's.
    stored = module.init(np.random.default_rng(0))["features.bias"]
    bias = network.features.bias.detach().numpy().reshape(2, 2, 3)
    np.testing.assert_array_equal(stored, bias.transpose(1, 2, 0).ravel())
    native = module.export_native(module.init(np.random.default_rng(0)))
    for name, value in network.state_dict().items():
        np.testing.assert_array_equal(native[name], value.numpy())


@pytest.mark.parametrize(
    ("between", "size", "reason"),
    [
        (lambda x: x.flatten(1) + torch.randn(36), 36, "randn: it draws random numbers"),
        (lambda x: F.dropout(x, 0.5, training=True).flatten(1), 36, "it draws random numbers"),
        (lambda x: F.pixel_shuffle(F.pad(x, (0, 0, 0, 0, 0, 1)), 2).flatten(1), 48, "pixel_shuffle: "),
    ],
)
def test_what_cannot_be_tried_is_said(between: Callable[[Any], Any], size: int, reason: str) -> None:
    with pytest.warns(UserWarning, match=f"is portable as far as it can be read, not tried: .*{reason}"):
        module = build(Flat(between, size))
    assert module.not_portable == {}
    assert reason in module.not_proved


def test_a_large_network_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout_proof, "_MAX_WEIGHTS", 100)
    with pytest.warns(UserWarning, match="not tried: it has [0-9]+ weights, more than 100"):
        assert build(Flat(flatten)).not_portable == {}


def test_nothing_is_changed_by_it() -> None:
    network = Flat(flatten)
    network.pi(torch.ones(36)).sum().backward()
    network.train()
    network.norm.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    gradient, modes = network.pi.weight.grad.clone(), [m.training for m in network.modules()]
    states = torch.get_rng_state(), random.getstate(), torch.get_default_dtype()
    module = build(network)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert torch.get_default_dtype() == states[2]
    for owner in (network, module.network):
        assert all(torch.equal(value, before[name]) for name, value in owner.state_dict().items())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in owner.modules())
    assert [m.training for m in network.modules()] == modes
    assert module.network.training
    assert network.pi.weight.grad.equal(gradient)
    assert network.pi.weight.dtype == torch.float32


def test_attention_in_heads_of_its_own_is_followed() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.all, self.pi = nn.Conv2d(4, 8, 3), nn.Linear(8, 24), nn.Linear(96, 3)

        def forward(self, obs: Any) -> Any:
            tokens = self.conv(obs.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
            q, k, v = (x.view(-1, 12, 2, 4).transpose(1, 2) for x in self.all(tokens).chunk(3, -1))
            return self.pi(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build(Heads()).not_portable == {}


def test_arrays_written_in_place_are_followed() -> None:
    def between(x: Any) -> Any:
        return F.relu(x.flatten(1), inplace=True).mul_(2.0)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build(Flat(between)).not_portable == {}
