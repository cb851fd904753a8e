"""A loss that reaches no parameter of its module trains nothing: said at build, by module and loss."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import learner_core as lc
from learner_core import RLModule

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


class OneOfThree(ToyLearner):
    """Its second loss does not depend on ``q``."""

    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: Any, fwd_out: Any) -> Any:
        losses = super().compute_loss_for_module(module_id=module_id, config=config, batch=batch, fwd_out=fwd_out)
        return {**losses, "q": self.xp.stop_gradient(losses["q"])}


class OneLoss(lc.Learner):
    """``compute_loss_for_module`` of one loss for all parameters."""

    def configure_optimizers_for_module(self, module_id: str, config: Any) -> None:
        self.register_optimizer(
            module_id=module_id, optimizer_name="all", optimizer=lc.OptimizerSpec("sgd"), params=["v.*"]
        )

    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: Any, fwd_out: Any) -> Any:
        return self.mean(self.xp.square(fwd_out["vf_preds"] - batch["value_targets"]))


class Constant(OneLoss):
    """A loss of the batch alone."""

    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: Any, fwd_out: Any) -> Any:
        return self.mean(self.xp.square(batch["value_targets"]))


class RightIsConstant(OneLoss):
    """The loss of one module of two."""

    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: Any, fwd_out: Any) -> Any:
        loss = super().compute_loss_for_module(module_id=module_id, config=config, batch=batch, fwd_out=fwd_out)
        return self.xp.stop_gradient(loss) if module_id == "right" else loss


class Detached(LinearModule):
    """Its forward pass is cut off."""

    def forward_train(self, params: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
        outputs = super().forward_train(params, batch)
        return {**outputs, "vf_preds": self.xp.stop_gradient(outputs["vf_preds"])}


class Frozen(Detached):
    """Nothing of it is to be trained."""

    frozen_parameters = ("v.weight", "v.bias", "q.weight")


class PartlyFrozen(LinearModule):
    """The bias is left as it is."""

    frozen_parameters = ("v.bias",)


def spec(module_class: type[RLModule]) -> lc.RLModuleSpec:
    return lc.RLModuleSpec(module_class, OBS, TWO_ACTIONS)


@pytest.mark.parametrize(
    ("learner_class", "modules", "said"),
    [
        (OneOfThree, None, "OneOfThree: the loss of optimizer 'q' of module 'default_policy' reaches none"),
        (Constant, None, "Constant: the loss of module 'default_policy' reaches none"),
        (RightIsConstant, two_modules(), "RightIsConstant: the loss of module 'right' reaches none"),
        (OneLoss, spec(Detached), "OneLoss: the loss of module 'default_policy' reaches none"),
    ],
)
def test_a_loss_that_trains_nothing_is_named(backend: str, learner_class: Any, modules: Any, said: str) -> None:
    with pytest.raises(lc.ConfigError) as caught:
        build(backend, learner_class, module_spec=modules)
    assert said in str(caught.value)


def test_a_group_of_one_says_it_too(backend: str) -> None:
    config = ToyConfig().framework(backend, compile=False).learners(learner_class=Constant)
    config.rl_module(rl_module_spec=spec(LinearModule)).training(train_batch_size=8, minibatch_size=4, lr=0.05)
    with pytest.raises(lc.ConfigError, match="the loss of module 'default_policy' reaches none"):
        config.build_learner_group()


@pytest.mark.parametrize("module_class", [Frozen, PartlyFrozen, LinearModule])
def test_what_is_frozen_on_purpose_is_no_mistake(backend: str, module_class: Any) -> None:
    learner = build(backend, OneLoss, module_spec=spec(module_class))
    before = learner.get_module_state()["default_policy"]
    learner.update_from_batch(batch=regression_batch(8))
    moved = {n for n, v in learner.get_module_state()["default_policy"].items() if not np.array_equal(v, before[n])}
    trained = {"v.weight", "v.bias"} - set(module_class.frozen_parameters if module_class is not LinearModule else ())
    assert moved - {"calls"} == trained


def turned_off(backend: str) -> contextlib.AbstractContextManager[Any]:
    """A user's own context in which nothing of theirs is recorded."""
    if backend == "torch":
        import torch

        return torch.no_grad()
    import tensorflow as tf

    stack = contextlib.ExitStack()
    stack.enter_context(stack.enter_context(tf.GradientTape()).stop_recording())
    return stack


@pytest.mark.parametrize("compile", [False, None])
def test_updates_train_where_the_user_records_nothing(backend: str, compile: bool | None) -> None:
    """Building, taking a state and updating, each in such a context, changes nothing of what is learned."""
    outside, inside = build(backend, OneLoss, compile=compile), None
    with turned_off(backend):
        inside = build(backend, OneLoss, compile=compile)
        inside.set_state(outside.get_state())
        inside.update_from_batch(batch=regression_batch(8))
    before = outside.get_module_state()["default_policy"]
    outside.update_from_batch(batch=regression_batch(8))
    assert not states_differ(inside.get_state(), outside.get_state())
    assert not np.array_equal(before["v.weight"], outside.get_module_state()["default_policy"]["v.weight"])
