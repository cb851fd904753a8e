"""What a hook gives back is used or refused: nobody waits in vain for the effect of it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from learner_core.errors import ConfigError, StateError
from learner_core_algorithms.ppo.learner import PPOLearner

from support.told import told


def _says(**hooks: Any) -> Any:
    return type("Own", (PPOLearner,), hooks)


CASES = {
    "should_module_be_updated": (
        {"should_module_be_updated": lambda self, module_id, batch: None},
        "should_module_be_updated returned None: expected True or False",
    ),
    "after_step returns": (
        {"after_step": lambda self, *, module_id, params, targets, config: dict(params)},
        "after_step returned dict.*edit the dicts",
    ),
    "after_step adds": (
        {"after_step": lambda self, *, module_id, params, targets, config: params.update(nix=1.0)},
        "after_step leaves rl_module/default_policy/nix",
    ),
    "after_step, targets": (
        {"after_step": lambda self, *, module_id, params, targets, config: targets.update({"pi.0.bias": 1.0})},
        "after_step leaves targets/default_policy/pi.0.bias",
    ),
    "before": (
        {"before_gradient_based_update": lambda self, *, timesteps: {"metric": 1.0}},
        "before_gradient_based_update returned dict",
    ),
    "after": (
        {"after_gradient_based_update": lambda self, *, timesteps: {"metric": 1.0}},
        r"after_gradient_based_update returned dict.*self\.results",
    ),
    "optimizers": (
        {"configure_optimizers_for_module": lambda self, module_id, config: ["adam"]},
        r"configure_optimizers_for_module returned list.*register_optimizer",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_answer_that_nobody_would_read_is_refused(training_backend_name: str, case: str) -> None:
    hooks, message = CASES[case]
    config = told("ppo", training_backend_name).learners(learner_class=_says(**hooks))
    with pytest.raises(ConfigError, match=message), config.build() as algo:
        algo.train()


def test_gradients_of_parameters_that_there_are_not(training_backend_name: str) -> None:
    def more(self: Any, *, module_id: str, config: Any, gradients: dict[str, Any]) -> dict[str, Any]:
        return {**gradients, "nix": next(iter(gradients.values()))}

    config = told("ppo", training_backend_name)
    with pytest.raises(ConfigError, match="rl_module/default_policy/nix, which there is not"):
        config.learners(learner_class=_says(postprocess_gradients_for_module=more)).build()


def _only_pi(self: Any, module_id: str, config: Any) -> None:
    self.register_optimizer(module_id=module_id, params=["pi.*"])


def _without(gradients: Any, *, name: str) -> Any:
    return {mid: {n: g for n, g in arrays.items() if n != name} for mid, arrays in gradients.items()}


def _plus(gradients: Any, *, name: str) -> Any:
    return {mid: {**arrays, name: next(iter(arrays.values()))} for mid, arrays in gradients.items()}


def _computed(change: Any) -> Any:
    """A ``compute_gradients`` that changes what it computes."""

    def compute(self: Any, loss_fn: Any, params: Any) -> Any:
        gradients, aux = PPOLearner.compute_gradients(self, loss_fn, params)
        return change(gradients), aux

    return {"compute_gradients": compute}


def _applied(change: Any) -> Any:
    """An ``apply_gradients`` that applies something else."""
    return {"apply_gradients": lambda self, gradients: PPOLearner.apply_gradients(self, change(gradients))}


def _twice(self: Any, gradients: Any) -> None:
    PPOLearner.apply_gradients(self, gradients)
    PPOLearner.apply_gradients(self, gradients)


GRADIENTS = {
    "none": (_applied(lambda gradients: {}), "apply_gradients: the gradients are missing for module 'default_policy'"),
    "no array": (_applied(lambda gradients: {"default_policy": {}}), "the gradients are missing"),
    "no dict": (_applied(lambda gradients: [1.0]), r"apply_gradients: expected gradients .* got \[1\.0\]"),
    "one missing": (_applied(partial(_without, name="pi.0.bias")), "the gradient of 'pi.0.bias' is missing"),
    "another module": (
        _applied(lambda gradients: {**gradients, "nix": {}}), "apply_gradients: gradients of rl_module/nix, which there"
    ),
    "unknown": (_applied(partial(_plus, name="nix")), "a gradient of rl_module/default_policy/nix, which there is not"),
    "frozen": (
        {"configure_optimizers_for_module": _only_pi, **_applied(partial(_plus, name="vf.0.bias"))},
        "rl_module/default_policy/vf.0.bias, which no optimizer has: it is frozen",
    ),
    "never": ({"apply_gradients": lambda self, gradients: None}, "apply_gradients never takes the optimizers' step"),
    "twice": ({"apply_gradients": _twice}, "apply_gradients takes it more than once"),
    "computed none": (_computed(lambda gradients: {}), "compute_gradients: the gradients are missing"),
    "computed too many": (_computed(partial(_plus, name="nix")), "compute_gradients: a gradient of .*/nix, which"),
    "postprocessed": (
        {"postprocess_gradients": lambda self, gradients: _without(gradients, name="vf.0.bias")},
        "the gradient of 'vf.0.bias' is missing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", GRADIENTS)
def test_gradients_that_would_train_nothing_are_refused(training_backend_name: str, case: str) -> None:
    hooks, message = GRADIENTS[case]
    with pytest.raises(ConfigError, match=message):
        told("ppo", training_backend_name).learners(learner_class=_says(**hooks)).build_learner()


def test_what_would_set_nothing_is_refused(training_backend_name: str) -> None:
    with told("ppo", training_backend_name).build_learner_group() as group:
        before = group.get_weights()
        with pytest.raises(StateError, match=r"the weights of one module at least, got {}: nothing would be set"):
            group.set_weights({})
        with pytest.raises(ConfigError, match="update_targets: no module has targets"):
            group.foreach_learner(lambda learner: learner.update_targets(lambda mid, params, targets: targets))
        assert group.get_weights().keys() == before.keys()
    learner = told("appo", training_backend_name).build_learner()
    with pytest.raises(ConfigError, match="update_targets: fn returns targets/default_policy/nix, which there is"):
        learner.update_targets(lambda module_id, params, targets: {**targets, "nix": 1.0})


def test_a_parameter_that_no_optimizer_has_cannot_be_moved_by_after_step(training_backend_name: str) -> None:
    def optimizers(self: Any, module_id: str, config: Any) -> None:
        self.register_optimizer(module_id=module_id, params=["pi.*"])

    def moves(self: Any, *, module_id: str, params: Any, targets: Any, config: Any) -> None:
        params["vf.0.bias"] = params["vf.0.bias"] * 0.5

    own = _says(configure_optimizers_for_module=optimizers, after_step=moves)
    with pytest.raises(
        ConfigError, match=r"after_step changes rl_module/default_policy/vf\.0\.bias, which no optimizer"
    ):
        told("ppo", training_backend_name).learners(learner_class=own).build()
