"""Settings on their way between the command line, TOML files and a typed config.

A settings file has one table per config method, as the Python interface has; the run folder's ``config.toml`` is one::

    algorithm = "ppo"
    [environment]
    env = "CartPole-v1"
    [training]
    lr = 3e-4

Refuses: unknown tables and names (the nearest one is suggested), values of the wrong type. TOML has no null, so the
string "none" stands for None here.
"""

from __future__ import annotations

import re
import textwrap
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from learner_core.config.trust import Trust
from learner_core.errors import ConfigError, StateError, did_you_mean
from learner_core.state.regular import read_regular

__all__ = ["apply_assignments", "apply_file", "describe_settings", "parse_toml", "read_file", "settle_file", "to_toml"]

_FILE_LIMIT = 1 << 18
_MAX_DEPTH = 32
_KEY_PART = r"""(?:[\w-]+|"(?:[^"\\\n]|\\.){0,63}"|'[^'\n]{0,63}')"""
_LONG_KEY = re.compile(rf"(?<![\w-]){_KEY_PART}(?:[ \t]*\.[ \t]*{_KEY_PART}){{{_MAX_DEPTH},}}")


def read_file(path: Path) -> dict[str, Any]:
    """Read a settings file.

    Args:
        path: A TOML file of at most 256 KiB, its values nested at most 32 deep, its whole numbers of 64 bits.

    Returns:
        Its tables.

    Raises:
        ConfigError: It cannot be read, is not TOML, or exceeds these limits.
    """
    try:
        return parse_toml(read_regular(path, limit=_FILE_LIMIT).decode())
    except StateError as error:
        raise ConfigError(f"The settings file {path} cannot be read: {error}.") from error
    except ValueError as error:
        raise ConfigError(f"The settings file {path} is not TOML: {error}.") from error


