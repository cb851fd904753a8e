"""Changes of a Learner that take a new build: other settings, other modules.

Needs a built Learner. Refuses settings that were fixed when it was built, and those that by now are variables. Where a
change fails, the Learner is as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..config.changes import changed
from ..config.needs import refuse_idle
from ..config.values import same
from ..errors import ConfigError
from . import learner_state
from .build import LearnerBuild
from .rl_module import RLModuleSpec

if TYPE_CHECKING:
    from .learner import Learner

__all__ = ["change_modules", "check_memory", "check_module_ids", "set_config"]

#: What no step reads by itself. Not ``policies_to_train``: modules that do not learn are not in the step.
_HOST_SETTINGS = frozenset({"policy_settings"})


def set_config(learner: Learner, settings: Mapping[str, Any]) -> None:
    """See ``Learner.set_config``."""
    before, build = learner.config, learner._build
    config = changed(before, settings, by="learner")
    check_module_ids(learner, config, settings)
    check_memory(learner, config, settings)
    for name, value in settings.items():
        _refuse_starting_value(learner, name, value)
    for module_id, values in config.policy_settings.items():
        for name, value in values.items():
            if value != getattr(before.for_module(module_id), name):
                _refuse_starting_value(learner, name, value)
    kept = all(
        config.for_module(mid).traced_fields() == traced
        and _differing(before.for_module(mid), config.for_module(mid)) <= {*_HOST_SETTINGS, *traced}
        for mid, traced in build.traced.items()
    )
    learner.config = config
    if kept:
        return
    try:
        _rebuild(learner)
    except Exception:
        learner.config = before
        learner._build = build
        raise


def check_module_ids(learner: Learner, config: Any, names: Iterable[str]) -> None:
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
            learner._one_module(module_id)


def check_memory(learner: Learner, config: Any, names: Iterable[str]) -> None:
    """Refuse settings of a memory where no module has one; arguments as :func:`check_module_ids`, of a built Learner.

    Raises:
        ConfigError: says which.
    """
    plans = learner._build.plans.values()
    has_memory = any(plan.sequences is not None and plan.sequences.recurrent for plan in plans)
    refuse_idle(config, names, has_memory=has_memory)


def _differing(one: Any, other: Any) -> set[str]:
    """Names of the settings in which two configs differ."""
    return {name for name in one.settings() if not same(getattr(one, name), getattr(other, name))}


def _refuse_starting_value(learner: Learner, name: str, value: Any) -> None:
    """A setting that is a variable by now would be changed without effect."""
    variable = learner.config.starting_values.get(name)
    for mid in learner._build.plans:
        if variable in learner._host_variables[mid]:
            how = f"learner.variables[{mid!r}][{variable!r}] = ..."
        elif variable in learner._build.trainable_variables[mid]:
            how = f"learner.update_parameters(lambda module_id, params: {{**params, {variable!r}: ...}})"
        else:
            continue
        raise ConfigError(
            f"{name}={value!r} is only where learning started: by now it is the variable {variable!r}, which "
            f"moves and is saved with the state. To change that: {how}"
        )


def change_modules(
    learner: Learner, specs: dict[str, RLModuleSpec], settings: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Rebuild with other modules, new ones with settings of their own; those that stay keep their state.

    Raises:
        ConfigError: parameters that modules share would come or go; nothing has changed.
    """
    _refuse_other_sharing(learner.module_specs, specs)
    before, config, build = learner.module_specs, learner.config, learner._build
    learner.config = config.with_modules(specs, settings)
    learner.module_specs = specs
    try:
        _rebuild(learner)
    except Exception:
        learner.module_specs, learner.config = before, config
        learner._build = build
        raise


def _refuse_other_sharing(before: Mapping[str, RLModuleSpec], after: Mapping[str, RLModuleSpec]) -> None:
    """Refuse a module that holds parameters for others, added or removed: weights would move from one to another."""
    holders = [{mid: spec for mid, spec in specs.items() if spec.shares} for specs in (before, after)]
    for mid in holders[0].keys() ^ holders[1].keys():
        spec = holders[0].get(mid) or holders[1][mid]
        raise ConfigError(
            f"module {mid!r} holds the parameters {', '.join(spec.shares)} for {' and '.join(spec.shared_by)}: it "
            "cannot come or go while these learn. Name it in the rl_module_spec that a run begins with"
        )


def _rebuild(learner: Learner) -> None:
    state = learner.get_state()
    saved = (learner._carry, learner._optimizer_steps, learner._host_variables)
    try:
        LearnerBuild(learner).run()
        learner_state.restore_shared(learner, state)
    except Exception:
        learner._carry, learner._optimizer_steps, learner._host_variables = saved
        raise
