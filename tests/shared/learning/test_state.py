"""State: copies both ways, complete, obeyed or refused with its path; precisions and devices."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import learner_core as lc
from learner_core.errors import ConfigError, FormatError, LearnerCoreError, StateError

from support.learners import (
    ToyConfig,
    ToyLearner,
    assert_states_equal,
    build,
    flat_state,
    regression_batch,
    states_differ,
)

MID = "default_policy"


@pytest.fixture(scope="module")
def _learner(backend: str) -> tuple[Any, Any]:
    learner = build(backend)
    for _ in range(3):
        learner.update_from_batch(batch=regression_batch(7), timesteps={"num_env_steps_sampled_lifetime": 9})
    learner.variables[MID]["kl_coeff"] = 0.75
    return learner, learner.get_state()


@pytest.fixture
def learner(_learner: tuple[Any, Any]) -> Any:
    one, state = _learner
    one.set_state(state)
    return one


def test_layout(learner: Any) -> None:
    state = learner.get_state()
    assert set(state["rl_module"][MID]) == {"v.weight", "v.bias", "q.weight"}
    assert set(state["targets"][MID]) == {"q.weight"} and set(state["buffers"][MID]) == {"calls"}
    assert state["variables"][MID]["kl_coeff"] == 0.75 and "log_alpha" in state["variables"][MID]
    adam = state["optimizer"][MID]["v"]
    assert adam["kind"] == "adam" and adam["step"] == 6 and type(adam["step"]) is int
    assert set(adam["slots"]) == {"m", "v"} and set(adam["slots"]["m"]) == {"v.weight", "v.bias"}
    assert state["timesteps"] == {"num_env_steps_sampled_lifetime": 9}
    assert state["counters"] == {"num_updates": 3, "num_minibatch_steps": 6} and state["noise"] == {"seed": 0}
    assert state["buffers"][MID]["calls"] == 6.0


def test_get_state_shares_no_memory(learner: Any) -> None:
    state, weights = learner.get_state(), learner.get_module_state()
    before = copy.deepcopy(state)
    learner.update_from_batch(batch=regression_batch(8))
    assert not states_differ(before, state)
    assert weights[MID].pop("calls") == before["buffers"][MID]["calls"]
    assert not states_differ(before["rl_module"], weights)
    now = learner.get_state()
    for leaf in flat_state(state).values():
        if isinstance(leaf, np.ndarray):
            leaf.fill(123.0)
    assert not states_differ(now, learner.get_state())


def test_set_state_copies(learner: Any) -> None:
    state = copy.deepcopy(learner.get_state())
    learner.set_state(state)
    expected = learner.get_state()
    for leaf in flat_state(state).values():
        if isinstance(leaf, np.ndarray):
            leaf.fill(123.0)
    state["timesteps"]["num_env_steps_sampled_lifetime"] = 10**6
    state["variables"][MID]["kl_coeff"] = 9.0
    assert not states_differ(expected, learner.get_state())


def test_an_older_state_is_obeyed_entirely(learner: Any) -> None:
    """Weights, moments, steps, counters, noise, variables: training goes on as it did from there."""
    old = learner.get_state()

    def go_on() -> Any:
        for rows in (8, 3):
            learner.update_from_batch(batch=regression_batch(rows), timesteps={"num_env_steps_sampled_lifetime": 20})
        return learner.get_state()

    first = go_on()
    learner.variables[MID]["kl_coeff"] = 5.0
    learner.update_from_batch(batch=regression_batch(8))
    learner.set_state(old)
    assert not states_differ(old, learner.get_state())
    assert not states_differ(first, go_on())


def test_the_states_seed_and_stream_are_taken_over(backend: str, learner: Any) -> None:
    other = build(backend, config=ToyConfig().debugging(seed=5))
    other.set_state(learner.get_state())
    assert not states_differ(other.get_state(), learner.get_state())
    for one in (learner, other):
        one.update_from_batch(batch=regression_batch(8))
    assert not states_differ(other.get_state(), learner.get_state())


def test_weights_alone(learner: Any) -> None:
    state = learner.get_state()
    learner.update_from_batch(batch=regression_batch(8))
    learner.set_module_state(state["rl_module"])
    now = learner.get_state()
    assert not states_differ(now["rl_module"], state["rl_module"])
    assert now["optimizer"][MID]["v"]["step"] == 8 and now["buffers"][MID]["calls"] == 8.0
    learner.set_module_state({MID: {**learner.get_module_state()[MID], "calls": np.float32(3.0)}})
    assert learner.get_state()["buffers"][MID]["calls"] == 3.0
    now = learner.get_state()
    for weights, path in (
        ({"default": {}}, "rl_module/default"),
        ({MID: {"v.weight": np.zeros((1, 3))}}, f"rl_module/{MID}/v.bias"),
        ({MID: {**state["rl_module"][MID], "log_alpha": 0.0}}, f"rl_module/{MID}/log_alpha"),
        ({MID: {**state["rl_module"][MID], "calls": np.zeros(2)}}, f"rl_module/{MID}/calls"),
        ({MID: 3}, f"rl_module/{MID}"),
        ([], "rl_module"),
    ):
        with pytest.raises(StateError) as caught:
            learner.set_module_state(weights)
        assert caught.value.path == path
        assert not states_differ(now, learner.get_state())


def change(path: str, value: Any) -> Any:
    def edit(state: dict[str, Any]) -> None:
        *parents, leaf = path.split("|")
        for parent in parents:
            state = state[parent]
        if value is KeyError:
            del state[leaf]
        else:
            state[leaf] = value

    return edit


BAD = [
    ("schema", 99, "schema"),
    ("schema", KeyError, "schema"),
    ("extra", 1, "extra"),
    ("optimizer", KeyError, "optimizer"),
    ("rl_module", [], "rl_module"),
    ("rl_module", {}, f"rl_module/{MID}"),
    (f"rl_module|{MID}|v.weight", KeyError, f"rl_module/{MID}/v.weight"),
    (f"rl_module|{MID}|v.weigth", np.zeros((1, 3)), f"rl_module/{MID}/v.weigth"),
    (f"rl_module|{MID}|v.weight", np.zeros((3, 1)), f"rl_module/{MID}/v.weight"),
    (f"rl_module|{MID}|v.weight", np.zeros((1, 3), "U1"), f"rl_module/{MID}/v.weight"),
    (f"rl_module|{MID}|v.weight", np.zeros((1, 3), object), f"rl_module/{MID}/v.weight"),
    (f"rl_module|{MID}|v.weight", [[1.0], [2.0, 3.0]], f"rl_module/{MID}/v.weight"),
    (f"rl_module|{MID}|v.weight", None, f"rl_module/{MID}/v.weight"),
    (f"rl_module|{MID}|log_alpha", 0.5, f"rl_module/{MID}/log_alpha"),
    (f"targets|{MID}|q.weight", np.zeros(3), f"targets/{MID}/q.weight"),
    (f"targets|{MID}", 1.0, f"targets/{MID}"),
    (f"buffers|{MID}|calls", np.zeros(2), f"buffers/{MID}/calls"),
    (f"buffers|{MID}|calls", "six", f"buffers/{MID}/calls"),
    (f"buffers|{MID}|call", np.zeros(()), f"buffers/{MID}/call"),
    (f"variables|{MID}|kl_coeff", "high", f"variables/{MID}/kl_coeff"),
    (f"variables|{MID}|kl_coeff", KeyError, f"variables/{MID}/kl_coeff"),
    (f"variables|{MID}|log_alpha", np.zeros(2), f"variables/{MID}/log_alpha"),
    (f"optimizer|{MID}|v|kind", "sgd", f"optimizer/{MID}/v/kind"),
    (f"optimizer|{MID}|v|step", -1, f"optimizer/{MID}/v/step"),
    (f"optimizer|{MID}|v|step", 1.0, f"optimizer/{MID}/v/step"),
    (f"optimizer|{MID}|v|step", True, f"optimizer/{MID}/v/step"),
    (f"optimizer|{MID}|v|more", 1, f"optimizer/{MID}/v/more"),
    (f"optimizer|{MID}|v|slots", None, f"optimizer/{MID}/v/slots"),
    (f"optimizer|{MID}|v|slots|m", KeyError, f"optimizer/{MID}/v/slots/m"),
    (f"optimizer|{MID}|v|slots|m|v.bias", KeyError, f"optimizer/{MID}/v/slots/m/v.bias"),
    (f"optimizer|{MID}|w", {}, f"optimizer/{MID}/w"),
    (f"optimizer|{MID}|v", KeyError, f"optimizer/{MID}/v"),
    ("timesteps|n", -1, "timesteps/n"),
    ("timesteps", None, "timesteps"),
    ("counters|num_updates", 0.5, "counters/num_updates"),
    ("counters|num_updates", KeyError, "counters/num_updates"),
    ("noise|seed", "x", "noise/seed"),
    ("noise|seed", KeyError, "noise/seed"),
]


@pytest.mark.parametrize(("where", "value", "path"), BAD, ids=[f"{w}-{i}" for i, (w, _, _) in enumerate(BAD)])
def test_what_does_not_fit_is_refused_by_path(learner: Any, where: str, value: Any, path: str) -> None:
    before = learner.get_state()
    state = copy.deepcopy(before)
    change(where, value)(state)
    with pytest.raises(StateError) as caught:
        learner.set_state(state)
    assert caught.value.path == path and path in str(caught.value)
    assert not states_differ(before, learner.get_state())


@pytest.mark.parametrize("state", [None, [], 3, "state"])
def test_no_tree_at_all(learner: Any, state: Any) -> None:
    with pytest.raises(StateError):
        learner.set_state(state)


def test_another_structure_is_refused(backend: str, learner: Any) -> None:
    class Sgd(ToyLearner):
        def configure_optimizers_for_module(self, module_id: str, config: Any) -> None:
            self.register_optimizer(module_id=module_id, optimizer=lc.OptimizerSpec("sgd"), params=["v.*"])

        def compute_loss_for_module(self, **kwargs: Any) -> Any:
            return super().compute_loss_for_module(**kwargs)["v"]

    other = build(backend, Sgd)
    with pytest.raises(StateError, match=f"optimizer/{MID}/default"):
        other.set_state(learner.get_state())


def test_save_and_load(backend: str, learner: Any, tmp_path: Path) -> None:
    path = tmp_path / "state"
    learner.save_state(path)
    assert [p.name for p in tmp_path.iterdir()] == ["state"]
    other = build(backend, config=ToyConfig().debugging(seed=3))
    other.load_state(path)
    assert not states_differ(learner.get_state(), other.get_state())
    assert not states_differ(lc.load_state(path), learner.get_state())
    (tmp_path / "broken").write_bytes(path.read_bytes()[:-1])
    before = other.get_state()
    with pytest.raises(FormatError):
        other.load_state(tmp_path / "broken")
    with pytest.raises(LearnerCoreError):
        other.load_state(tmp_path / "absent")
    assert not states_differ(before, other.get_state())


@pytest.mark.parametrize(
    ("precision", "dtype", "atol"),
    [("float64", "float64", 1e-12), ("float32", "float32", 1e-5), ("bfloat16", "float32", 0.15)],
)
def test_precisions(backend: str, learner: Any, precision: str, dtype: str, atol: float) -> None:
    """Weights and moments are float32 under bfloat16; a state of any precision fits a learner of any other."""
    other = build(backend, precision=precision)
    other.set_state(learner.get_state())
    for one in (learner, other):
        results = one.update_from_batch(batch=regression_batch(8))
        assert np.isfinite(results[MID]["vf_loss"])
    state = other.get_state()
    for path, leaf in flat_state({"w": state["rl_module"], "o": state["optimizer"]}).items():
        if isinstance(leaf, np.ndarray):
            assert leaf.dtype == dtype, path
    assert_states_equal(
        learner.get_state(), state, atol=atol, ignore=("optimizer/default_policy/q", "optimizer/default_policy/v")
    )


def test_bfloat16_computes_the_forward_pass_narrowly(backend: str) -> None:
    learner = build(backend, precision="bfloat16")
    obs = np.array([[1.0 + 2.0**-10, 0.0, 0.0]] * 4)
    learner.set_module_state(
        {MID: {**learner.get_module_state()[MID], "v.weight": np.array([[1.0, 0.0, 0.0]]), "v.bias": np.zeros(1)}}
    )
    metrics = learner.update_from_batch(batch={"obs": obs, "value_targets": np.zeros(4)})[MID]
    # alpha (1.0 - 0.25)^2, where 1 + 2^-10 has become 1
    assert metrics["vf_loss"] == pytest.approx(np.exp(0.5) * 0.75**2, rel=1e-6)


@pytest.mark.parametrize("device", ["gpu:7", "cuda:9", "tpu", "cpux"])
def test_devices_that_are_not_there(backend: str, device: str) -> None:
    config = ToyConfig().framework(backend, device=device, compile=False)
    with pytest.raises(ConfigError, match=f"device='{device}'"):
        build_on(config)


def build_on(config: Any) -> Any:
    from learner_core.learning.rl_module import RLModuleSpec

    from support.learners import OBS, TWO_ACTIONS, LinearModule

    return ToyLearner(config.freeze(), module_spec=RLModuleSpec(LinearModule, OBS, TWO_ACTIONS))


def test_cpu_by_name(backend: str) -> None:
    learner = build_on(ToyConfig().framework(backend, device="cpu", compile=False))
    assert "cpu" in str(getattr(learner.backend, f"{backend}_device")).lower()


def test_a_backend_that_does_not_train_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot train"):
        build_on(ToyConfig().framework("numpy"))
