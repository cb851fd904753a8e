"""What is said of a name that another library has: an unknown setting, method, attribute, class or option.

Needs ``foreign_table``, which has the names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from learner_core.errors import ConfigError, UnknownNameError, did_you_mean

from .foreign_table import ALGORITHM, CLASSES, COMMANDS, LEARNER, METHODS, OPTIONS, SETTINGS, Known

__all__ = [
    "Elsewhere",
    "as_markdown",
    "constructor",
    "elsewhere",
    "known",
    "known_command",
    "known_in_model",
    "known_option",
    "unknown_attribute",
]


def known(name: str, config: Any) -> str:
    """What a setting of another library is here, as a sentence that begins with a space; "" of a name that none has.

    Args:
        name: what was given.
        config: the config, or its class.
    """
    entry = SETTINGS.get(name)
    answer = "" if entry is None else entry.here(config)
    return f" {entry.library}: {name}; here: {answer}." if entry is not None and answer else ""


def known_in_model(key: str, known: Collection[str]) -> str:
    """What a setting of another library's networks is among these of ``model``, as a sentence; "": it is none."""
    entry = SETTINGS.get(key)
    named = [] if entry is None else [name[6:] for name in entry.settings if name.startswith("model.")]
    keys = [name for name in named if name in known]
    if entry is None or not keys:
        return ""
    return f" {entry.library}: {key}; here: {' and '.join(map(repr, keys))}{': ' + entry.words if entry.words else ''}."


def known_option(option: str, config: Any, value: str) -> str:
    """What an option of another library's command is here, as a sentence; "" of one that none has.

    Args:
        option: without its dashes: "total-timesteps".
        config: the config that is set, or its class.
        value: what follows the option.
    """
    entry = OPTIONS.get(option.replace("_", "-")) or SETTINGS.get(option.replace("-", "_"))
    answer = "" if entry is None else entry.option(config, value)
    return f"{entry.library}: --{option}; here: {answer}." if entry is not None and answer else ""


def known_command(command: str) -> str:
    """What a command of another library is here, as a sentence that begins with a space; "" of one that none has."""
    entry = COMMANDS.get(command)
    return "" if entry is None else f" {entry.library}: {command}; here: {entry.words}."


def constructor(name: str, arguments: Sequence[object]) -> str:
    """The refusal of a configuration's constructor that was called as that of a model: ``PPO("MlpPolicy", env)``."""
    shown = ", ".join(f"{argument!r:.40}" for argument in arguments)
    return f"{name}({shown}): settings are named. SB3: PPO(policy, env); here: {name}().environment(env).build()."


def unknown_attribute(owner: object, name: str, table: Mapping[str, Known]) -> AttributeError:
    """The error of an object that has no attribute of that name; to be raised.

    Args:
        owner: the object.
        name: what was asked for.
        table: names of other libraries: ``OF_CONFIG``, ``ALGORITHM`` or ``LEARNER``.
    """
    kind = type(owner)
    if name.startswith("__"):  # what copy and pickle ask for; they want no words
        return AttributeError(f"{kind.__name__!r} object has no attribute {name!r}")
    for base in kind.__mro__:
        if isinstance(found := vars(base).get(name), property):
            found.__get__(owner, kind)  # it is there, and has raised this itself
    text = f"{kind.__name__} has no attribute {name!r}."
    if (entry := table.get(name)) is not None:
        return UnknownNameError(f"{text} {entry.library}: {name}; here: {entry.here(kind)}.")
    names = [attribute for attribute in dir(kind) if not attribute.startswith("_")]
    return UnknownNameError(text + (nearest if (nearest := did_you_mean(name, names)).startswith(" Did") else ""))


#: Names that are asked of a configuration: of its methods, and of settings.
OF_CONFIG: Final[Mapping[str, Known]] = {**SETTINGS, **METHODS}


class Elsewhere:
    """Stands for a model's class of another library: using it says what it is here.

    Args:
        name: the class.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *arguments: object, **settings: object) -> Any:
        raise ConfigError(self._words())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise UnknownNameError(self._words())

    def __repr__(self) -> str:
        return f"<{self._words()}>"

    def _words(self) -> str:
        entry = CLASSES[self._name]
        return f"{self._name} is a class of {entry.library}; here: {entry.words}"


def elsewhere(name: str) -> Elsewhere | None:
    """What stands for a class of another library; None: none has a class of that name."""
    return Elsewhere(name) if name in CLASSES else None


def as_markdown() -> str:
    """The tables as docs/migrating.md prints them."""
    from learner_core.plugins import discovery

    plain, off_policy = discovery.get_config("ppo"), discovery.get_config("sac")
    lines: list[str] = []
    for title, table in (
        ("Settings", SETTINGS),
        ("Methods of a configuration", METHODS),
        ("Attributes of an algorithm or a model", ALGORITHM),
        ("Attributes of a Learner or a LearnerGroup", LEARNER),
        ("Classes", CLASSES),
        ("Options of a command", OPTIONS),
        ("Commands", COMMANDS),
    ):
        lines += [f"### {title}", "", "| there | whose | here |", "|---|---|---|"]
        for name, entry in sorted(table.items()):
            shown = f"--{name}" if table is OPTIONS else name
            answers = [entry.option(plain, "VALUE", "`")] if table is OPTIONS else _answers(entry, plain, off_policy)
            lines.append(f"| `{shown}` | {entry.library} | {'; '.join(answers)} |")
        lines.append("")
    return "\n".join(lines)


def _answers(entry: Known, plain: Any, off_policy: Any) -> list[str]:
    """What it is here, of algorithms without a replay buffer and, where that differs, of SAC."""
    calls = [Known("", entry.settings, entry.off_policy).here(one, "`") for one in (plain, off_policy)]
    if not entry.settings:
        return [entry.words]
    found = [call for call in calls if not call.startswith("-")]
    if len(found) == 2 and found[0] != found[1]:
        found[1] = f"SAC: {found[1]}"
    elif len(found) == 2 or not calls[0].startswith("-"):
        found = found[:1]
    else:
        found[0] = f"SAC: {found[0]}"
    return [*found, *([entry.words] if entry.words else [])]
