"""Settings that count beside another one alone: what each needs, and the refusal of one that is set without it.

Needs config classes that declare ``needed_settings``. Refuses a value that was set, is not the default, and that
nothing would read. What a run remembers is no such value: one that was read out of a file, or that counted until
``set_config`` switched off what it needs, is kept for when that is switched on again. Settings that say how processes
are started, watched, fed and restarted are declared nowhere: one script runs with none of them and with many.
docs/decisions/settings.md says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from learner_core.errors import ConfigError

from .values import same

__all__ = ["ENVIRONMENT", "MEMORY", "SEQUENCES", "Needs", "needs", "refuse_idle", "refuse_idle_of_module"]


@dataclass(frozen=True)
class Needs:
    """What a setting needs to count.

    Args:
        words: What it needs, as it is typed: "use_kl_loss=True".
        holds: ``holds(config) -> bool``: whether it is so, for a whole config or that of one module.
        of_modules: Where ``holds`` says no, the modules decide, by carrying a state from step to step: it is asked when
            they are built.
    """

    words: str
    holds: Callable[[Any], bool]
    of_modules: bool = False


def needs(setting: str, value: str, holds: Callable[[Any], bool] = bool) -> Needs:
    """The need of another setting.

    Args:
        setting: Its field name.
        value: A value that switches it on, as it is typed.
        holds: Whether a value of it does; by default what is true, not empty and not None.
    """
    return Needs(f"{setting}={value}", lambda config: bool(holds(getattr(config, setting))))


#: The need of an environment of the run's own.
ENVIRONMENT: Final = Needs("an environment, by .environment(env)", lambda config: config.env is not None)
_MEMORY: Final = "a module with a memory (model={'recurrent': 'lstm'}, or one of your own with an initial_state())"
#: The need of a module that carries a state from step to step.
MEMORY: Final = Needs(_MEMORY, lambda config: False, of_modules=True)
#: The need of sequences: of such a module, or of an algorithm that takes them whatever the module is.
SEQUENCES: Final = Needs(_MEMORY, lambda config: config.uses_sequences, of_modules=True)


def refuse_idle(config: Any, names: Iterable[str], *, has_memory: bool | None = None) -> None:
    """Refuse settings that would have no effect beside the others.

    A shared setting counts if it does for one module; one of ``multi_agent(settings=...)`` if it does for that module.

    Args:
        config: The configuration.
        names: The settings that were set, by field name.
        has_memory: Whether a module carries a state, where that is known: the settings that go by it are looked at
            then, and no others.

    Raises:
        ConfigError: One would have none; says what it needs.
    """
    names = set(names)
    for name in names & config.needed_settings.keys():
        value, default = getattr(config, name), config.settings()[name].default
        readers = _readers(config, name)
        if not same(value, default) and readers and not any(_counts(name, one, has_memory) for one in readers):
            raise ConfigError(_words(config, f"{name}={value!r:.80}", name))
    if "policy_settings" in names:
        for module_id, settings in config.policy_settings.items():
            refuse_idle_of_module(config, module_id, settings, has_memory=has_memory)
    if "optimizer" in names and has_memory is None:
        _refuse_constants(config)


def refuse_idle_of_module(
    config: Any, module_id: str, settings: Mapping[str, Any], *, has_memory: bool | None = None
) -> None:
    """The same for training settings of one module."""
    own = config.for_module(module_id)
    for name, value in settings.items():
        is_set = name in config.needed_settings and not same(value, config.settings()[name].default)
        if is_set and not _counts(name, own, has_memory):
            where = f"multi_agent(settings={{{module_id!r}: {{{name!r}: {value!r:.80}}}}})"
            raise ConfigError(_words(config, where, name))
    if "optimizer" in settings and has_memory is None:
        _refuse_constants(own)


def _readers(config: Any, name: str) -> list[Any]:
    """The settings of those modules that have no value of their own; where modules are not named, the run's, too."""
    own = config.policy_settings
    found = [config.for_module(mid) for mid in config.policies or own if name not in own.get(mid, {})]
    return found if config.policies else [*found, config]


def _counts(name: str, config: Any, has_memory: bool | None) -> bool:
    need: Needs = config.needed_settings[name]
    if need.of_modules:
        return has_memory is not False or need.holds(config)
    return has_memory is not None or need.holds(config)


def _words(config: Any, what: str, name: str) -> str:
    return (
        f"{type(config).__name__}: {what} would have no effect: it needs {config.needed_settings[name].words}. Set "
        f"that as well, or leave {name} as it is by default: {config.settings()[name].default!r}."
    )


def _refuse_constants(config: Any) -> None:
    """Refuse constants of the optimizer that its maths does not come to."""
    if reason := config.optimizer_spec().why_idle:
        raise ConfigError(f"{type(config).__name__}: optimizer={config.optimizer!r:.200}: {reason}.")
