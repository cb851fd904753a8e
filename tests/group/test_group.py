"""LearnerGroup(num_learners=N) with real processes and real rings: numbers, calls, errors."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import cloudpickle
import numpy as np
import pytest
from gymnasium.spaces import Discrete

import learner_core as lc
from learner_core.group import processes
from learner_core.group.horovod import plugin as horovod_plugin
from learner_core.group.learner_group import LearnerGroup
from learner_core.group.processes import ProcessFleet
from learner_core.group.remote import RemoteLearners

from .conftest import ppo_config
from support.learners import assert_states_equal, flat_state, ppo_batch

# The learners cannot import this file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

Make = Callable[..., LearnerGroup]


def _batches(count: int) -> list[dict[str, Any]]:
    """Batches of 384 rows, and among them some of 385, 7 and 1."""
    odd = {3: 385, 5: 7, 8: 1}
    return [ppo_batch(odd.get(i % 10, 384), Discrete(2), seed=i) for i in range(count)]


def _largest_difference(one: Any, other: Any) -> float:
    a, b = flat_state(one), flat_state(other)
    assert sorted(a) == sorted(b)
    return max(float(np.abs(a[path] - b[path]).max()) for path in a)


@pytest.mark.parametrize(
    ("backend", "collective", "precision", "compile", "bound", "size"),
    [
        ("torch", "auto", "float32", None, 2e-6, 2),
        ("tf", "auto", "float32", None, 2e-6, 2),
        pytest.param("torch", "torch", "float64", False, 1e-10, 2, marks=pytest.mark.slow),
        # Compiling on three learners at once takes minutes.
        pytest.param("torch", "torch", "float64", True, 1e-10, 2, marks=pytest.mark.slow),
        pytest.param("tf", "horovod", "float64", True, 1e-10, 2, marks=pytest.mark.slow),
        pytest.param("tf", "horovod", "float32", False, 2e-6, 2, marks=pytest.mark.slow),
        pytest.param("torch", "horovod", "float32", False, 2e-6, 3, marks=pytest.mark.slow),
        pytest.param("torch", "torch", "float64", False, 1e-10, 4, marks=pytest.mark.slow),
        pytest.param("tf", "horovod", "float32", True, 2e-6, 3, marks=pytest.mark.slow),
        pytest.param("tf", "horovod", "float64", True, 1e-10, 4, marks=pytest.mark.slow),
    ],
)
def test_several_learners_compute_what_one_computes(
    groups: Make, backend: str, collective: str, precision: str, compile: bool | None, bound: float, size: int
) -> None:
    """50 updates, the same executable on one learner and on several."""
    config = ppo_config(backend, precision=precision, compile=compile, collective=collective)
    one = groups(config.copy().learners(num_learners=1))
    two = groups(config.copy().learners(num_learners=size))
    assert "torch" not in sys.modules and "tensorflow" not in sys.modules
    for step, batch in enumerate(_batches(50)):
        timesteps = {"num_env_steps_sampled_lifetime": 384 * step}
        alone = one.update_from_batch(batch=batch, timesteps=timesteps)
        together = two.update_from_batch(batch=batch, timesteps=timesteps)
        # Left alone, TensorFlow compiles at once, and Torch after many more steps than these.
        assert together["__all__"]["compiled"] == float(backend == "tf" if compile is None else compile)
        assert together["default_policy"]["mean_kl"] == pytest.approx(alone["default_policy"]["mean_kl"], abs=1e-5)
    assert one.collective == "" and two.collective == ("horovod" if collective == "auto" else collective)
    first, *others = two.foreach_learner(lambda learner: learner.get_state())
    for other in others:
        assert_states_equal(first, other)
    assert _largest_difference(one.get_weights(), two.get_weights()) <= bound


def test_without_horovod_torch_takes_its_own_collective_and_tensorflow_names_the_command(
    groups: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(horovod_plugin.importlib, "util", SimpleNamespace(find_spec=lambda name: None))
    with pytest.raises(lc.LearnerGroupError, match=r"nothing here sums .* 'tf'.*run `learner-core horovod build`$"):
        ppo_config("tf", num_learners=2).build_learner_group()
    two = groups(ppo_config("torch", num_learners=2))
    assert two.collective == "torch"
    two.update_from_batch(batch=ppo_batch(384, Discrete(2)))
    assert two.foreach_learner(lambda learner: learner.config.collective) == ["torch", "torch"]


def test_a_ring_of_torch_and_tensorflow(groups: Make) -> None:
    config = ppo_config("torch", num_learners=2)
    one = groups(config.copy().learners(num_learners=1))
    frozen = config.copy().freeze()
    mixed = RemoteLearners(frozen, None, ProcessFleet(frozen), frameworks=["torch", "tf"])
    try:
        for batch in _batches(5):
            one.update_from_batch(batch=batch)
            mixed.update(batch=batch, timesteps={})
        torch, tf = mixed.foreach(lambda learner: learner.get_module_state())
    finally:
        mixed.close()
    assert _largest_difference(one.get_weights(), torch) <= 2e-6
    assert _largest_difference(torch, tf) <= 2e-6


def test_every_call_of_a_group(groups: Make, tmp_path: Any) -> None:
    config = ppo_config("torch", num_learners=2, collective="torch")
    group = groups(config)
    batch = _batches(1)[0]
    state = group.update_from_batch(batch=batch, return_state=True)["_state"]
    assert state["counters"]["num_updates"] == 1
    assert group.foreach_learner(lambda learner: learner.ranks.rank) == [0, 1]
    assert len(set(group.foreach_learner(lambda learner: os.getpid()))) == 2
    group.save_state(tmp_path / "state")
    group.update_from_batch(batch=batch)
    group.load_state(tmp_path / "state")
    for other in group.foreach_learner(lambda learner: learner.get_state()):
        assert_states_equal(state, other)
    weights = group.get_weights()
    weights["default_policy"] = {name: 0.5 * value for name, value in weights["default_policy"].items()}
    group.set_weights(weights)
    for other in group.foreach_learner(lambda learner: learner.get_module_state()):
        assert_states_equal(weights, other)
    group.add_module(module_id="second", module_spec=lc.RLModuleSpec())
    assert list(group.module_specs) == ["default_policy", "second"]
    results = group.update_from_batch(batch={"default_policy": batch, "second": ppo_batch(3, Discrete(2))})
    assert results["second"]["num_minibatch_steps"] == 2.0
    group.remove_module("second")
    assert list(group.module_specs) == ["default_policy"]
    group.update_from_batch(batch=batch)


def test_asynchronous_updates_are_the_blocking_ones_in_order(groups: Make) -> None:
    config = ppo_config("torch", num_learners=2, collective="torch", max_requests_in_flight_per_learner=2)
    one, two = groups(config.copy().learners(num_learners=1)), groups(config)
    reduced = 0.0
    for batch in _batches(6):
        one.update_from_batch(batch=batch)
        results = two.update_from_batch(batch=batch, async_update=True)
        reduced += results.get("__all__", {}).get("num_updates_reduced", 0.0)
    assert reduced + two.wait()["__all__"]["num_updates_reduced"] == 6.0
    assert _largest_difference(one.get_weights(), two.get_weights()) <= 2e-6


class Unpicklable:
    """Of the user's own objects in a batch none travels."""

    def __reduce__(self) -> Any:
        raise AssertionError("pickled")


