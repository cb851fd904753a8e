"""Modules that come, go, are frozen or have no rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from learner_core.errors import BatchError, ConfigError
from learner_core.learning.rl_module import MultiRLModuleSpec, RLModuleSpec

from support.learners import (
    OBS,
    TWO_ACTIONS,
    LinearModule,
    ToyConfig,
    ToyLearner,
    build,
    regression_batch,
    states_differ,
    two_modules,
)


def test_a_module_without_rows_is_left_bit_unchanged(backend: str) -> None:
    learner = build(backend, module_spec=two_modules())
    learner.update_from_batch(batch={"left": regression_batch(8), "right": regression_batch(8)})
    before = learner.get_state()
    for _ in range(2):
        results = learner.update_from_batch(batch={"left": regression_batch(7)})
    after = learner.get_state()
    assert results["right"]["num_minibatch_steps"] == 0.0 and "vf_loss" not in results["right"]
    for part in ("rl_module", "targets", "buffers", "variables", "optimizer"):
        assert not states_differ(before[part]["right"], after[part]["right"])
        assert states_differ(before[part]["left"], after[part]["left"])


def test_a_module_trains_the_same_alone_and_beside_another(backend: str) -> None:
    """Modules share neither order nor noise."""
    together = build(backend, module_spec=two_modules())
    alone = build(backend, module_spec=two_modules(("left",)))
    together.update_from_batch(batch={"left": regression_batch(7), "right": regression_batch(8, 1)})
    alone.update_from_batch(batch={"left": regression_batch(7)})
    for part in ("rl_module", "targets", "variables", "optimizer"):
        assert not states_differ(together.get_state()[part]["left"], alone.get_state()[part]["left"])


def test_modules_that_do_not_train_are_frozen(backend: str) -> None:
    config = ToyConfig().multi_agent(policies_to_train=["left"])
    learner = build(backend, module_spec=two_modules(), config=config)
    before = learner.get_state()
    learner.update_from_batch(batch={"left": regression_batch(8), "right": regression_batch(8)})
    after = learner.get_state()
    for part in ("rl_module", "targets", "buffers", "variables", "optimizer"):
        assert not states_differ(before[part]["right"], after[part]["right"])


def test_all_modules_frozen(backend: str) -> None:
    learner = build(backend, module_spec=two_modules(), config=ToyConfig().multi_agent(policies_to_train=[]))
    before = learner.get_state()
    results = learner.update_from_batch(batch={"left": regression_batch(8), "right": regression_batch(8)})
    assert results["__all__"]["num_modules_updated"] == 0.0 and set(results) == {"left", "right", "__all__"}
    for part in ("rl_module", "targets", "buffers", "variables", "optimizer"):
        assert not states_differ(before[part], learner.get_state()[part])


def test_a_learner_without_optimizers(backend: str) -> None:
    """Every parameter frozen: steps run, metrics come, nothing moves."""

    class Frozen(ToyLearner):
        def configure_optimizers_for_module(self, module_id: str, config: Any) -> None:
            pass

        def compute_loss_for_module(self, **kwargs: Any) -> Any:
            return super().compute_loss_for_module(**kwargs)["v"]

    learner = build(backend, Frozen)
    before = learner.get_module_state()
    results = learner.update_from_batch(batch=regression_batch(8))
    assert results["default_policy"]["vf_loss"] > 0
    assert states_differ(before, learner.get_module_state()) == ["default_policy/calls"]


def test_parameters_without_an_optimizer_are_frozen_and_in_the_state(backend: str) -> None:
    class HalfFrozen(ToyLearner):
        def configure_optimizers_for_module(self, module_id: str, config: Any) -> None:
            self.register_optimizer(module_id=module_id, optimizer_name="v", params=["v.weight"])

        def compute_loss_for_module(self, **kwargs: Any) -> Any:
            return super().compute_loss_for_module(**kwargs)["v"]

    learner = build(backend, HalfFrozen)
    before = learner.get_state()
    learner.update_from_batch(batch=regression_batch(8))
    after = learner.get_state()
    assert set(after["rl_module"]["default_policy"]) == {"v.weight", "v.bias", "q.weight"}
    changed = states_differ(before["rl_module"], after["rl_module"])
    assert changed == ["default_policy/v.weight"]
    learner.set_state(before)
    assert not states_differ(before, learner.get_state())


def test_add_and_remove_module(backend: str) -> None:
    learner = build(backend, module_spec=two_modules(("left",)))
    learner.update_from_batch(batch={"left": regression_batch(8)})
    before = learner.get_state()
    learner.add_module(module_id="right", module_spec=RLModuleSpec(LinearModule, OBS, TWO_ACTIONS))
    grown = learner.get_state()
    for part in ("rl_module", "targets", "buffers", "variables", "optimizer"):
        assert not states_differ(before[part]["left"], grown[part]["left"])
        assert set(grown[part]) == {"left", "right"}
    assert not states_differ(before["counters"], grown["counters"])
    # The new module starts as it would have in a learner built with both.
    fresh = build(backend, module_spec=two_modules()).get_state()
    assert not states_differ(fresh["rl_module"]["right"], grown["rl_module"]["right"])
    results = learner.update_from_batch(batch={"left": regression_batch(8), "right": regression_batch(5)})
    assert results["right"]["num_minibatch_steps"] == 2.0
    trained = learner.get_state()
    learner.remove_module("left")
    rest = learner.get_state()
    assert set(rest["rl_module"]) == {"right"}
    assert not states_differ(trained["optimizer"]["right"], rest["optimizer"]["right"])
    learner.update_from_batch(batch={"right": regression_batch(5)})
    with pytest.raises(ConfigError, match="only one"):
        learner.remove_module("right")


def test_add_and_remove_refuse(backend: str) -> None:
    learner = build(backend, module_spec=two_modules())
    before = learner.get_state()
    spec = RLModuleSpec(LinearModule, OBS, TWO_ACTIONS)
    for module_id, text in (("left", "exists"), ("a/b", "without"), ("__all__", "__all__"), ("", "non-empty")):
        with pytest.raises(ConfigError, match=text):
            learner.add_module(module_id=module_id, module_spec=spec)
    with pytest.raises(ConfigError, match="'left'"):
        learner.remove_module("lefd")

    class Broken(LinearModule):
        def forward_train(self, params: Any, batch: Any) -> Any:
            raise ValueError("no such layer")

    with pytest.raises(ValueError, match="no such layer"):
        learner.add_module(module_id="third", module_spec=RLModuleSpec(Broken, OBS, TWO_ACTIONS))
    assert not states_differ(before, learner.get_state())
    learner.update_from_batch(batch={"left": regression_batch(4), "right": regression_batch(4)})


def test_batches_of_several_modules_are_told_apart(backend: str) -> None:
    learner = build(backend, module_spec=two_modules())
    for batch, text in (
        (regression_batch(4), "there are 2 modules"),
        ({"left": regression_batch(4), "rigth": regression_batch(4)}, "'right'"),
        ({"left": np.zeros(3)}, "dict of columns"),
        ({}, "empty"),
        ([1], "dict"),
        (None, "dict"),
    ):
        before = learner.get_state()
        with pytest.raises(BatchError, match=text):
            learner.update_from_batch(batch=batch)
        assert not states_differ(before, learner.get_state())
    with pytest.raises(BatchError, match="module 'right': column 'obs': missing"):
        learner.update_from_batch(batch={"left": regression_batch(4), "right": {"value_targets": np.zeros(4)}})
    with pytest.raises(ConfigError, match="module_id="):
        learner.batch_spec()
    assert set(learner.batch_spec("left")) == {"obs", "value_targets"}


def test_update_parameters_refuses_what_does_not_fit(backend: str) -> None:
    from learner_core.errors import StateError

    learner = build(backend)
    before = learner.get_state()
    learner.update_parameters(lambda module_id, params: {n: p + 0.0 for n, p in params.items()})
    assert not states_differ(before, learner.get_state())
    with pytest.raises(StateError, match="same parameter names"):
        learner.update_parameters(lambda module_id, params: {"v.weight": params["v.weight"]})
    with pytest.raises(StateError, match=r"rl_module/default_policy/v.bias: .*shape"):
        learner.update_parameters(lambda module_id, params: {**params, "v.bias": params["v.weight"]})
    assert not states_differ(before, learner.get_state())
    learner.update_parameters(lambda module_id, params: {**params, "v.bias": np.array([7.0], np.float32)})
    assert learner.get_module_state()["default_policy"]["v.bias"].tolist() == [7.0]
    learner.update_from_batch(batch=regression_batch(4))
    assert learner.get_module_state()["default_policy"]["v.bias"].dtype == np.float64


def test_a_specification_for_each_module() -> None:
    spec = MultiRLModuleSpec({"a": RLModuleSpec(LinearModule)})
    assert list(spec) == ["a"] and spec["a"].module_class is LinearModule
    with pytest.raises(ConfigError, match=r"'b'.*There is: a"):
        spec["b"]
    with pytest.raises(ConfigError, match="at least one"):
        MultiRLModuleSpec({})
