"""Changes of a Learner that take a new build: other settings, other modules.

Needs a built Learner. Refuses settings that were fixed when it was built, and those that by now are variables. Where a
change fails, the Learner is as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from . import learner_state
from .build import LearnerBuild
from .rl_module import RLModuleSpec

if TYPE_CHECKING:
    from .learner import Learner

__all__ = ["change_modules", "set_config"]

#: Settings that no step reads, which may change at any time though they are not of ``.training()``.
_HOST_SETTINGS = ("policies_to_train",)


def set_config(learner: Learner, settings: Mapping[str, Any]) -> None:
    """See ``Learner.set_config``."""
    known = learner.config.settings()
    for name in settings:
        setting = known.get(name)
        if setting is not None and setting.method != "training" and name not in _HOST_SETTINGS:
            raise ConfigError(
                f"{name}={settings[name]!r} was fixed when the learner was built (.{setting.method}()); build a "
                "new learner from a changed config and give it this one's state"
            )
        _refuse_starting_value(learner, name, settings[name])
    config = learner.config.replaced(**settings)
    before, build = learner.config, learner._build
    for module_id in config.policies_to_train or ():
        build.known(module_id)
    traced_only = all(
        set(settings) <= {*_HOST_SETTINGS, *traced} and config.for_module(mid).traced_fields() == traced
        for mid, traced in build.traced.items()
    )
    learner.config = config
    if traced_only:
        return
    try:
        _rebuild(learner)
    except Exception:
        learner.config = before
        learner._build = build
        raise


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
    """Rebuild with other modules, new ones with settings of their own; those that stay keep their state."""
    before, config, build = learner.module_specs, learner.config, learner._build
    learner.config = config.with_modules(specs, settings)
    learner.module_specs = specs
    try:
        _rebuild(learner)
    except Exception:
        learner.module_specs, learner.config = before, config
        learner._build = build
        raise


def _rebuild(learner: Learner) -> None:
    state = learner.get_state()
    saved = (learner._carry, learner._optimizer_steps, learner._host_variables)
    try:
        LearnerBuild(learner).run()
        learner_state.restore_shared(learner, state)
    except Exception:
        learner._carry, learner._optimizer_steps, learner._host_variables = saved
        raise
