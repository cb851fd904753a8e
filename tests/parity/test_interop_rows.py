"""What bites when weights and optimizer state move between frameworks: every row of the table has a test of its number.

Rows 1 to 11 and 21 are about a user's own networks (``support/user_networks.py``): one set of weights, far from any
initialisation, is put into the Torch network and into its Keras equivalent; both must answer alike, and both must give
the same weights back to the last bit, which is the way there and the way back. Rows 12 to 20, 22 and 23 are about what
learners hold. Where a framework's own optimizer or clipping does something else, the test shows by how much, so that a
silent switch to it would be noticed.
"""

from __future__ import annotations

import importlib
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

import learner_core as lc
from learner_core.learning.run.inputs import noise_rows
from learner_core.maths.optimizers import OptimizerSpec, clip_by_global_norm
from learner_core.maths.recurrent import GRU, LSTM

from support.both import Arrays, in_both
from support.learners import flat_state, ppo_batch, sac_batch
from support.user_networks import NUM_ACTIONS

Both = tuple[Arrays, Arrays]
LR, STEPS = 1e-3, 60

# ---- what both frameworks compute ------------------------------------------------------------------------------------


def program(backend_name: str, arrays: Arrays, settings: dict[str, Any]) -> dict[str, Any]:
    backend_class = importlib.import_module(f"learner_core_{backend_name}.backend")
    backend = getattr(backend_class, {"torch": "TorchBackend", "tf": "TfBackend"}[backend_name])(device="cpu")
    return {
        "same padding": _same_padding(backend) if backend_name == "tf" else {},
        "recurrent": _recurrent(backend),
        "optimizers": {name: _optimize(backend, name) for name in OPTIMIZERS},
        "clipping": _clip(backend),
        "dtypes": _dtypes(backend),
        "learners": {name: _learner(backend_name, name) for name in ("ppo", "sac")},
        "strictness": _strictness(backend_name),
    }


def _same_padding(backend: Any) -> dict[str, Any]:
    """Why Keras' uneven padding does not move."""
    from keras import Sequential, layers

    spec = lc.RLModuleSpec(
        module_class=lambda: Sequential(
            [layers.Conv2D(2, 3, strides=2, padding="same"), layers.Flatten(), layers.Dense(NUM_ACTIONS)]
        ),
        observation_space=Box(-1, 1, (8, 8, 1), np.float32),
        action_space=Discrete(NUM_ACTIONS),
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module = spec.build(backend.xp, backend)
    assert any("not portable" in str(one.message) for one in caught)
    return {"reason": np.array(module.not_portable["0.weight"])}


def _recurrent(backend: Any) -> dict[str, Any]:
    """LSTM and GRU over a sequence with resets inside it and an initial state."""
    rng = np.random.default_rng(3)
    resets = rng.random((3, 9)) < 0.3
    results: dict[str, Any] = {}
    for layer in (LSTM("core", 4, 5), GRU("core", 4, 5)):
        params = {n: (v + 0.2 * rng.normal(size=v.shape)).astype(np.float32) for n, v in layer.init(rng).items()}
        inputs = {"x": rng.normal(size=(3, 9, 4)), **{n: rng.normal(size=(3, 5)) for n in layer.state_names}}
        on = backend.from_numpy({n: v.astype(np.float32) for n, v in inputs.items()})
        state = {name: on[name] for name in layer.state_names}
        weights = backend.from_numpy(params)
        for name, mask in (("resets", backend.from_numpy({"r": resets})["r"]), ("plain", None)):
            y, last = layer.apply(backend.xp, weights, on["x"], state, resets=mask)
            results[f"{type(layer).__name__}/{name}"] = backend.to_numpy({"y": y, **last})
    return results


#: name -> our constants, the same in Torch's words, Keras' class and its own defaults in place of ours
OPTIMIZERS: dict[str, tuple[OptimizerSpec, tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]] = {
    "adam": (OptimizerSpec("adam", eps=1e-5), ("Adam", {"eps": 1e-5}), ("Adam", {"epsilon": 1e-5})),
    "adamw": (OptimizerSpec("adamw"), ("AdamW", {}), ("AdamW", {})),
    "rmsprop": (OptimizerSpec("rmsprop"), ("RMSprop", {}), ("RMSprop", {})),
    "sgd": (OptimizerSpec("sgd", momentum=0.9), ("SGD", {"momentum": 0.9}), ("SGD", {"momentum": 0.9})),
}


def _gradients() -> tuple[np.ndarray, np.ndarray]:
    """(start, gradients [STEPS, n]) as PPO has them: small, most of them below Adam's epsilon."""
    rng = np.random.default_rng(8)
    sizes = 10.0 ** rng.uniform(-6, -3, 48)
    return (
        (0.3 * rng.normal(size=48)).astype(np.float32),
        (sizes * (1.0 + rng.normal(size=(STEPS, 48)))).astype(np.float32),
    )


def _rate(step: int) -> float:
    return LR if step < STEPS // 2 else LR / 10


def _optimize(backend: Any, name: str) -> dict[str, Any]:
    """Ours and the framework's own over the same gradients, the rate falling to a tenth half way."""
    spec, torch_form, keras_form = OPTIMIZERS[name]
    start, gradients = _gradients()
    xp = backend.xp

    def on(value: Any) -> Any:
        return backend.from_numpy({"x": np.asarray(value, np.float32)})["x"]

    params = on(start)
    slots = spec.init_slots(xp, params)
    for step, gradient in enumerate(gradients):
        params, slots = spec.update(
            xp,
            params=params,
            gradients=on(gradient),
            slots=slots,
            lr=on(_rate(step)),
            corrections=[on(value) for value in spec.corrections(step + 1)],
        )
    results = {"ours": backend.to_numpy({"p": params, **slots})}
    if backend.name == "torch":
        import torch

        theirs = torch.from_numpy(start.copy()).requires_grad_()
        optimizer = getattr(torch.optim, torch_form[0])([theirs], lr=LR, **torch_form[1])
        for step, gradient in enumerate(gradients):
            optimizer.param_groups[0]["lr"] = _rate(step)
            theirs.grad = torch.from_numpy(gradient)
            optimizer.step()
        return {**results, "native": theirs.detach().numpy()}
    import keras

    variable = keras.Variable(start)
    optimizer = getattr(keras.optimizers, keras_form[0])(learning_rate=LR, **keras_form[1])
    for step, gradient in enumerate(gradients):
        optimizer.learning_rate.assign(_rate(step))
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [variable])
    return {**results, "native": keras.ops.convert_to_numpy(variable)}


