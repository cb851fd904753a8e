"""Settings on their way between the command line, TOML files and a typed config.

A settings file has one table per config method, as the Python interface has; the run folder's ``config.toml`` is one::

    algorithm = "ppo"
    [environment]
    env = "CartPole-v1"
    [training]
    lr = 3e-4

Refuses: unknown tables and names (the nearest one is suggested), values of the wrong type. TOML has no null, so the
string "none" stands for None here, wherever it stands. What TOML has no other word for is an inline table with one
marked key: ``{ "__text__" = "none" }`` is that text, ``{ "__tuple__" = [1, 2] }`` a tuple, and so on
(``config.values.MARKS``). What no file can hold, a function for instance, is ``{ "__unportable__" = "..." }``: reading
it is refused, unless the setting is given otherwise.
"""

from __future__ import annotations

import re
import textwrap
import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learner_core.config import references
from learner_core.config.trust import Trust
from learner_core.errors import ConfigError, StateError, did_you_mean
from learner_core.state.regular import read_regular
from learner_core.state.tree import Plain, Tree

if TYPE_CHECKING:
    from learner_core.config.algorithm_settings import AlgorithmSettings

__all__ = [
    "ENVIRONMENT_KEYS",
    "apply_assignments",
    "apply_file",
    "describe_settings",
    "parse_toml",
    "read_file",
    "settle_file",
    "to_toml",
]

#: How ``--set`` names the environment.
ENVIRONMENT_KEYS = ("env", "environment.env")

_FILE_LIMIT = 1 << 18
#: Characters of one setting.
_LINE_LIMIT = 1 << 16
_MAX_DEPTH = 32
_KEY_PART = r"""(?:[\w-]+|"(?:[^"\\\n]|\\.){0,63}"|'[^'\n]{0,63}')"""
_LONG_KEY = re.compile(rf"(?<![\w-]){_KEY_PART}(?:[ \t]*\.[ \t]*{_KEY_PART}){{{_MAX_DEPTH},}}")


def read_file(path: Path) -> dict[str, Plain]:
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


def parse_toml(text: str) -> dict[str, Plain]:
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


def apply_file(
    config: AlgorithmSettings,
    tables: Tree,
    *,
    source: str,
    trust: Trust | None = None,
    given: Collection[str] = (),
    skips_missing: bool = False,
) -> None:
    """Set what a settings file says; which environment it names, the caller has to settle (``settle_file``).

    Args:
        config: The config to change.
        tables: What :func:`read_file` returned; ``algorithm`` at the top is left to the caller.
        source: The file's name, for errors.
        trust: What classes it may name.
        given: Settings by field name that are set otherwise: what cannot be read of them does not matter.
        skips_missing: The file is a run's own: leave settings as they are that no file can hold, or that name what is
            not trusted, and find those that earlier versions had in other tables.

    Raises:
        ConfigError: An unknown table or setting, a value that does not fit, or one that has to be given again.
    """
    methods = _methods(config)
    settings = config.settings()

    def read(table: Tree, method: str) -> dict[str, Plain]:
        names = {item.keyword: name for name, item in settings.items() if item.method == method}
        found = {}
        for key, value in table.items():
            name = names.get(key, key)
            try:
                found[key] = _from_toml(value, name, trust or Trust())
            except ConfigError:
                if not skips_missing and name not in given:
                    raise
        return found

    for name, table in tables.items():
        if name == "algorithm":
            continue
        if isinstance(table, Mapping) and name in methods:
            try:
                here, moved = table, {}
                if skips_missing:  # a run of an earlier version: some settings stood in other tables
                    moved = {key: value for key, value in table.items() if _has_moved(config, key, name)}
                    here = {key: value for key, value in table.items() if key not in moved}
                _call(config, name, read(here, name))
                for key, value in read(moved, name).items():
                    _set(config, key, value)
            except ConfigError as error:
                raise ConfigError(f"{source}, [{name}]: {error}") from None
        elif name in settings:
            _set(config, name, _from_toml(table, name, trust or Trust()))
        else:
            nearest = did_you_mean(name, [*methods, *config.settings()])
            raise ConfigError(f"{source}: no table or setting {name!r}.{nearest}")


def _has_moved(config: AlgorithmSettings, key: str, method: str) -> bool:
    """Whether a key of a method's table is a setting of that very name, which another method has now."""
    item = config.settings().get(key)
    return item is not None and item.keyword == key and item.method != method


def settle_file(config: AlgorithmSettings, trust: Trust) -> None:
    """Refuse what settings files have set, and nothing has overridden, if they may not choose it.

    Args:
        config: What the files were applied to.
        trust: What they may name.

    Raises:
        ConfigError: An environment whose name would import a module that is not trusted.
    """
    if isinstance(config.env, str):
        trust.settle_environment(config.env, name="env")


