"""What users of other libraries ask of an Algorithm is answered, and what Python asks of it works."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import learner_core as lc
from learner_core.config.foreign_table import ALGORITHM, LEARNER
from learner_core.errors import LearnerCoreError, UnknownNameError
from learner_core_algorithms.ppo.learner import PPOLearner

from support.told import told


def test_an_attribute_is_answered(training_backend_name: str) -> None:
    with told("ppo", training_backend_name).build() as algo:
        for name, entry in ALGORITHM.items():
            assert not hasattr(algo, name), name
            with pytest.raises(UnknownNameError) as error:
                getattr(algo, name)
            assert str(error.value).endswith(f"{entry.library}: {name}; here: {entry.words}.")
            assert isinstance(error.value, LearnerCoreError) and isinstance(error.value, AttributeError)
        with pytest.raises(UnknownNameError, match="Did you mean 'train'"):
            algo.trian()
        with pytest.raises(AttributeError, match="no attribute '__len__'"):
            algo.__len__()
        assert getattr(algo, "learn", None) is None


@pytest.mark.fast_on_torch
def test_an_attribute_of_a_learner_is_answered(training_backend_name: str) -> None:
    group = told("ppo", training_backend_name).build_learner_group()
    learner = told("ppo", training_backend_name).build_learner()
    for owner in (learner, group):
        for name, entry in LEARNER.items():
            assert not hasattr(owner, name), name
            with pytest.raises(UnknownNameError) as error:
                getattr(owner, name)
            assert str(error.value).endswith(f"here: {entry.words}.")
    group.shutdown()


class Ported(PPOLearner):
    """As it would be written for RLlib."""

    def compute_loss_for_module(self, **arguments: Any) -> Any:
        loss = super().compute_loss_for_module(**arguments)
        self.metrics.log_value(("default_policy", "loss"), loss)  # type: ignore[attr-defined]
        return loss


@pytest.mark.fast_on_torch
def test_a_name_that_a_hook_types_is_answered(training_backend_name: str) -> None:
    config = told("ppo", training_backend_name).learners(learner_class=Ported)
    with pytest.raises(LearnerCoreError, match=r"RLlib: metrics; here: `self\.log\(name, value\)`"):
        config.build_learner()


class NoForward(lc.RLModule):
    """As it would be written for RLlib."""

    def init(self, rng: Any) -> dict[str, Any]:
        return {"w": np.zeros((2, 2), np.float32)}

    def _forward_train(self, batch: Any) -> Any:
        return batch


@pytest.mark.fast_on_torch
def test_a_forward_without_parameters_is_named(training_backend_name: str) -> None:
    config = told("ppo", training_backend_name).rl_module(rl_module_spec=lc.RLModuleSpec(NoForward))
    with pytest.raises(
        Exception, match=r"must implement forward_train\(params, batch\): _forward_train\(batch\) of RLlib"
    ):
        config.build_learner()


@pytest.mark.fast_on_torch
def test_an_error_inside_a_property_is_its_own(training_backend_name: str) -> None:
    config = told("ppo", training_backend_name)
    kind: Any = config._class_of("algorithm_class", None)

    class Own(kind):
        @property
        def broken(self) -> Any:
            return [].nothing  # type: ignore[attr-defined]

    with Own(config.copy().freeze()) as algo, pytest.raises(AttributeError, match="'list' object has no attribute"):
        _ = algo.broken
