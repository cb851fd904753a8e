"""Which settings a run can change, and who follows: the one place where that is said.

Needs a config. Settings of ``.training()`` can be changed unless the config's class names them among its
``fixed_settings``: something of another shape was made from them, a network, a buffer, a data set. Of the other
settings those can be changed that are listed here. Refuses the rest by name, before anything changes.
docs/decisions/settings.md says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from learner_core.errors import ConfigError

from .needs import refuse_idle

__all__ = ["QUEUE_SETTINGS", "By", "changed", "is_of_learners"]

By = Literal["learner", "group", "algorithm"]

#: Besides those of ``.training()``, what learners go by.
_LEARNER_SETTINGS: Final = ("policies_to_train", "policy_settings")
#: The queue in front of the learners.
QUEUE_SETTINGS: Final = ("max_requests_in_flight_per_learner", "queue_full")
#: What the run around them goes by.
_RUN_SETTINGS: Final = (
    "checkpoint_every",
    "checkpoint_folder",
    "checkpoint_keep",
    "evaluation_interval",
    "evaluation_max_episode_steps",
    "evaluation_num_episodes",
    "policy_mapping_fn",
    "rollout_fragment_length",
)
_ALLOWED: Final[dict[By, tuple[str, ...]]] = {
    "learner": _LEARNER_SETTINGS,
    "group": (*_LEARNER_SETTINGS, *QUEUE_SETTINGS),
    "algorithm": (*_LEARNER_SETTINGS, *QUEUE_SETTINGS, *_RUN_SETTINGS),
}
_REMEDY: Final[dict[str, str]] = {
    "policies": "add_module() and remove_module() change what modules there are",
    "seed": "a state carries its seed",
}


def is_of_learners(config: Any, name: str) -> bool:
    """Whether a setting can be changed on a Learner."""
    if name in config.fixed_settings:
        return False
    return name in _LEARNER_SETTINGS or config.settings()[name].method == "training"


def changed(config: Any, settings: Mapping[str, Any], *, by: By) -> Any:
    """The config with settings changed in a run.

    Args:
        config: the config so far, frozen.
        settings: new values by field name.
        by: what is told: a Learner, a group of them, or an Algorithm.

    Returns:
        A changed copy, frozen.

    Raises:
        ConfigError: a setting is unknown, ill-typed or not to be changed here; names it.
    """
    known = config.settings()
    for name, value in settings.items():
        if name not in known:
            config.validate_setting(name, value)  # says which there are
        if not is_of_learners(config, name) and (name not in _ALLOWED[by] or name in config.fixed_settings):
            raise ConfigError(f"{name}={value!r:.200} {_why(config, name, by)}")
    new = config.replaced(**settings)
    refuse_idle(new, settings)
    for module_id in new.policy_settings:
        for name in config.fixed_settings:
            if getattr(config.for_module(module_id), name) != getattr(new.for_module(module_id), name):
                raise ConfigError(f"{name} of module {module_id!r} {_why(config, name, by)}")
    for place, mine, theirs in _optimizers(config, new):
        if mine != theirs:
            raise ConfigError(
                f"{place}: the kind of an optimizer was fixed when the learner was built, because its state is of that "
                f"kind: {mine!r} cannot become {theirs!r} in a run; its constants can be changed"
            )
    return new.remember()


def _why(config: Any, name: str, by: By) -> str:
    setting = config.settings()[name]
    where = f"(.{setting.method}({setting.keyword}=...))"
    if name in _ALLOWED["algorithm"] and name not in config.fixed_settings:
        who = "a learner goes" if by == "learner" else "learners go"
        return f"is no setting that {who} by {where}: algo.set_config({name}=...) changes it in a run"
    remedy = _REMEDY.get(name, "build a new one from a changed config and give it this one's state")
    return f"was fixed when the learner was built {where} and cannot be changed in a run: {remedy}"


def _optimizers(before: Any, after: Any) -> list[tuple[str, str, str]]:
    """(setting, kind before, kind after) of the run and of every module with settings of its own."""
    found = [("optimizer", before.optimizer_spec().kind, after.optimizer_spec().kind)]
    for module_id in {**before.policy_settings, **after.policy_settings}:
        kinds = [config.for_module(module_id).optimizer_spec().kind for config in (before, after)]
        found.append((f"optimizer of module {module_id!r}", kinds[0], kinds[1]))
    return found
