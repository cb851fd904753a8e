"""What may be changed about a Learner, and what takes a new build: other settings, other modules.

Needs a built Learner. Refuses settings that were fixed when it was built, and those that by now are variables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ...config.algorithm_settings import AlgorithmSettings
from ...config.changes import changed
from ...config.needs import refuse_idle
from ...config.values import same
from ...errors import ConfigError
from ..rl_module import RLModuleSpec
from ..step.hooks import LearnerHooks

__all__ = ["changed_config", "check_memory", "check_module_ids", "refuse_other_sharing", "takes_a_build"]

#: What no step reads by itself. Not ``policies_to_train``: modules that do not learn are not in the step.
_HOST_SETTINGS = frozenset({"policy_settings"})


def changed_config(learner: LearnerHooks, settings: Mapping[str, object]) -> AlgorithmSettings:
    """The configuration with other settings.

    Raises:
        ConfigError: unknown, ill-typed, or fixed when the learner was built.
    """
    before = learner.config
    config: AlgorithmSettings = changed(before, settings, by="learner")
    check_module_ids(learner, config, settings)
    check_memory(learner, config, settings)
    for name, value in settings.items():
        _refuse_starting_value(learner, name, value)
    for module_id, values in config.policy_settings.items():
        for name, value in values.items():
            if value != getattr(before.for_module(module_id), name):
                _refuse_starting_value(learner, name, value)
    return config


def takes_a_build(learner: LearnerHooks, config: AlgorithmSettings) -> bool:
    """Whether a Learner has to be built anew for that configuration: more differs than what its tables hold."""
    return not all(
        config.for_module(mid).traced_fields() == plan.traced
        and _differing(learner.config.for_module(mid), config.for_module(mid)) <= {*_HOST_SETTINGS, *plan.traced}
        for mid, plan in learner.blueprint.plans.items()
    )


def check_module_ids(learner: LearnerHooks, config: AlgorithmSettings, names: Iterable[str]) -> None:
    """Refuse ``policies_to_train`` and ``policy_settings`` of modules that there are not.

    Args:
        learner: whose modules are known.
        config: the configuration to be checked.
        names: the settings that were set, by field name.

    Raises:
        ConfigError: names the module.
    """
    for name in {"policies_to_train", "policy_settings"} & set(names):
        for module_id in getattr(config, name) or ():
            learner.one_module(module_id)


def check_memory(learner: LearnerHooks, config: AlgorithmSettings, names: Iterable[str]) -> None:
    """Refuse settings of a memory where no module has one; arguments as :func:`check_module_ids`, of a built Learner.

    Raises:
        ConfigError: says which.
    """
    plans = learner.blueprint.plans.values()
    has_memory = any(plan.sequences is not None and plan.sequences.recurrent for plan in plans)
    refuse_idle(config, names, has_memory=has_memory)


def _differing(one: AlgorithmSettings, other: AlgorithmSettings) -> set[str]:
    """Names of the settings in which two configs differ."""
    return {name for name in one.settings() if not same(getattr(one, name), getattr(other, name))}


def _refuse_starting_value(learner: LearnerHooks, name: str, value: object) -> None:
    """A setting that is a variable by now would be changed without effect."""
    variable = learner.config.starting_values.get(name)
    for mid, plan in learner.blueprint.plans.items():
        if variable in plan.host_variables:
            how = f"learner.variables[{mid!r}][{variable!r}] = ..."
        elif variable in plan.trained_variables:
            how = f"learner.update_parameters(lambda module_id, params: {{**params, {variable!r}: ...}})"
        else:
            continue
        raise ConfigError(
            f"{name}={value!r} is only where learning started: by now it is the variable {variable!r}, which "
            f"moves and is saved with the state. To change that: {how}"
        )


def refuse_other_sharing(before: Mapping[str, RLModuleSpec], after: Mapping[str, RLModuleSpec]) -> None:
    """Refuse a module that holds parameters for others, added or removed: weights would move from one to another.

    Raises:
        ConfigError: names it.
    """
    holders = [{mid: spec for mid, spec in specs.items() if spec.shares} for specs in (before, after)]
    for mid in holders[0].keys() ^ holders[1].keys():
        spec = holders[0].get(mid) or holders[1][mid]
        raise ConfigError(
            f"module {mid!r} holds the parameters {', '.join(spec.shares)} for {' and '.join(spec.shared_by)}: it "
            "cannot come or go while these learn. Name it in the rl_module_spec that a run begins with"
        )