def parse_toml(text: str) -> dict[str, Any]:
    """TOML whose values are nested at most 32 deep, with whole numbers of 64 bits.

    Raises:
        ValueError: It is not that.
    """
    if _LONG_KEY.search(text):  # the parser takes memory by the square of the number of parts
        raise ValueError(f"a dotted key has more than {_MAX_DEPTH} parts")
    try:
        tables = tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"values are nested more than {_MAX_DEPTH} deep") from None
    level: list[Any] = [tables]
    for _ in range(_MAX_DEPTH + 1):
        if any(type(value) is int and not -(1 << 63) <= value < 1 << 63 for value in level):
            raise ValueError("a whole number does not fit 64 bits")
        level = [
            inner
            for value in level
            if isinstance(value, (dict, list))
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return tables
    raise ValueError(f"values are nested more than {_MAX_DEPTH} deep")


def apply_file(config: Any, tables: Mapping[str, Any], *, source: str) -> None:
    """Set what a settings file says; which environment it names, the caller has to settle (``settle_file``).

    Args:
        config: The config to change.
        tables: What :func:`read_file` returned; ``algorithm`` at the top is left to the caller.
        source: The file's name, for errors.

    Raises:
        ConfigError: An unknown table or setting, or a value that does not fit.
    """
    methods = _methods(config)
    for name, table in tables.items():
        if name == "algorithm":
            continue
        if isinstance(table, Mapping) and name in methods:
            try:
                _call(config, name, {key: _none(value) for key, value in table.items()})
            except ConfigError as error:
                raise ConfigError(f"{source}, [{name}]: {error}") from None
        elif name in config.settings():
            _set(config, name, _none(table))
        else:
            nearest = did_you_mean(name, [*methods, *config.settings()])
            raise ConfigError(f"{source}: no table or setting {name!r}.{nearest}")


def settle_file(config: Any, trust: Trust) -> None:
    """Refuse what settings files have set, and nothing has overridden, if they may not choose it.

    Args:
        config: What the files were applied to.
        trust: What they may name.

    Raises:
        ConfigError: An environment whose name would import a module that is not trusted.
    """
    if isinstance(config.env, str):
        trust.settle_environment(config.env, name="env")


def apply_assignments(config: Any, assignments: Iterable[str]) -> set[str]:
    """Set ``key=value`` pairs of the command line.

    Args:
        config: The config to change.
        assignments: ``"lr=1e-3"``, ``"model.hidden=[256, 256]"`` or ``"training.lr=1e-3"``; the value is TOML, and
            text where it is not TOML.

    Returns:
        The settings that were named, by field name.

    Raises:
        ConfigError: No ``=``, an unknown setting, or a value that does not fit.
    """
    named = set()
    for text in assignments:
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            raise ConfigError(f"--set {text!r}: expected key=value, --set lr=1e-3 for instance.")
        named.add(_assign(config, key.strip().split("."), _none(_value(value.strip()))))
    return named


def _assign(config: Any, path: list[str], value: Any) -> str:
    """Set one; returns the field's name."""
    settings = config.settings()
    # "framework.name" and "training.lr" are spelled as methods; "lr" and "model.hidden" as fields.
    if len(path) >= 2 and path[0] in _methods(config) and path[0] not in settings:
        by_keyword = {item.keyword: item.name for item in settings.values() if item.method == path[0]}
        if len(path) == 2 or path[1] not in by_keyword:
            _call(config, path[0], {path[1]: value})
            field: str = by_keyword.get(path[1], path[1])
            return field
        path = [by_keyword[path[1]], *path[2:]]
    name, *inside = path
    if not inside:
        _set(config, name, value)
        return name
    tree = getattr(config, name) if name in settings else None
    if not isinstance(tree, dict):
        _set(config, name, value)  # says that there is no such setting
        raise ConfigError(f"--set {'.'.join(path)}: {name} holds no named parts.")
    tree = {**tree}
    branch = tree
    for part in inside[:-1]:
        branch[part] = dict(branch.get(part) or {})
        branch = branch[part]
    branch[inside[-1]] = value
    _set(config, name, tree)
    return name


def _call(config: Any, method: str, settings: dict[str, Any]) -> None:
    if "self" in settings:  # Python's own argument, which would be a TypeError
        raise ConfigError(f"{method}: there is no setting 'self'.")
    getattr(config, method)(**settings)


def _set(config: Any, name: str, value: Any) -> None:
    setattr(config, name, config.validate_setting(name, value))


def _methods(config: Any) -> list[str]:
    return list(dict.fromkeys(item.method for item in config.settings().values()))


def _value(text: str) -> Any:
    if text in ("True", "False"):  # what a Python programmer types
        return text == "True"
    try:
        tables = parse_toml(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    except ValueError as error:
        raise ConfigError(f"--set: {error}: {text[:60]!r}") from None
    return tables["value"] if list(tables) == ["value"] else text


def _none(value: Any) -> Any:
    return None if isinstance(value, str) and value.lower() == "none" else value


# ---- writing ---------------------------------------------------------------------------------------------------------


def to_toml(config: Any) -> str:
    """Write every setting of a config as a settings file, with what the setting expects as a comment.

    Args:
        config: The config.

    Returns:
        TOML. A value TOML cannot say (a callable, a class) becomes a comment.
    """
    lines = [f"algorithm = {_toml(config.algorithm_name)}"]
    plain = config.to_dict()["settings"]
    method = ""
    for item in config.describe():
        if item.method != method:
            method = item.method
            lines += ["", f"[{method}]"]
        value = plain[item.name]
        try:
            lines.append(f"{item.keyword} = {_toml('none' if value is None else value)}")
        except TypeError:
            lines.append(f"# {item.keyword}: {value!r} (set in Python)".replace("\n", " "))
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """One value as TOML; TypeError where TOML has no word for it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in escaped) + '"'
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        if any(not isinstance(key, str) or key.startswith("__") for key in value):
            raise TypeError("not plain")
        return (
            "{ " + ", ".join(f"{_toml(key)} = {_toml(item)}" for key, item in value.items()) + " }" if value else "{}"
        )
    raise TypeError(f"{type(value).__name__} has no form in TOML")


# ---- help ------------------------------------------------------------------------------------------------------------


def describe_settings(config: Any, *, width: int = 100) -> str:
    """Every setting with type, default and documentation, for ``learner-core train ALGORITHM --help``.

    Args:
        config: A config.
        width: Columns of the terminal.

    Returns:
        Text, grouped by config method.
    """
    lines: list[str] = []
    method = ""
    for item in config.describe():
        if item.method != method:
            method = item.method
            lines += ["", f"{method}:"]
        lines.append(f"  {item.name}={_short(item.default)}   ({item.expected})")
        if item.doc:
            lines += textwrap.wrap(
                " ".join(item.doc.split()), width - 6, initial_indent=" " * 6, subsequent_indent=" " * 6
            )
    return "\n".join(lines)


def _short(value: Any) -> str:
    try:
        return "none" if value is None else _toml(value)
    except TypeError:
        return repr(value)