def _clip(backend: Any) -> dict[str, Any]:
    rng = np.random.default_rng(4)
    gradients = {"a": rng.normal(size=(3, 2)).astype(np.float32), "b": 4 * rng.normal(size=5).astype(np.float32)}
    clipped, norm = clip_by_global_norm(backend.xp, backend.from_numpy(gradients), 0.5)
    ours = backend.to_numpy({**clipped, "norm": norm})
    if backend.name == "torch":
        import torch

        leaves = {name: torch.zeros(value.shape, requires_grad=True) for name, value in gradients.items()}
        for name, leaf in leaves.items():
            leaf.grad = torch.from_numpy(gradients[name].copy())
        torch.nn.utils.clip_grad_norm_(leaves.values(), 0.5)
        return {"ours": ours, "native": {name: leaf.grad.numpy() for name, leaf in leaves.items()}}
    import tensorflow as tf

    each = {name: tf.clip_by_norm(value, 0.5).numpy() for name, value in gradients.items()}  # what Keras' clipnorm does
    return {"ours": ours, "native": each}


def _dtypes(backend: Any) -> dict[str, Any]:
    """Every dtype there and back, and through a file; bfloat16 as its bits, since npz loses its name."""
    import ml_dtypes

    rng = np.random.default_rng(9)
    results: dict[str, Any] = {}
    for dtype in (ml_dtypes.bfloat16, np.float32, np.float64, np.int64, np.int32, np.uint8, np.bool_):
        array = (100 * rng.normal(size=7)).astype(dtype)
        back = backend.to_numpy(backend.from_numpy({"x": array}))["x"]
        with tempfile.TemporaryDirectory() as folder:
            lc.save_state(f"{folder}/x", {"x": back})
            read = lc.load_state(f"{folder}/x")["x"]
        name = np.dtype(dtype).name
        results[name] = {
            "names": np.array([back.dtype.name, read.dtype.name]),
            "kept": np.array([back.tobytes() == array.tobytes(), read.tobytes() == array.tobytes()]),
        }
    return results


STEP = 2**24 + 1  # float32 cannot hold it
TIMESTEPS = 12_345


def _build(backend_name: str, name: str) -> Any:
    from learner_core_algorithms import PPOConfig, SACConfig

    config: Any = PPOConfig() if name == "ppo" else SACConfig()
    config.framework(backend_name, compile=False)
    config.environment(observation_space=Box(-10, 10, (4,), np.float32), action_space=Box(-1.0, 1.0, (2,), np.float32))
    config.rl_module(model={"hidden": [8], "activation": "tanh"})
    if name == "ppo":
        config.training(lr=[[0, 1e-3], [2 * TIMESTEPS, 0.0]], use_kl_loss=True, train_batch_size=16, minibatch_size=16)
        config.training(num_epochs=1)
    return config.training(train_batch_size=16).build_learner()


