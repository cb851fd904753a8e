"""A user's own torch.nn.Module in a learner: what moves, what stays, what compiles, what is refused."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import nn

import learner_core as lc
from learner_core import RLModuleSpec
from learner_core.errors import ConfigError, StateError
from learner_core_algorithms import BCConfig, PPOConfig
from learner_core_torch import xp

from support.user_networks import factory

OBS = Box(-5, 5, (6,), np.float32)
ACTIONS = Discrete(3)


class Net(nn.Module):
    """A policy and values, with batch normalisation, a frozen layer and a constant of its own."""

    def __init__(self, hidden: int = 8) -> None:
        super().__init__()
        self.first = nn.Linear(6, hidden)
        self.first.requires_grad_(False)
        self.norm = nn.BatchNorm1d(hidden)
        self.pi = nn.Linear(hidden, 3)
        self.vf = nn.Linear(hidden, 1)
        self.register_buffer("scale", torch.full((6,), 0.5), persistent=False)

    def forward(self, obs: Any) -> Any:
        x = torch.tanh(self.norm(self.first(obs * self.scale)))
        return self.pi(x), self.vf(x)


class Cart(nn.Module):
    def __init__(self, observation_space: Any, action_space: Any, width: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(observation_space.shape[0], width), nn.Tanh())
        self.pi, self.vf = nn.Linear(width, int(action_space.n)), nn.Linear(width, 1)

    def forward(self, obs: Any) -> Any:
        x = self.body(obs)
        return {"action_dist_inputs": self.pi(x), "vf_preds": self.vf(x).squeeze(-1)}


def spec(module_class: Any, space: Any = OBS, **model: Any) -> RLModuleSpec:
    return RLModuleSpec(module_class=module_class, observation_space=space, action_space=ACTIONS, model=model)


def learner(module_class: Any, *, space: Any = OBS, config: Any = None, **framework: Any) -> Any:
    config = config or PPOConfig().training(train_batch_size=32, minibatch_size=16, num_epochs=2, lr=1e-2)
    config = config.framework("torch", **{"compile": False, **framework})
    return config.rl_module(rl_module_spec=spec(module_class, space)).build_learner()


def batch(space: Any = OBS, rows: int = 30) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "obs": rng.normal(size=(rows, *space.shape)).astype(np.float32),
        "actions": rng.integers(0, 3, rows),
        "advantages": rng.normal(size=rows),
        "value_targets": rng.normal(size=rows),
        "action_logp": np.full(rows, -1.1),
        "action_dist_inputs": np.zeros((rows, 3)),
        "vf_preds": np.zeros(rows),
    }


def weights_of(learner: Any) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = learner.get_module_state()["default_policy"]
    return found


def test_only_what_may_move_moves() -> None:
    one = learner(Net)
    before, state = weights_of(one), one.get_state()
    assert "first.weight" not in state["optimizer"]["default_policy"]["default"]["slots"]["m"]
    assert set(state["buffers"]["default_policy"]) == {"norm.running_mean", "norm.running_var"}
    one.update_from_batch(batch=batch())
    moved = {name for name, value in weights_of(one).items() if not np.array_equal(value, before[name])}
    assert moved == set(before) - {"first.weight", "first.bias"}


def test_everything_frozen_is_no_error() -> None:
    class Frozen(Net):
        def __init__(self) -> None:
            super().__init__()
            self.requires_grad_(False)

    one = learner(Frozen)
    before = weights_of(one)
    one.update_from_batch(batch=batch())
    for name, value in weights_of(one).items():
        assert np.array_equal(value, before[name]) == (not name.startswith("norm.running"))


def test_an_instance_is_copied_and_its_values_are_the_start() -> None:
    network = Net()
    values = {name: value.clone() for name, value in network.state_dict().items()}
    one = learner(network)
    np.testing.assert_array_equal(weights_of(one)["pi.weight"], values["pi.weight"].numpy())
    one.update_from_batch(batch=batch())
    assert network.training
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, values[name], rtol=0, atol=0)


def test_a_class_starts_from_the_configured_seed_alone() -> None:
    torch.manual_seed(1)
    first = weights_of(learner(Net))
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    second = weights_of(learner(Net))
    assert torch.equal(before, torch.random.get_rng_state())
    third = weights_of(learner(Net, config=PPOConfig().training(train_batch_size=32).debugging(seed=1)))
    np.testing.assert_array_equal(first["pi.weight"], second["pi.weight"])
    assert not np.array_equal(first["pi.weight"], third["pi.weight"])


#: Each compiles for half a minute: one in the fast tier.
COMPILED = ["image and vector", *(pytest.param(name, marks=pytest.mark.slow) for name in ("own", "lstm"))]


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_and_eager_agree(name: str) -> None:
    if name == "own":
        made, space, config, data = Net, OBS, None, batch()
    else:
        from support.user_networks import CASES, observations

        made, space = factory("torch", name), CASES[name]
        config = BCConfig().training(train_batch_size=32, minibatch_size=16, num_epochs=2, lr=1e-2)
        data = {"obs": observations(name, 30), "actions": np.arange(30) % 3}
    eager, compiled = (learner(made, space=space, config=config and config.copy(), compile=c) for c in (False, True))
    compiled.set_state(eager.get_state())
    for _ in range(2):
        eager.update_from_batch(batch=data)
        assert compiled.update_from_batch(batch=data)["__all__"]["compiled"] == 1.0
    for key, value in weights_of(compiled).items():
        np.testing.assert_allclose(value, weights_of(eager)[key], rtol=1e-4, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
def test_other_precisions(precision: str) -> None:
    one = learner(Cart_for_six, precision=precision)
    result = one.update_from_batch(batch=batch())["default_policy"]
    assert np.isfinite(result["total_loss"])
    assert weights_of(one)["pi.weight"].dtype == (np.float64 if precision == "float64" else np.float32)


def Cart_for_six() -> nn.Module:
    return Cart(OBS, ACTIONS)


def test_a_state_goes_back_and_weights_are_strict() -> None:
    one, other = learner(Net), learner(Net)
    one.update_from_batch(batch=batch())
    other.set_state(one.get_state())
    np.testing.assert_array_equal(weights_of(one)["norm.running_var"], weights_of(other)["norm.running_var"])
    one.update_from_batch(batch=batch())
    other.update_from_batch(batch=batch())
    for name, value in weights_of(one).items():
        np.testing.assert_array_equal(value, weights_of(other)[name])
    part = weights_of(one)
    part["norm.running_var"] = part["norm.running_var"][:3]
    with pytest.raises(StateError, match=r"rl_module/default_policy/norm\.running_var: expected shape \(8,\)"):
        other.set_module_state({"default_policy": part})


def test_tied_parameters_are_one_and_stay_tied() -> None:
    config = BCConfig().training(train_batch_size=32, lr=1e-1)
    one = learner(factory("torch", "tied"), space=Discrete(3), config=config)
    assert list(weights_of(one)) == ["table.weight", "twice.weight", "twice.bias"]
    one.update_from_batch(batch={"obs": np.arange(30) % 3, "actions": (np.arange(30) + 1) % 3})
    native = one.blueprint.modules["default_policy"].export_native(weights_of(one))
    np.testing.assert_array_equal(native["out.weight"], native["table.weight"])
    np.testing.assert_array_equal(native["again.weight"], native["twice.weight"])


def test_columns_follow_the_way_an_element_went() -> None:
    """Flattened channels first, pooled, joined with a vector: every column finds its place."""
    module = spec(factory("torch", "padded convolution"), Box(-5, 5, (9, 8, 4), np.float32)).build(xp)
    fresh = module.init(np.random.default_rng(0))["pi.weight"]
    native = module.export_native({**module.init(np.random.default_rng(0))})["pi.weight"]
    maps = native.reshape(3, 6, 5, 4)  # outputs, channels, height, width
    np.testing.assert_array_equal(fresh, maps.transpose(0, 2, 3, 1).reshape(3, -1))


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.core = nn.LSTM(6, 4, num_layers=2, batch_first=True, bidirectional=True, dropout=0.5)
        self.narrow = nn.LSTM(8, 8, proj_size=4, batch_first=True)
        self.mix = nn.Parameter(torch.ones(4, 3))
        self.group = nn.GroupNorm(2, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, obs: Any) -> Any:
        return self.drop(self.group(self.narrow(self.core(obs[:, None])[0])[0][:, 0])) @ self.mix


def test_what_cannot_move_is_named() -> None:
    with pytest.warns(UserWarning) as caught:
        module = spec(TwoLayers).build(xp)
    assert module.not_portable["core.weight_ih_l1"].startswith("bidirectional LSTM of 2 layers")
    assert module.not_portable["narrow.weight_hr_l0"] == "LSTM with projections"
    assert "dropout between its layers" in module.not_resumable["core"]
    assert "no other framework's layer is known for GroupNorm" in module.not_portable["group.weight"]
    assert "layout" in module.not_portable["mix"]
    assert "drop" in module.not_resumable
    assert any("not portable" in str(w.message) for w in caught)
    assert any("not bit-resumable" in str(w.message) for w in caught)


def Wrong(kind: str) -> Any:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pi = nn.Linear(6, 4 if kind == "size" else 3)

        def forward(self, obs: Any) -> Any:
            out = self.pi(obs)
            return {"three": (out, out, out), "dict": {"logits": out}, "text": "out"}.get(kind, out)

    return Network


@pytest.mark.parametrize(
    ("module_class", "text"),
    [
        (Wrong("size"), r"shape \(2, 4\) for two observations, expected \(2, 3\)"),
        (Wrong("three"), "returned 3 values"),
        (Wrong("dict"), "no 'action_dist_inputs', only \\['logits'\\]"),
        (Wrong("text"), "returned str"),
        (lambda depth: Net(), "needs the argument 'depth'"),
        (lambda: "no network", "made an object of type builtins.str"),
        (object, "builtins.object is neither an RLModule subclass nor"),
        (3, "an object of type builtins.int"),
        (lambda: nn.Linear(7, 3), r"forward\(obs\) failed on two observations"),
    ],
)
def test_refusals_name_what_came(module_class: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        spec(module_class).build(xp)


def test_a_policy_without_values_is_refused_by_ppo_and_fine_for_bc() -> None:
    with pytest.raises(ConfigError, match=r"needs 'vf_preds' as well. Return \(action_dist_inputs, vf_preds\)"):
        learner(Wrong(""))
    learner(Wrong(""), config=BCConfig())


def test_factories_get_what_their_signature_names() -> None:
    got: dict[str, Any] = {}

    def make(observation_space: Any, *, width: int, activation: str = "tanh", depth: int = 3) -> nn.Module:
        got.update(observation_space=observation_space, width=width, activation=activation, depth=depth)
        return Net()

    spec(make, width=32, activation="relu", unknown=1).build(xp)
    assert got == {"observation_space": OBS, "width": 32, "activation": "relu", "depth": 3}


def test_numpy_inference_is_refused_with_the_way_out() -> None:
    from learner_core import numpy_xp
    from learner_core.sampling.numpy_backend import choose_inference

    assert choose_inference(spec(Net)) == "backend"
    shell = spec(Net).build(numpy_xp)
    assert shell.get_train_action_dist_cls().input_size(ACTIONS) == 3
    with pytest.raises(ConfigError, match=r"inference='backend'"):
        shell.forward_train({}, {"obs": np.zeros((1, 6))})


def test_a_whole_run_with_a_checkpoint(tmp_path: Path) -> None:
    config = (
        PPOConfig()
        .framework("torch", compile=False)
        .environment("CartPole-v1")
        .env_runners(num_envs_per_env_runner=2)
        .training(train_batch_size=64, minibatch_size=32, num_epochs=1)
        .rl_module(rl_module_spec=RLModuleSpec(module_class=Cart, model={"width": 8}))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with config.build() as one:
            one.train()
            one.save(tmp_path / "a.lcstate")
            expected = one.train()["learners"]["default_policy"]["total_loss"]
            assert one.evaluate(2)["num_episodes"] == 2
        with lc.Algorithm.from_checkpoint(
            tmp_path / "a.lcstate", rl_module_spec=RLModuleSpec(Cart, model={"width": 8})
        ) as two:
            assert two.train()["learners"]["default_policy"]["total_loss"] == expected