def apply_assignments(config: AlgorithmSettings, assignments: Iterable[str]) -> set[str]:
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
        name, read = key.strip(), _value(value.strip())
        # An environment's name that is typed is the user's own: what it imports needs no more trust.
        is_typed_name = name in ENVIRONMENT_KEYS and isinstance(read, str) and not _is_none(read)
        named.add(_assign(config, name.split("."), read if is_typed_name else _from_toml(read, name, Trust())))
    return named


def _assign(config: AlgorithmSettings, path: list[str], value: Plain) -> str:
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


def _call(config: AlgorithmSettings, method: str, settings: dict[str, Plain]) -> None:
    if "self" in settings:  # Python's own argument, which would be a TypeError
        raise ConfigError(f"{method}: there is no setting 'self'.")
    getattr(config, method)(**settings)


def _set(config: AlgorithmSettings, name: str, value: Plain) -> None:
    setattr(config, name, config.validate_setting(name, value))


def _methods(config: AlgorithmSettings) -> list[str]:
    return list(dict.fromkeys(item.method for item in config.settings().values()))


def _value(text: str) -> Plain:
    if text in ("True", "False"):  # what a Python programmer types
        return text == "True"
    try:
        tables = parse_toml(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    except ValueError as error:
        raise ConfigError(f"--set: {error}: {text[:60]!r}") from None
    return tables["value"] if list(tables) == ["value"] else text


#: Keys of what the writing has a word of its own for.
_TEXT, _INT = "__text__", "__int__"


def _is_none(value: object) -> bool:
    return isinstance(value, str) and value.lower() == "none"


def _from_toml(value: Plain, name: str, trust: Trust) -> Plain:
    """A setting's value out of TOML's."""
    plain = _spelled_out(value, name)
    references.settle(plain, name=name, trust=trust)
    return references.from_plain(plain, name=name, trust=trust)


def _spelled_out(value: Plain, name: str) -> Plain:
    """The same with None and what the writing has marks of its own for."""
    if _is_none(value):
        return None
    if isinstance(value, list):
        return [_spelled_out(item, name) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1 and _TEXT in value:
        return value[_TEXT]
    if len(value) == 1 and _INT in value:
        text = value[_INT]
        if not isinstance(text, str) or not re.fullmatch(r"-?[0-9]{1,4000}", text):
            raise ConfigError(f"{name}: {_INT} holds no whole number.")
        return int(text)
    return {key: _spelled_out(item, name) for key, item in value.items()}


# ---- writing ---------------------------------------------------------------------------------------------------------


def to_toml(config: AlgorithmSettings) -> str:
    """Write every setting of a config as a settings file, with what the setting expects as a comment.

    Args:
        config: The config.

    Returns:
        TOML. Of a value that no file can hold (a function, an object) it says so, and reading it is refused.
    """
    lines = [f"algorithm = {_toml(config.algorithm_name)}"]
    plain = config.to_dict()["settings"]
    method = ""
    for item in config.describe():
        if item.method != method:
            method = item.method
            lines += ["", f"[{method}]"]
        lines.append(_line(item.keyword, plain[item.name]))
    return "\n".join(lines) + "\n"


def _line(keyword: str, value: Plain) -> str:
    """One setting's line; where it could not be read again, one that says so."""
    text = f"{keyword} = {_toml(value)}"
    reason = "too long for a settings file" if len(text) > _LINE_LIMIT else ""
    if not reason:
        try:
            parse_toml(text)
        except ValueError as error:
            reason = f"no value for a settings file: {error}"
    return text if not reason else f"{keyword} = {_toml({'__unportable__': reason})}"


def _toml(value: Plain) -> str:
    """One value as TOML."""
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        is_long = type(value) is int and not -(1 << 63) <= value < 1 << 63
        return _table([(_INT, _quoted(str(value)))]) if is_long else repr(value)
    if isinstance(value, str):
        return _table([(_TEXT, _quoted(value))]) if _is_none(value) else _quoted(value)
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return _table([(key, _toml(item)) for key, item in value.items()])


def _table(items: list[tuple[str, str]]) -> str:
    return "{ " + ", ".join(f"{_quoted(key)} = {item}" for key, item in items) + " }" if items else "{}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    if escaped.count(".") >= _MAX_DEPTH - 1:
        escaped = escaped.replace(".", "\\u002e")  # it must not look like a dotted key
    return '"' + "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in escaped) + '"'


# ---- help ------------------------------------------------------------------------------------------------------------


def describe_settings(config: AlgorithmSettings, *, width: int = 100) -> str:
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
        need = config.needed_settings.get(item.name)
        needs = "" if need is None else f"; needs {need.words}"
        lines.append(f"  {item.name}={_short(item.default)}   ({item.expected}{needs})")
        if item.doc:
            lines += textwrap.wrap(
                " ".join(item.doc.split()), width - 6, initial_indent=" " * 6, subsequent_indent=" " * 6
            )
    return "\n".join(lines)


def _short(value: object) -> str:
    return "none" if value is None else _toml(references.to_plain(value))
