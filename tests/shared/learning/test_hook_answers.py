"""What a hook gives back is used or refused: nobody waits in vain for the effect of it."""

from __future__ import annotations

from typing import Any

import pytest

from learner_core.errors import ConfigError
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
