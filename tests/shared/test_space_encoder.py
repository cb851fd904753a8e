"""Observations of several parts: which network each part gets, the numbers, the refusals, training with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from learner_core import numpy_xp
from learner_core.errors import ConfigError
from learner_core.learning.actor_critic import ActorCriticModule, Trunk
from learner_core.maths.heads import DuelingHead
from learner_core.maths.space_encoder import DictEncoder, needs_encoders

from support.namespaces import MODES, run

SPACE = spaces.Dict(
    {
        "camera": spaces.Box(0, 255, (8, 8, 3), np.uint8),
        "goal": spaces.Discrete(5, start=2),
        "inner": spaces.Dict(
            {"speed": spaces.Box(-1, 1, (2,), np.float32), "map": spaces.Box(-1, 1, (4, 4, 1), np.float32)}
        ),
    }
)
MODEL: dict[str, Any] = {
    "conv_filters": [(2, 3, 2)],
    "activation": "tanh",
    "encoders": {"goal": {"embedding": 4}, "inner.speed": {"hidden": [3]}, "inner.map": {"conv_filters": [(3, 2, 2)]}},
}


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def observations(*leading: int, dtype: str = "float32") -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "camera": rng.integers(0, 256, (*leading, 8, 8, 3)).astype(np.uint8),
        "goal": rng.integers(2, 7, leading),
        "inner": {
            "speed": rng.normal(size=(*leading, 2)).astype(dtype),
            "map": rng.normal(size=(*leading, 4, 4, 1)).astype(dtype),
        },
    }


def flat(obs: dict[str, Any]) -> list[np.ndarray]:
    return [obs["camera"], obs["goal"], obs["inner"]["speed"], obs["inner"]["map"]]


def nested(camera: Any, goal: Any, speed: Any, map_: Any) -> dict[str, Any]:
    return {"camera": camera, "goal": goal, "inner": {"speed": speed, "map": map_}}


def test_each_part_has_its_network() -> None:
    encoder = DictEncoder("pi", SPACE, {**MODEL, "hidden": [6]})
    shapes = {name: value.shape for name, value in encoder.init(np.random.default_rng(0)).items()}
    assert shapes == {
        "pi.camera.conv.0.weight": (2, 3, 3, 3),
        "pi.camera.conv.0.bias": (2,),
        "pi.goal.weight": (5, 4),
        "pi.inner.speed.0.weight": (3, 2),
        "pi.inner.speed.0.bias": (3,),
        "pi.inner.map.conv.0.weight": (3, 1, 2, 2),
        "pi.inner.map.conv.0.bias": (3,),
        "pi.inner.map.0.weight": (6, 12),  # the model's hidden layers are the default of a part's
        "pi.inner.map.0.bias": (6,),
    }
    assert encoder.output_size == 3 * 3 * 2 + 4 + 3 + 6


@pytest.mark.parametrize("leading", [(5,), (2, 3)])
def test_numbers(xp: Any, mode: str, leading: tuple[int, ...]) -> None:
    encoder = DictEncoder("pi", SPACE, {**MODEL, "hidden": []})
    rng = np.random.default_rng(1)
    params = {name: value + 0.1 * rng.normal(size=value.shape) for name, value in encoder.init(rng).items()}
    obs = observations(*leading, dtype="float64")
    got = run(xp, mode, lambda params, *parts: encoder.apply(xp, params, nested(*parts)), params, *flat(obs))
    assert got.shape == (*leading, encoder.output_size)
    goal = params["pi.goal.weight"][obs["goal"] - 2]
    speed = np.tanh(obs["inner"]["speed"] @ params["pi.inner.speed.0.weight"].T + params["pi.inner.speed.0.bias"])
    np.testing.assert_allclose(got[..., 18:22], goal, atol=1e-12)
    # gymnasium sorts keys: the map's 12 features come before.
    np.testing.assert_allclose(got[..., 34:37], speed, atol=1e-12)
    corner = (obs["camera"][..., :3, :3, :] / 255.0).reshape(*leading, -1)
    weight = params["pi.camera.conv.0.weight"].transpose(0, 2, 3, 1).reshape(2, -1)
    expected = np.maximum(corner @ weight.T + params["pi.camera.conv.0.bias"], 0)
    np.testing.assert_allclose(got[..., :2], expected, atol=1e-12)
    np.testing.assert_allclose(got, encoder.apply(numpy_xp, params, obs), atol=1e-12)


def test_who_needs_encoders() -> None:
    vectors = spaces.Dict({"a": spaces.Box(-1, 1, (2,), np.float32), "b": spaces.Discrete(3)})
    assert not needs_encoders(vectors, {}) and needs_encoders(vectors, {"encoders": {"b": {"embedding": 2}}})
    assert needs_encoders(SPACE, {}) and not needs_encoders(SPACE["camera"], {})
    assert needs_encoders(spaces.Tuple((SPACE["camera"], vectors)), {})


def test_trunk_with_images_and_actions(xp: Any, mode: str) -> None:
    model = {"conv_filters": [(2, 3, 2)], "hidden": [7], "image_layout": {"inner.map": "flat"}}
    trunk = Trunk("qf", SPACE, model, 1, extra=2)
    params = trunk.init(np.random.default_rng(0))
    assert {name for name in params if "conv" in name} == {"qf.camera.conv.0.weight", "qf.camera.conv.0.bias"}
    assert params["qf.0.weight"].shape == (7, 18 + 5 + 2 + 16 + 2)
    obs, actions = observations(4), np.ones((4, 2), np.float32)

    def apply(params: Any, actions: Any, *parts: Any) -> Any:
        return trunk.apply(xp, params, nested(*parts), actions)

    got = run(xp, mode, apply, params, actions, *flat(obs))
    np.testing.assert_allclose(got, trunk.apply(numpy_xp, params, obs, actions), atol=1e-5)


def test_parts_of_a_tuple_and_layers_have_names_of_their_own() -> None:
    """ "0" is the first part, and the first layer."""
    space = spaces.Tuple((spaces.Discrete(4), spaces.Box(-1, 1, (3,), np.float32)))
    model = {"hidden": [8], "encoders": {"0": {"embedding": 3}, "1": {"hidden": [2]}}}
    shapes = {name: v.shape for name, v in Trunk("pi", space, model, 2).init(np.random.default_rng(0)).items()}
    assert shapes == {
        "pi.0.embedding.weight": (4, 3),
        "pi.1.0.weight": (2, 3),
        "pi.1.0.bias": (2,),
        "pi.0.weight": (8, 5),
        "pi.0.bias": (8,),
        "pi.1.weight": (2, 8),
        "pi.1.bias": (2,),
    }
    parts = spaces.Dict({"norm": spaces.Box(-1, 1, (3,), np.float32), "other": spaces.Discrete(2)})
    with pytest.raises(ConfigError, match=r"pi.norm.0.weight.*rename the part"):
        model = {"hidden": [2], "layer_norm": True, "encoders": {"norm": {"hidden": [2], "layer_norm": False}}}
        Trunk("pi", parts, model, 2).init(np.random.default_rng(0))


def test_defaults_of_images() -> None:
    space = spaces.Dict({"image": spaces.Box(0, 255, (84, 84, 4), np.uint8), "v": spaces.Box(-1, 1, (3,), np.float32)})
    params = ActorCriticModule(space, spaces.Discrete(2), {}, numpy_xp).init(np.random.default_rng(0))
    assert params["vf.image.conv.2.weight"].shape == (64, 64, 3, 3) and params["vf.0.weight"].shape == (512, 3139)
    unchanged = ActorCriticModule(spaces.Dict({"v": space["v"]}), spaces.Discrete(2), {}, numpy_xp)
    assert unchanged.init(np.random.default_rng(0))["pi.0.weight"].shape == (64, 3)


@pytest.mark.parametrize(
    ("encoders", "message"),
    [
        ({"gaol": {}}, "no part 'gaol'.*Did you mean 'goal'"),
        ([1], "expected"),
        ({"goal": {"hiden": [3]}}, "pi.goal.*'hiden'.*'hidden'"),
        ({"goal": 3}, "pi.goal: expected a dict"),
        ({"inner.speed": {"embedding": 3}}, "Discrete"),
        ({"goal": {"embedding": 3, "hidden": []}}, "alone"),
        ({"goal": {"embedding": 0}}, "pi.goal: size=0"),
        ({"inner.speed": {"conv_filters": [(2, 3, 1)]}}, "height, width, channels"),
        ({"inner": {}}, "no part 'inner'"),
        ({"camera": {"image_layout": "CHW"}}, "layouts have one place"),
    ],
)
def test_refusals(encoders: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DictEncoder("pi", SPACE, {"encoders": encoders, "image_layout": {"inner.map": "flat"}})


def test_a_learner_trains_on_them(training_backend_name: str) -> None:
    from learner_core_algorithms import BCConfig

    config = BCConfig().framework(training_backend_name, compile=False, precision="float64")
    config.rl_module(model={**MODEL, "hidden": [5]}).environment(
        observation_space=SPACE, action_space=spaces.Discrete(3)
    ).training(train_batch_size=8, minibatch_size=8, lr=0.05)
    learner = config.build_learner()
    batch = {"obs": observations(8), "actions": np.arange(8) % 3}
    before = learner.get_module_state()["default_policy"]
    results = [learner.update_from_batch(batch=batch)["default_policy"] for _ in range(8)]
    after = learner.get_module_state()["default_policy"]
    losses = [metrics.get("total_loss", metrics.get("loss", metrics.get("bc_loss"))) for metrics in results]
    assert losses[-1] < losses[0]
    assert [name for name in before if np.array_equal(before[name], after[name])] == []


def test_dueling_head(xp: Any, mode: str) -> None:
    head = DuelingHead("q", 3, 4)
    rng = np.random.default_rng(0)
    params = {name: value + rng.normal(size=value.shape) for name, value in head.init(rng).items()}
    assert sorted(params) == ["q_advantage.0.bias", "q_advantage.0.weight", "q_value.0.bias", "q_value.0.weight"]
    x = rng.normal(size=(2, 5, 3))
    got = run(xp, mode, lambda params, x: head.apply(xp, params, x), params, x)
    value = x @ params["q_value.0.weight"].T + params["q_value.0.bias"]
    advantage = x @ params["q_advantage.0.weight"].T + params["q_advantage.0.bias"]
    np.testing.assert_allclose(got, value + advantage - advantage.mean(-1, keepdims=True), atol=1e-12)
    np.testing.assert_allclose(got.mean(-1, keepdims=True), value, atol=1e-12)