def _perturbed_state(state: dict[str, Any]) -> dict[str, Any]:
    """The state with everything that is learned or counted moved to values that its path alone decides."""

    def walk(node: dict[str, Any], path: str) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in node.items():
            rng = np.random.default_rng(list(f"{path}/{key}".encode()))
            if isinstance(value, dict):
                out[key] = walk(value, f"{path}/{key}")
            elif isinstance(value, np.ndarray):
                moved = 0.1 * rng.normal(size=value.shape)
                out[key] = (np.square(moved) if "/slots/v" in path else value + moved).astype(value.dtype)
            elif isinstance(value, float):
                out[key] = float(rng.uniform(0.1, 1.0))
            else:
                out[key] = STEP if key == "step" else value
        return out

    moved = walk(state, "")
    moved["timesteps"]["num_env_steps_sampled_lifetime"] = TIMESTEPS
    moved["counters"] = {"num_updates": 7, "num_minibatch_steps": 77}
    moved["noise"] = {"seed": 2**40 + 3}
    return moved


def _learner(backend_name: str, name: str) -> dict[str, Any]:
    """Fresh weights; a perturbed state as set, as it comes back, as it comes back from a file; a step from it."""
    learner = _build(backend_name, name)
    fresh = learner.get_state()
    given = _perturbed_state(fresh)
    learner.set_state(given)
    kept = learner.get_state()
    with tempfile.TemporaryDirectory() as folder:
        learner.save_state(Path(folder) / "state")
        learner.set_state(fresh)
        learner.load_state(Path(folder) / "state")
    read = learner.get_state()
    noise = noise_rows(
        learner.train_state.seed, 5, ("default_policy", "actions"), 6, (3,), learner.blueprint.float_dtype
    )
    space = Box(-1.0, 1.0, (2,), np.float32)
    batch = ppo_batch(16, space, obs_size=4) if name == "ppo" else sac_batch(16, obs_size=4)
    results = learner.update_from_batch(batch=batch)["default_policy"]
    rates = {key: value for key, value in results.items() if key.startswith("learning_rate")}
    parts = {"fresh": fresh["rl_module"], "given": given, "kept": kept, "read": read, "stepped": learner.get_state()}
    return {**{part: _leaves(tree) for part, tree in parts.items()}, "noise": noise, "rates": rates}


def _leaves(tree: Any) -> dict[str, Any]:
    flat = {path.replace("/", "."): leaf for path, leaf in flat_state(tree).items()}
    return {path: np.asarray(leaf, np.int64) if type(leaf) is int else np.asarray(leaf) for path, leaf in flat.items()}


def _strictness(backend_name: str) -> dict[str, Any]:
    """What a missing, an unknown and a misshapen entry are refused with."""
    learner = _build(backend_name, "sac")
    reasons: dict[str, Any] = {}
    for what in ("missing", "unknown", "misshapen"):
        state = learner.get_state()
        weights = state["targets"]["default_policy"]
        name = sorted(weights)[0]
        if what == "unknown":
            weights["zz.weight"] = weights[name]
        else:
            value = weights.pop(name)
            if what == "misshapen":
                weights[name] = value[..., None]
        try:
            learner.set_state(state)
        except lc.StateError as error:
            reasons[what] = np.array(f"{error.path}: {error}")
    return reasons


@pytest.fixture(scope="module")
def held() -> Both:
    return in_both(__file__, "program")


# ---- what must hold --------------------------------------------------------------------------------------------------


def networks_agree(*cases: str, tolerance: float = 1e-5) -> Callable[[Both, Both], None]:
    """The users' own networks answer alike, and give back the bits they were given."""

    def check(networks: Both, held: Both) -> None:
        torch, tf = networks
        for case in cases:
            assert np.abs(torch[f"{case}/native"]).max() > 0.01
            np.testing.assert_allclose(torch[f"{case}/native"], tf[f"{case}/native"], rtol=tolerance, atol=tolerance)
            for arrays in networks:
                given = {n.rpartition("/")[2]: v for n, v in arrays.items() if n.startswith(f"{case}/params/")}
                given |= {n.rpartition("/")[2]: v for n, v in arrays.items() if n.startswith(f"{case}/buffers/")}
                back = {n.rpartition("/")[2]: v for n, v in arrays.items() if n.startswith(f"{case}/read_back/")}
                assert given.keys() == back.keys()
                for name, value in given.items():
                    other = name.replace("bias_ih", "bias_hh")
                    if other != name and not back[other].any():  # Keras' LSTM holds the sum of the two
                        np.testing.assert_array_equal(back[name], value + given[other], err_msg=name)
                    elif "bias_hh" not in name or back[name].any():
                        assert back[name].tobytes() == value.tobytes(), f"{case}: {name}"

    return check