def test_columns_that_nobody_reads_do_not_matter(groups: Make) -> None:
    group = groups(ppo_config("torch", num_learners=2, collective="torch"))
    batch = _batches(1)[0]
    more = {"infos": np.array([{}] * len(batch["obs"]), object), "giant": np.broadcast_to(1.0, (2**40,))}
    group.update_from_batch(batch={**batch, **more, "unpicklable": Unpicklable()})


def test_refusals_of_all_leave_the_group_as_it_was(groups: Make) -> None:
    group = groups(ppo_config("torch", num_learners=2, collective="torch"))
    batch = _batches(1)[0]
    before = group.get_state()
    with pytest.raises(lc.BatchError, match="column 'advantages': holds 1 NaN") as refused:
        bad = batch["advantages"].copy()
        bad[3] = np.nan
        group.update_from_batch(batch={**batch, "advantages": bad})
    assert refused.value.column == "advantages"
    assert "check_batch" in refused.value.__notes__[0]
    with pytest.raises(lc.BatchError, match="cannot be trained on"):
        group.update_from_batch(batch={**batch, "obs": batch["obs"].astype(object)})
    giant = np.broadcast_to(batch["advantages"][:1], (2**40,))
    for column, text in (
        (np.ma.masked_array(batch["advantages"]), "is a masked array"),
        (giant, r"is an array of shape \[1099511627776\] over only 8 bytes"),
        (lambda: 0, "expected a numpy array, got function"),
        ([Unpicklable()] * len(batch["obs"]), "is a list that holds .*Unpicklable"),
    ):
        with pytest.raises(lc.BatchError, match=f"column 'advantages': {text}"):
            group.update_from_batch(batch={**batch, "advantages": column})
    with pytest.raises(lc.BatchError, match="a batch is a dict of numpy arrays, got ndarray"):
        group.update_from_batch(batch=batch["obs"])
    with pytest.raises(ZeroDivisionError):
        group.foreach_learner(lambda learner: 1 // 0)
    with pytest.raises(lc.LearnerGroupError, match="cannot be sent"):
        group.foreach_learner((item for item in ()).send)

    class Unreadable:
        def __reduce__(self) -> Any:
            return int, ("no number",)

    with pytest.raises(lc.LearnerGroupError, match="what learner 0 answers cannot be read: ValueError"):
        group.foreach_learner(lambda learner: Unreadable())
    assert_states_equal(before, group.get_state())
    group.update_from_batch(batch=batch)


def test_learners_that_fell_out_of_step_are_noticed_and_repaired(groups: Make) -> None:
    group = groups(ppo_config("torch", num_learners=2, collective="torch", check_parameters_every=2))
    batch = _batches(1)[0]
    group.update_from_batch(batch=batch)

    def disturb(learner: Any) -> None:
        if learner.ranks.rank == 1:
            learner.update_parameters(lambda mid, params: {name: value + 1e-6 for name, value in params.items()})

    group.foreach_learner(disturb)
    with pytest.warns(RuntimeWarning, match="after update 2 the learners' parameters differed"):
        group.update_from_batch(batch=batch)
    first, second = group.foreach_learner(lambda learner: learner.get_state())
    assert_states_equal(first, second)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            group.update_from_batch(batch=batch)


def test_what_cannot_be_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "nursery_for", lambda *arguments: pytest.fail("something was started"))
    with pytest.raises(lc.LearnerGroupError, match="need 128 GPUs, this machine shows"):
        ppo_config("torch", num_learners=2, num_gpus_per_learner=64).build_learner_group()
    with pytest.raises(lc.LearnerGroupError, match=r"reduces Torch's arrays only.*learner-core horovod build"):
        ppo_config("tf", num_learners=2, collective="torch").build_learner_group()


def test_a_learner_that_cannot_be_built_is_an_error_of_the_group() -> None:
    with pytest.raises(lc.ConfigError, match="device='cuda:7'"):
        ppo_config("torch", num_learners=2, collective="torch").framework(
            "torch", device="cuda:7"
        ).build_learner_group()


def test_a_group_that_was_shut_down_refuses(groups: Make) -> None:
    group = groups(ppo_config("torch", num_learners=1))
    start = time.monotonic()
    group.shutdown()
    group.shutdown()
    assert time.monotonic() - start < 60
    with pytest.raises(lc.LearnerGroupError, match="shut down"):
        group.get_weights()
