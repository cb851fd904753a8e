"""Every key of ``model`` through the public door: an effect, literal values, and the refusal of what has no use."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

import learner_core as lc
from learner_core import numpy_xp
from learner_core.errors import ConfigError
from learner_core.learning.actor_critic import ActorCriticModule, PolicyModule
from learner_core_algorithms import BCConfig, PPOConfig, SACConfig
from learner_core_algorithms.sac.module import SACModule

from support.told import Watched, make_wander, told

MID = "default_policy"
VECTOR = spaces.Box(-1, 1, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (6, 7, 3), np.uint8)
CUBE = spaces.Box(0, 255, (6, 6, 6), np.uint8)
PARTS = spaces.Dict({"goal": spaces.Discrete(4), "speed": VECTOR})
DISCRETE = spaces.Discrete(2)
BOX = spaces.Box(-1, 1, (2,), np.float32)
WHOLE = np.full((5, 3), 0.5, np.float32)


def module(kind: Any = ActorCriticModule, space: Any = VECTOR, actions: Any = BOX, **model: Any) -> Any:
    return kind(space, actions, {"hidden": [4], **model}, numpy_xp)


def weights(kind: Any = ActorCriticModule, space: Any = VECTOR, actions: Any = BOX, **model: Any) -> dict[str, Any]:
    found: dict[str, Any] = module(kind, space, actions, **model).init(np.random.default_rng(0))
    return found


def shapes(*arguments: Any, **model: Any) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in weights(*arguments, **model).items()}


def answers(*arguments: Any, **model: Any) -> Any:
    made = module(*arguments, **model)
    obs = WHOLE if made.observation_space is VECTOR else np.zeros((5, *made.observation_space.shape), np.uint8)
    params = {name: value + 0.5 for name, value in made.init(np.random.default_rng(0)).items()}
    return made.forward_train(params, {"obs": obs})["action_dist_inputs"].tolist()


def memory(**model: Any) -> Any:
    return module(recurrent="lstm", **model).initial_state()["pi_h"].shape


#: Key -> what two values of it make, different.
EFFECTS: dict[str, tuple[Any, Any]] = {
    "hidden": (shapes(hidden=[4]), shapes(hidden={"pi": [4], "vf": [5]})),
    "activation": (answers(activation="tanh"), answers(activation="relu")),
    "layer_norm": (answers(), answers(layer_norm=True)),
    "init": (weights()["pi.0.weight"].tolist(), weights(init="xavier_uniform")["pi.0.weight"].tolist()),
    "conv_filters": (shapes(PolicyModule, IMAGE), shapes(PolicyModule, IMAGE, conv_filters=[[2, 2, 2]])),
    "conv_activation": (
        answers(PolicyModule, IMAGE, conv_activation="relu"),
        answers(PolicyModule, IMAGE, conv_activation="sigmoid"),
    ),
    "image_layout": (shapes(space=CUBE, image_layout="HWC"), shapes(space=CUBE, image_layout="flat")),
    "encoders": (shapes(space=PARTS), shapes(space=PARTS, encoders={"goal": {"embedding": 3}})),
    "free_log_std": (shapes(), shapes(free_log_std=False)),
    "log_std_init": (weights()["log_std"].tolist(), weights(log_std_init=-1.0)["log_std"].tolist()),
    "log_std_range": (answers(), answers(log_std_range=[-0.1, 0.1])),
    "recurrent": (shapes(), shapes(recurrent="gru")),
    "recurrent_size": (memory(), memory(recurrent_size=3)),
    "use_prev_action": (shapes(recurrent="gru"), shapes(recurrent="gru", use_prev_action=True)),
    "use_prev_reward": (shapes(recurrent="gru"), shapes(recurrent="gru", use_prev_reward=True)),
    "vf_share_layers": (shapes(), shapes(vf_share_layers=True)),
    "policy_reads": (shapes(space=PARTS), shapes(space=PARTS, policy_reads=["goal"])),
    "twin_q": (shapes(SACModule), shapes(SACModule, twin_q=False)),
}


def test_every_key_has_an_effect() -> None:
    known = {*PolicyModule.model_keys, *ActorCriticModule.model_keys, *SACModule.model_keys}
    assert known == set(EFFECTS)
    for key, (first, second) in EFFECTS.items():
        assert first != second, key


def build(config: Any, space: Any, actions: Any, **model: Any) -> dict[str, np.ndarray]:
    config.environment(observation_space=space, action_space=actions).rl_module(model=model)
    state: dict[str, np.ndarray] = config.build_learner().get_module_state()[MID]
    return state


def config_of(kind: Any, backend: str) -> Any:
    return kind().framework(backend, compile=False).debugging(seed=0)


# ---- sizes of each network -------------------------------------------------------------------------------------------


def test_networks_have_sizes_of_their_own(training_backend_name: str) -> None:
    got = build(config_of(PPOConfig, training_backend_name), VECTOR, DISCRETE, hidden={"pi": [5, 4], "vf": [6]})
    assert {name: value.shape for name, value in got.items() if name.endswith("weight")} == {
        "pi.0.weight": (5, 3), "pi.1.weight": (4, 5), "pi.2.weight": (2, 4),
        "vf.0.weight": (6, 3), "vf.1.weight": (1, 6),
    }  # fmt: skip
    got = build(config_of(SACConfig, training_backend_name), VECTOR, BOX, hidden={"pi": [5], "qf": [6, 7]})
    assert {name: value.shape for name, value in got.items() if name.endswith("weight")} == {
        "pi.0.weight": (5, 3), "pi.1.weight": (4, 5),
        "qf.0.weight": (6, 5), "qf.1.weight": (7, 6), "qf.2.weight": (1, 7),
        "qf_twin.0.weight": (6, 5), "qf_twin.1.weight": (7, 6), "qf_twin.2.weight": (1, 7),
    }  # fmt: skip
    got = build(config_of(BCConfig, training_backend_name), VECTOR, DISCRETE, hidden={"pi": [5]})
    assert got["pi.0.weight"].shape == (5, 3)


def test_shared_layers_may_have_networks_behind_them(training_backend_name: str) -> None:
    model = {"vf_share_layers": True, "hidden": {"encoder": [8], "pi": [], "vf": [6]}}
    got = build(config_of(PPOConfig, training_backend_name), VECTOR, DISCRETE, **model)
    assert {name: value.shape for name, value in got.items() if name.endswith("weight")} == {
        "encoder.0.weight": (8, 3), "pi.0.weight": (2, 8), "vf.0.weight": (6, 8), "vf.1.weight": (1, 6)
    }  # fmt: skip
    # As ever: the sizes are the encoder's.
    assert shapes(vf_share_layers=True, actions=DISCRETE)["pi.0.weight"] == (2, 4)
    assert shapes(vf_share_layers=True, recurrent="gru", hidden={"encoder": [8], "pi": [5], "vf": []}) == {
        **shapes(vf_share_layers=True, recurrent="gru", hidden=[8]),
        "pi.0.weight": (5, 64), "pi.0.bias": (5,), "pi.1.weight": (2, 5), "pi.1.bias": (2,),
    }  # fmt: skip


def test_other_settings_may_differ_too(training_backend_name: str) -> None:
    model = {"layer_norm": {"qf": True}, "activation": {"pi": "tanh"}, "init": {"qf": "xavier_uniform"}, "hidden": [4]}
    got = build(config_of(SACConfig, training_backend_name), VECTOR, BOX, **model)
    assert [name for name in got if "norm" in name and name.endswith("weight")] == [
        "qf.norm.0.weight",
        "qf_twin.norm.0.weight",
    ]
    assert not got["qf.0.bias"].any() and got["pi.0.bias"].any()  # SAC's default, for the policy, is Torch's


# ---- initial weights -------------------------------------------------------------------------------------------------


@pytest.mark.fast_on_torch
@pytest.mark.parametrize("init", [None, "orthogonal", "uniform", "xavier_uniform", "kaiming_uniform", "he_uniform"])
def test_initial_weights(training_backend_name: str, init: str | None) -> None:
    model = {"hidden": [64, 64], **({} if init is None else {"init": init})}
    space = spaces.Box(-1, 1, (32,), np.float32)
    got = build(config_of(PPOConfig, training_backend_name), space, spaces.Discrete(4), **model)
    biases = [value for name, value in got.items() if name.endswith("bias")]
    assert all(not bias.any() for bias in biases) == (init != "uniform")
    if init in (None, "orthogonal"):  # the default: SB3's and CleanRL's gains
        for name, gain in (("pi.0", math.sqrt(2)), ("pi.1", math.sqrt(2)), ("pi.2", 0.01), ("vf.2", 1.0)):
            np.testing.assert_allclose(np.linalg.svd(got[f"{name}.weight"])[1], gain, rtol=1e-5)
        return
    bounds = {"uniform": (1 / 64, 1 / 64), "xavier_uniform": (6 / 128, 6 / 68)}.get(init, (6 / 64, 6 / 64))
    for name, bound, gain in (("pi.1", bounds[0], 1.0), ("pi.2", bounds[1], 0.01)):
        largest = np.abs(got[f"{name}.weight"]).max()
        assert 0.9 * gain * math.sqrt(bound) < largest <= gain * math.sqrt(bound) * (1 + 1e-6)
    if init != "uniform":
        assert np.abs(got["vf.2.weight"]).max() > 10 * np.abs(got["pi.2.weight"]).max()


def test_every_backend_starts_from_the_same_numbers(training_backend_name: str) -> None:
    """The first numbers of each initialiser, whatever the backend."""
    expected = {
        "orthogonal": [-1.1542268, -0.72374433],
        "uniform": [-0.02940062, 0.12198329],
        "xavier_uniform": [-0.04714588, 0.19560844],
        "kaiming_uniform": [-0.07201653, 0.29879683],
    }
    for init, numbers in expected.items():
        got = build(config_of(PPOConfig, training_backend_name), VECTOR, DISCRETE, hidden=[4], init=init)
        np.testing.assert_allclose(got["pi.0.weight"].ravel()[:2], numbers, rtol=1e-5)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("init", ["orthogonal", "uniform", "xavier_uniform", "kaiming_uniform"])
def test_initial_weights_of_a_memory(kind: str, init: str) -> None:
    got = weights(recurrent=kind, recurrent_size=16, init=init)
    gates = {"lstm": 4, "gru": 3}[kind]
    assert got["pi_core.bias_hh_l0"].any() == got["pi_head.0.bias"].any() == (init == "uniform")
    for gate in np.split(got["pi_core.weight_hh_l0"], gates):
        if init != "uniform":
            np.testing.assert_allclose(gate @ gate.T, np.eye(16), atol=1e-5)
    bound = {"uniform": 1 / 16, "xavier_uniform": 6 / 20, "kaiming_uniform": 6 / 4}.get(init)
    if bound is not None:
        largest = np.abs(got["pi_core.weight_ih_l0"]).max()
        assert 0.9 * math.sqrt(bound) < largest <= math.sqrt(bound)


# ---- normalised layers -----------------------------------------------------------------------------------------------


def test_normalised_layers_by_hand() -> None:
    """Linear, normalised, shifted, then the activation; the head is not normalised."""
    made = module(
        PolicyModule, spaces.Box(-9, 9, (2,), np.float32), DISCRETE, hidden=[2], layer_norm=True, activation="relu"
    )
    params = {
        "pi.0.weight": np.array([[1.0, 0.0], [0.0, 1.0]]), "pi.0.bias": np.array([1.0, 0.0]),
        "pi.norm.0.weight": np.array([2.0, 3.0]), "pi.norm.0.bias": np.array([0.5, -10.0]),
        "pi.1.weight": np.array([[1.0, 1.0], [2.0, 0.0]]), "pi.1.bias": np.array([0.0, 1.0]),
    }  # fmt: skip
    assert set(params) == set(made.init(np.random.default_rng(0)))
    # [3 + 1, 2] has mean 3 and variance 1: (1, -1) / sqrt(1 + 1e-5); scaled (2.5, -13), of which relu leaves 2.5.
    got = made.forward_train(params, {"obs": np.array([[3.0, 2.0]])})["action_dist_inputs"]
    root = math.sqrt(1 + 1e-5)
    np.testing.assert_allclose(got, [[2 / root + 0.5, 2 * (2 / root + 0.5) + 1]], rtol=1e-12)


@pytest.mark.fast_on_torch
def test_normalised_layers_train(training_backend_name: str) -> None:
    with (
        told("ppo", training_backend_name, lr=0.1).rl_module(model={"hidden": [4], "layer_norm": True}).build() as algo
    ):
        algo.train()
        got = algo.learner_group.get_weights()[MID]
    assert got["vf.norm.0.weight"].shape == (4,) and not (got["vf.norm.0.weight"] == 1).all()


@pytest.mark.fast_on_torch
@pytest.mark.parametrize(
    ("kind", "model"),
    [
        (
            "sac",
            {
                "hidden": {"pi": [4], "qf": [5, 3]},
                "activation": {"pi": "tanh", "qf": "relu"},
                "layer_norm": {"qf": True},
                "init": {"pi": "xavier_uniform"},
                "log_std_range": [-5, 1],
            },
        ),
        (
            "ppo",
            {"vf_share_layers": True, "hidden": {"encoder": [4], "pi": [3], "vf": [5]}, "layer_norm": {"vf": True}},
        ),
        ("appo", {"hidden": {"pi": [3], "vf": [5]}, "init": "kaiming_uniform", "layer_norm": True}),
    ],
)
def test_a_run_with_them_goes_on_from_its_checkpoint(
    training_backend_name: str, kind: str, model: dict[str, Any], tmp_path: Path
) -> None:
    """Every layer learns, numpy and the backend act alike, and a checkpoint has it all."""
    rates = {"actor_lr": 0.01, "critic_lr": 0.01} if kind == "sac" else {"lr": 0.01}
    config = told(kind, training_backend_name, **rates).rl_module(model=model)
    config.environment(make_wander, env_config={"continuous": kind == "sac"})
    actions = []
    for inference in ("numpy", "backend"):
        with config.env_runners(inference=inference).build() as algo:
            before = algo.learner_group.get_weights()[MID]
            watched = Watched(algo)
            algo.train()
            actions.append(watched.take())
            after = algo.learner_group.get_weights()[MID]
            assert all(np.abs(after[name] - before[name]).max() > 0 for name in before if name.endswith("weight"))
            algo.save(tmp_path / inference)
            algo.train()
            expected = algo.learner_group.get_weights()[MID]
        with lc.Algorithm.from_checkpoint(tmp_path / inference, env=make_wander) as again:
            again.train()
            for name, value in again.learner_group.get_weights()[MID].items():
                np.testing.assert_array_equal(value, expected[name])
    np.testing.assert_allclose(actions[0], actions[1], atol=1e-5)


# ---- log_std ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("free", [True, False])
def test_log_std_is_clipped(training_backend_name: str, free: bool) -> None:
    """What is sampled with, recorded and trained on; outside of the range nothing moves it."""
    model = {"hidden": [4], "free_log_std": free, "log_std_range": [-0.5, 0.25]}
    config = told("ppo", training_backend_name, lr=0.1, entropy_coeff=1.0).environment(env_config={"continuous": True})
    with config.rl_module(model=model).build() as algo:
        state = algo.learner_group.get_weights()
        name = "log_std" if free else "pi.1.bias"
        state[MID][name] = np.array([5.0] if free else [0.0, 5.0], np.float32)
        if not free:
            state[MID]["pi.1.weight"][...] = 0
        algo.learner_group.set_weights(state)
        watched = Watched(algo)
        algo.train()
        algo.train()
        recorded = np.concatenate(
            [part.columns["action_dist_inputs"][..., 1].ravel() for part in watched.fragments[1:]]
        )
        after = algo.learner_group.get_weights()[MID][name][-1]
    np.testing.assert_array_equal(recorded, np.full(len(recorded), 0.25, np.float32))
    assert after == 5.0


def test_log_std_of_sac() -> None:
    """The range replaces (-20, 2), which is SAC's own, wider or narrower."""
    for given, expected in ((None, 2.0), ([-5, 1], 1.0), ([-5, 4], 4.0)):
        made = module(SACModule, **({} if given is None else {"log_std_range": given}))
        params = {name: 0 * value for name, value in made.init(np.random.default_rng(0)).items()}
        params["pi.1.bias"] = np.array([0, 0, 9, 9], np.float32)
        out = made.forward_train(params, {"obs": WHOLE})["action_dist_inputs"]
        assert made.get_train_action_dist_cls().from_logits(out).log_std.max() == expected


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.fast_on_torch
@pytest.mark.parametrize(
    ("kind", "space", "actions", "model", "words"),
    [
        (PPOConfig, VECTOR, DISCRETE, {"hidden": {"pi": [4]}}, "give the sizes of each network: 'pi', 'vf'"),
        (PPOConfig, VECTOR, DISCRETE, {"hidden": {"pi": [4], "vfs": [4]}}, "are 'pi', 'vf'. Did you mean 'vf'"),
        (PPOConfig, VECTOR, DISCRETE, {"hidden": {"pi": [], "vf": []}, "vf_share_layers": True}, "'encoder', 'pi'"),
        (PPOConfig, VECTOR, DISCRETE, {"hidden": {"encoder": [4], "pi": [4], "vf": [4]}}, "networks are 'pi', 'vf'"),
        (SACConfig, VECTOR, BOX, {"hidden": {"pi": [4], "vf": [4]}}, "networks are 'pi', 'qf'"),
        (SACConfig, VECTOR, BOX, {"policy": {"hidden": [4]}}, r"Sizes of one network are hidden=\{'policy'"),
        (PPOConfig, VECTOR, DISCRETE, {"net_arch": [4]}, "'net_arch'.*no setting of it. SB3: net_arch; here: 'hidden'"),
        (SACConfig, VECTOR, BOX, {"use_lstm": True}, "'use_lstm'.*no setting of it. There is"),
        (PPOConfig, VECTOR, DISCRETE, {"hidden": 64}, r"hidden=64.*such as \[64, 64\]"),
        (PPOConfig, VECTOR, DISCRETE, {"hidden": [], "activation": "relu"}, "activation.*no hidden layers"),
        (PPOConfig, VECTOR, DISCRETE, {"hidden": [], "layer_norm": True}, "layer_norm.*no hidden layers"),
        (PPOConfig, VECTOR, DISCRETE, {"activation": {"pi": "elu"}, "hidden": {"pi": [], "vf": [4]}}, "of 'pi'"),
        (PPOConfig, VECTOR, DISCRETE, {"vf_share_layers": True, "layer_norm": {"pi": True}}, "layers of 'pi'"),
        (PPOConfig, VECTOR, DISCRETE, {"use_prev_action": True}, "use_prev_action.*needs 'recurrent'"),
        (PPOConfig, VECTOR, DISCRETE, {"recurrent": "gru", "use_prev_reward": 1}, "use_prev_reward.*True or False"),
        (SACConfig, VECTOR, BOX, {"use_prev_reward": True}, "use_prev_reward.*no setting"),
        (PPOConfig, VECTOR, DISCRETE, {"layer_norm": 1}, "layer_norm.*True or False"),
        (PPOConfig, VECTOR, DISCRETE, {"layer_nrom": True}, "Did you mean 'layer_norm'"),
        (PPOConfig, VECTOR, DISCRETE, {"vf_share_layers": "yes"}, "vf_share_layers.*True or False"),
        (PPOConfig, VECTOR, DISCRETE, {"init": "xavier"}, "Did you mean 'xavier_uniform'"),
        (PPOConfig, VECTOR, DISCRETE, {"init": {"pi": "normal"}}, "init='normal'"),
        (PPOConfig, VECTOR, DISCRETE, {"log_std_range": [-1, 1]}, "log_std_range.*continuous actions"),
        (PPOConfig, VECTOR, DISCRETE, {"free_log_std": False}, "free_log_std.*continuous actions"),
        (PPOConfig, VECTOR, BOX, {"log_std_range": [1, -1]}, "lower bound first"),
        (PPOConfig, VECTOR, BOX, {"log_std_range": 2}, "two numbers"),
        (PPOConfig, VECTOR, BOX, {"log_std_range": [-2, -1]}, "log_std starts at 0.0, outside"),
        (PPOConfig, VECTOR, BOX, {"log_std_init": "0"}, "log_std_init.*expected a number"),
        (PPOConfig, VECTOR, DISCRETE, {"conv_filters": []}, "nothing to flatten"),
        (PPOConfig, VECTOR, DISCRETE, {"image_layout": "CHW"}, "needs an image"),
        (PPOConfig, VECTOR, DISCRETE, {"encoders": {"a": {}}}, "no part 'a'"),
    ],
)  # fmt: skip
def test_refusals(
    training_backend_name: str, kind: Any, space: Any, actions: Any, model: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        build(config_of(kind, training_backend_name), space, actions, **model)


@pytest.mark.fast_on_torch
@pytest.mark.parametrize("model", [{"vf_share_layers": True}, {"hidden": {"pi": [4], "vf": [4]}}])
def test_nothing_is_shared_with_a_critic_that_is_not_there(training_backend_name: str, model: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="needs use_critic=True"):
        build(config_of(PPOConfig, training_backend_name).training(use_critic=False), VECTOR, DISCRETE, **model)


def test_the_default_activation_was_not_typed(training_backend_name: str) -> None:
    """``--set model.hidden=[]`` leaves the default's activation beside it."""
    got = build(config_of(PPOConfig, training_backend_name), VECTOR, DISCRETE, hidden=[], activation="tanh")
    assert got["pi.0.weight"].shape == (2, 3)


def test_of_several_modules_each_takes_what_it_has_a_use_for(training_backend_name: str) -> None:
    """A common layout, and filters, beside a module of vectors."""
    specs = {
        "seeing": lc.RLModuleSpec(observation_space=CUBE, action_space=BOX),
        "blind": lc.RLModuleSpec(observation_space=VECTOR, action_space=DISCRETE),
    }
    config = config_of(PPOConfig, training_backend_name).rl_module(
        rl_module_spec=lc.MultiRLModuleSpec(specs),
        model={"hidden": [3], "image_layout": "CHW", "conv_filters": [[2, 2, 2]], "log_std_range": [-1, 1]},
    )
    state = config.build_learner().get_module_state()
    assert "pi.conv.0.weight" in state["seeing"] and state["blind"]["pi.0.weight"].shape == (3, 3)