def same_padding_is_refused(networks: Both, held: Both) -> None:
    assert "pads unevenly" in str(held[1]["same padding/reason"])
    networks_agree("padded convolution")(networks, held)


def recurrent_agrees(networks: Both, held: Both) -> None:
    networks_agree("bidirectional", tolerance=2e-5)(networks, held)
    torch, tf = held
    names = [name for name in torch if name.startswith("recurrent/")]
    assert len(names) == 10
    for name in names:
        np.testing.assert_allclose(torch[name], tf[name], rtol=2e-5, atol=2e-5, err_msg=name)
    assert np.abs(torch["recurrent/LSTM/resets/y"] - torch["recurrent/LSTM/plain/y"]).max() > 0.01


def batch_norm_agrees(networks: Both, held: Both) -> None:
    networks_agree("batch norm", "flat normalisation")(networks, held)
    torch, tf = (arrays["batch norm/new_buffers/norm.running_var"] for arrays in networks)
    assert np.abs(torch - tf).max() > 1e-3  # in training they differ: n - 1 against n; docs/interop.md says so


def initial_weights_agree(networks: Both, held: Both) -> None:
    torch, tf = held
    names = [name for name in torch if "/fresh/" in name]
    assert len(names) > 10
    for name in names:
        assert torch[name].tobytes() == tf[name].tobytes(), name


def optimizer_agrees(name: str, keras_differs_by: float) -> Callable[[Both, Both], None]:
    """Ours is Torch's on both backends; Keras' own would end elsewhere, by that share of the movement."""

    def check(networks: Both, held: Both) -> None:
        torch, tf = held
        prefix = f"optimizers/{name}"
        moved = np.abs(torch[f"{prefix}/native"] - _gradients()[0]).max()
        for arrays in held:
            np.testing.assert_allclose(
                arrays[f"{prefix}/ours/p"], torch[f"{prefix}/native"], rtol=0, atol=1e-3 * LR + 1e-6
            )
        for part in (p for p in torch if p.startswith(f"{prefix}/ours/")):
            np.testing.assert_allclose(torch[part], tf[part], rtol=1e-5, atol=1e-9, err_msg=part)
        keras_is_off = np.abs(tf[f"{prefix}/native"] - torch[f"{prefix}/native"]).max() / moved
        print(f"{name}: Keras' own ends {100 * keras_is_off:.1f} % of the movement elsewhere")
        assert keras_is_off > keras_differs_by

    return check


def clipping_agrees(networks: Both, held: Both) -> None:
    torch, tf = held
    for name in ("a", "b"):
        np.testing.assert_allclose(torch[f"clipping/ours/{name}"], torch[f"clipping/native/{name}"], rtol=1e-6)
        np.testing.assert_allclose(tf[f"clipping/ours/{name}"], torch[f"clipping/native/{name}"], rtol=1e-6)
    assert np.abs(tf["clipping/native/a"] - tf["clipping/ours/a"]).max() > 0.01  # clipnorm is per variable


def schedules_are_recomputed(networks: Both, held: Both) -> None:
    for arrays in held:
        rates = [value for name, value in arrays.items() if name.startswith("learners/ppo/rates/")]
        assert rates == [np.float64(0.5e-3)]  # half way down, at the step count that the state holds
        stored = [name for name in arrays if "/kept/" in name and "lr" in name.rpartition("/")[2].split(".")]
        assert not stored  # a setting with an integer position, never a remembered rate


def random_state_agrees(networks: Both, held: Both) -> None:
    torch, tf = held
    for name in ("ppo", "sac"):
        assert torch[f"learners/{name}/noise"].tobytes() == tf[f"learners/{name}/noise"].tobytes()
        assert torch[f"learners/{name}/read/noise.seed"] == 2**40 + 3
    generator = np.random.PCG64(5).state
    with tempfile.TemporaryDirectory() as folder:
        lc.save_state(f"{folder}/x", generator)
        assert generator["state"]["state"] >= 2**64
        assert lc.load_state(f"{folder}/x") == generator


