"""``set_state(..., strict=False)``: what fits is taken over, what does not is reported and keeps its value."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import learner_core as lc
from learner_core.errors import StateError
from learner_core.learning.rl_module import MultiRLModuleSpec, RLModuleSpec

from support.learners import (
    OBS,
    TWO_ACTIONS,
    LinearModule,
    ToyConfig,
    build,
    flat_state,
    regression_batch,
    states_differ,
    two_modules,
)

MID = "default_policy"


@pytest.fixture(scope="module")
def trained(backend: str) -> Any:
    learner = build(backend)
    for _ in range(2):
        learner.update_from_batch(batch=regression_batch(8), timesteps={"num_env_steps_sampled_lifetime": 9})
    return learner


@pytest.fixture
def fresh(backend: str) -> Any:
    return build(backend, config=ToyConfig().debugging(seed=4))


def test_a_state_that_fits_is_taken_over_whole(trained: Any, fresh: Any) -> None:
    assert fresh.set_state(trained.get_state(), strict=False) == []
    assert not states_differ(fresh.get_state(), trained.get_state())
    assert fresh.set_state(trained.get_state()) == []


def test_what_is_skipped_keeps_its_value_and_is_reported(trained: Any, fresh: Any) -> None:
    state = copy.deepcopy(trained.get_state())
    weights, optimizers = state["rl_module"][MID], state["optimizer"][MID]
    weights["v.weight"] = np.zeros((1, 4))
    del weights["v.bias"]
    weights["v.scale"] = np.ones(1)
    optimizers["v"]["slots"]["m"]["v.weight"] = np.zeros((1, 4))
    optimizers["q"]["kind"] = "adam"
    del state["targets"]
    state["variables"][MID]["kl_coeff"] = "high"
    state["variables"][MID]["log_alpha"] = np.float32(7.0)
    state["counters"]["num_updates"] = -1
    state["rl_module"]["other"] = {}
    state["extra"] = 1
    before = fresh.get_state()
    skipped = {
        path: reason.partition(".")[0] + "." if reason.startswith("unknown") else reason
        for path, reason in fresh.set_state(state, strict=False)
    }
    assert skipped == {
        f"rl_module/{MID}/v.weight": "expected shape (1, 3), got (1, 4)",
        f"rl_module/{MID}/v.bias": "missing: it keeps its value",
        f"rl_module/{MID}/v.scale": "unknown entry.",
        "rl_module/other": "unknown entry.",
        f"optimizer/{MID}/v/slots/m/v.weight": (
            "expected shape (1, 3), got (1, 4): the optimizer keeps its moments and step"
        ),
        f"optimizer/{MID}/q/kind": "expected 'sgd', got 'adam': the optimizer keeps its moments and step",
        "targets": "missing: it keeps its value",
        f"variables/{MID}/kl_coeff": "expected a finite number, got 'high'",
        "counters/num_updates": "expected a non-negative int below 2**52, got -1",
        "extra": "unknown entry.",
    }
    after = flat_state(fresh.get_state())
    given, own = flat_state(trained.get_state()), flat_state(before)
    kept = ("rl_module/default_policy/v", "optimizer/default_policy/v", "optimizer/default_policy/q", "targets")
    for path, value in after.items():
        if path == f"variables/{MID}/log_alpha":
            expected: Any = np.float64(7.0)
        elif path.startswith((*kept, f"variables/{MID}/kl_coeff", "counters/num_updates")):
            expected = own[path]
        else:
            expected = given[path]
        np.testing.assert_array_equal(value, expected, err_msg=path)
    assert after[f"optimizer/{MID}/v/step"] == 0 and after["noise/seed"] == 0
    fresh.update_from_batch(batch=regression_batch(8))


def test_it_copies_what_it_takes(trained: Any, fresh: Any) -> None:
    state = copy.deepcopy(trained.get_state())
    del state["buffers"]
    fresh.set_state(state, strict=False)
    expected = fresh.get_state()
    for leaf in flat_state(state).values():
        if isinstance(leaf, np.ndarray):
            leaf.fill(123.0)
    assert not states_differ(expected, fresh.get_state())


def test_weights_alone_will_do(trained: Any, fresh: Any) -> None:
    skipped = fresh.set_state({"rl_module": trained.get_state()["rl_module"]}, strict=False)
    assert not states_differ(fresh.get_state()["rl_module"], trained.get_state()["rl_module"])
    assert {path for path, _ in skipped} == {
        "targets", "buffers", "variables", "optimizer", "timesteps", "counters", "noise", "plugins", "schema",
    }  # fmt: skip


def test_modules_that_both_have(backend: str, trained: Any) -> None:
    spec = RLModuleSpec(LinearModule, OBS, TWO_ACTIONS)
    other = build(backend, module_spec=MultiRLModuleSpec({MID: spec, "new": spec}), config=ToyConfig())
    before = other.get_state()
    skipped = other.set_state(trained.get_state(), strict=False)
    assert {path for path, _ in skipped} == {
        f"{part}/new" for part in ("rl_module", "targets", "buffers", "variables", "optimizer")
    }
    now = other.get_state()
    assert not states_differ(now["rl_module"][MID], trained.get_state()["rl_module"][MID])
    assert not states_differ(now["rl_module"]["new"], before["rl_module"]["new"])


@pytest.mark.parametrize(
    ("state", "path"), [(None, None), ([], None), ({"schema": 99}, "schema"), ({"schema": "1"}, "schema")]
)
def test_no_state_at_all_is_refused(fresh: Any, state: Any, path: str | None) -> None:
    before = fresh.get_state()
    with pytest.raises(StateError) as caught:
        fresh.set_state(state, strict=False)
    assert caught.value.path == path
    assert not states_differ(before, fresh.get_state())


@pytest.mark.fast_on_torch
@pytest.mark.parametrize("part", ["rl_module", "optimizer", "timesteps", "counters", "noise", "plugins", "variables"])
@pytest.mark.parametrize("value", [None, 3, [], "x", {"x": 3}, {MID: 3}, {MID: {"v": 3, "v.bias": [[1], [1, 2]]}}])
def test_no_rubbish_gets_in(fresh: Any, part: str, value: Any) -> None:
    before = fresh.get_state()
    skipped = fresh.set_state({**before, part: value}, strict=False)
    if part not in ("plugins", "timesteps"):  # which take any entry
        assert skipped and all(path.startswith(part) and reason for path, reason in skipped)
        assert not states_differ(before, fresh.get_state())
    fresh.update_from_batch(batch=regression_batch(8))


def test_groups_and_files(backend: str, trained: Any, tmp_path: Path) -> None:
    state = trained.get_state()
    del state["buffers"]
    lc.save_state(tmp_path / "part", state)
    config = ToyConfig().framework(backend, compile=False, precision="float64").learners(learner_class=type(trained))
    config.training(minibatch_size=4, train_batch_size=8, num_epochs=1, grad_clip=None)
    config.rl_module(rl_module_spec=RLModuleSpec(LinearModule, OBS, TWO_ACTIONS))
    with config.build_learner_group() as group:
        for call in (group.set_state, lambda s: group.load_state(tmp_path / "part")):
            with pytest.raises(StateError, match="buffers"):
                call(state)
        report = [("buffers", "missing: it keeps its value")]
        assert group.set_state(state, strict=False) == report
        assert group.load_state(tmp_path / "part", strict=False) == report
        assert not states_differ(group.get_state()["optimizer"], state["optimizer"])
    other = build(backend)
    assert other.load_state(tmp_path / "part", strict=False) == report


def test_the_order_of_modules_does_not_matter(backend: str) -> None:
    one = build(backend, module_spec=two_modules(("left", "right")))
    other = build(backend, module_spec=two_modules(("right", "left")), config=ToyConfig().debugging(seed=8))
    assert other.set_state(one.get_state(), strict=False) == []
    assert not states_differ(other.get_state(), one.get_state())