def dtypes_are_kept(networks: Both, held: Both) -> None:
    for arrays in held:
        names = [name for name in arrays if name.startswith("dtypes/") and name.endswith("/names")]
        assert len(names) == 7
        for name in names:
            assert arrays[name].tolist() == [name.split("/")[1]] * 2
            assert arrays[name.replace("/names", "/kept")].all()


def entries_are_held_to_names(networks: Both, held: Both) -> None:
    networks_agree("tied", "frozen", "batch norm")(networks, held)
    for arrays in held:
        for what in ("missing", "unknown", "misshapen"):
            assert str(arrays[f"strictness/{what}"]).startswith("targets/default_policy/"), what
    for case in ("tied", "frozen"):
        assert networks[0][f"{case}/frozen"].tolist() == networks[1][f"{case}/frozen"].tolist()


def _moved_and_back(held: Both, part: str) -> int:
    """As given, as kept, and as read from the file: the same bits, on both; how many entries there are."""
    torch, _ = held
    names = [name for name in torch if "/given/" in name and f"/{part}." in name]
    for name in names:
        for arrays in held:
            for place in ("given", "kept", "read"):
                other = arrays[name.replace("/given/", f"/{place}/")]
                assert other.dtype == torch[name].dtype and other.tobytes() == torch[name].tobytes(), (name, place)
    return len(names)


def round_trips_change_no_bit(networks: Both, held: Both) -> None:
    assert _moved_and_back(held, "rl_module") > 10 and _moved_and_back(held, "optimizer") > 40
    for arrays in held:
        steps = [v for name, v in arrays.items() if "/stepped/optimizer." in name and name.endswith(".step")]
        assert len(steps) > 3 and all(step == STEP + 1 for step in steps)  # exact beyond 2^24
    torch, tf = held
    for name in (n for n in torch if "/stepped/rl_module." in n):
        np.testing.assert_allclose(torch[name], tf[name], rtol=0, atol=1e-3 * LR + 1e-6, err_msg=name)


def everything_else_moves(networks: Both, held: Both) -> None:
    """Targets, log_std, alpha, KL coefficient and counters; normalisers in ``test_relay.py``."""
    assert _moved_and_back(held, "targets") > 5 and _moved_and_back(held, "variables") == 2
    assert _moved_and_back(held, "timesteps") == 2 and _moved_and_back(held, "counters") == 4
    torch, _ = held
    assert any("log_std" in name for name in torch if "/given/rl_module." in name)
    assert {n.rpartition(".")[2] for n in torch if "/given/variables." in n} == {"kl_coeff", "log_alpha"}


#: (number, subject, check)
ROWS: list[tuple[str, Callable[[Both, Both], None]]] = [
    ("01 Dense", networks_agree("dense", "attributes")),
    ("02 Conv2d, depthwise and transposed", networks_agree("nature cnn", "depthwise and transposed")),
    ("03 Flatten then Dense", networks_agree("nature cnn", "image and vector", "flat normalisation")),
    ("04 SAME padding", same_padding_is_refused),
    ("05 LSTM", networks_agree("lstm", "stacked lstm", "cells", tolerance=2e-5)),
    ("06 GRU", networks_agree("gru", "stacked gru", "cells", tolerance=2e-5)),
    ("07 Recurrent: directions, resets, initial state", recurrent_agrees),
    ("08 LayerNorm", networks_agree("layer norm")),
    ("09 BatchNorm", batch_norm_agrees),
    ("10 Multi-head attention", networks_agree("attention")),
    ("11 Activations", networks_agree("activations")),
    ("12 Initialisers", initial_weights_agree),
    ("13 Adam", optimizer_agrees("adam", 0.01)),
    ("14 AdamW", optimizer_agrees("adamw", 0.001)),
    ("15 RMSprop", optimizer_agrees("rmsprop", 0.1)),
    ("16 SGD momentum", optimizer_agrees("sgd", 0.1)),
    ("17 Clipping", clipping_agrees),
    ("18 Schedules", schedules_are_recomputed),
    ("19 Random state", random_state_agrees),
    ("20 dtypes", dtypes_are_kept),
    ("21 Ties, frozen parameters, buffers, keys", entries_are_held_to_names),
    ("22 Round trips", round_trips_change_no_bit),
    ("23 Everything else that learns", everything_else_moves),
]


@pytest.mark.parametrize("check", [check for _, check in ROWS], ids=[name for name, _ in ROWS])
def test_row(user_networks: Both, held: Both, check: Callable[[Both, Both], None]) -> None:
    check(user_networks, held)
