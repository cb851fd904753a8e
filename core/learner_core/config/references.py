"""Config values as plain data: callables, classes and specs become references by name, never code.

Needs a :class:`~learner_core.config.trust.Trust`, which says what names stand for. Refuses to invent a value for what
could not be stored, and to make any object but module specs: functions and all else are given again.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from learner_core.errors import ConfigError, PluginError
from learner_core.plugins import discovery

from .agents import is_environment
from .trust import Kind, Trust, name_of
from .values import MARKS, mark, storable, unmark

__all__ = [
    "from_plain",
    "is_missing",
    "names_main",
    "read_config",
    "schema_of",
    "script_name",
    "settle",
    "to_plain",
]

_REFERENCE, _OBJECT, _UNPORTABLE, _SPACE = "__reference__", "__object__", "__unportable__", "__space__"
_MARKS: Final = (_REFERENCE, _OBJECT, _UNPORTABLE, _SPACE, *MARKS)
#: Settings in which nothing stands for a tuple and the like are of schema 1, which earlier versions read.
_SCHEMAS: Final = (1, 2)
#: Objects that a file may describe: these and no others, by name.
_SPECS: Final = {f"learner_core.learning.rl_module:{name}": name for name in ("RLModuleSpec", "MultiRLModuleSpec")}
#: Setting -> what a class in it is to be; in the others a class of any of the kinds may stand, as data.
_KINDS: Final[dict[str, Kind]] = {
    "env": "environment",
    "learner_class": "learner",
    "policies": "module",
    "rl_module_spec": "module",
}
#: Characters of what could not be stored, for the message of whoever reads the file.
_MAX_SHOWN: Final = 300
#: What a name in a file becomes: a class, or only a check.
#: What files of earlier versions call a class of ours.
_EARLIER_NAMES: Final = {
    "learner_core.config.algorithm_config:AlgorithmConfig": "learner_core.algorithm.algorithm_config:AlgorithmConfig",
    "learner_core.config.off_policy_config:OffPolicyConfig": "learner_core.algorithm.off_policy_config:OffPolicyConfig",
}

_Lookup = Callable[[Any, Kind | None], Any]


def to_plain(value: Any) -> Any:
    """Turn one setting's value into plain data.

    Args:
        value: Plain data, numpy scalars and arrays, callables, classes, gymnasium spaces, dataclasses
            (module specs) and objects with ``to_dict``, nested at will.

    Returns:
        Plain data; ``{"__unportable__": text}`` stands for what cannot be stored, and other marks (``values.MARKS``)
        for tuples, arrays and the like.
    """
    try:
        value = storable(value, name="a setting")
    except ConfigError:
        return {_UNPORTABLE: _shown(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if is_environment(value):
        return {_UNPORTABLE: _shown(value)}
    marked = mark(value, to_plain)
    if marked is not NotImplemented:
        return marked
    if callable(getattr(value, "to_dict", None)) and not isinstance(value, type):
        name = name_of(type(value))
        return {_OBJECT: name, "data": to_plain(value.to_dict())} if name else {_UNPORTABLE: _shown(value)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: getattr(value, field.name)
            for field in dataclasses.fields(value)
            # What came later is left out where it says nothing: earlier files lack it, and are compared with these.
            if field.init and not (field.metadata.get("later") and getattr(value, field.name) == field.default)
        }
        name = name_of(type(value))
        return {_OBJECT: name, "fields": to_plain(fields)} if name else {_UNPORTABLE: _shown(value)}
    if callable(value):
        name = name_of(value)
        return {_REFERENCE: name} if name else {_UNPORTABLE: _shown(value)}
    if _is_space(value):
        from learner_core import spaces

        return {_SPACE: spaces.to_plain(value)}
    return {_UNPORTABLE: _shown(value)}


def settle(value: object, *, name: str, trust: Trust, names_only: bool = False) -> None:
    """Refuse what :func:`from_plain` would refuse, as far as that can be seen without importing anything.

    Args:
        value: What :func:`to_plain` returned, out of a file.
        name: The setting, for errors.
        trust: What names may stand for.
        names_only: Let pass what could not be stored: another may have it already.

    Raises:
        ConfigError: An unportable value, or a name that is not trusted.
    """
    if names_only:
        value = _portable(value)
    _read(value, name, lambda reference, kind: trust.settle(reference, kind=kind, name=name))
    if name == "env" and isinstance(value, str):
        trust.settle_environment(value)


def from_plain(value: object, *, name: str, trust: Trust) -> Any:
    """Turn plain data back into a setting's value; :func:`settle` all of a file's first.

    Args:
        value: What :func:`to_plain` returned.
        name: The setting, for errors.
        trust: What names may stand for.

    Returns:
        The value.

    Raises:
        ConfigError: An unportable value, or a name that is not trusted or not there.
    """
    return _read(value, name, lambda reference, kind: trust.find(reference, kind=kind, name=name))


def read_config(cls: Any, data: Any, *, trust: Trust, overrides: Mapping[str, Any]) -> Any:
    """A config out of what ``to_dict`` returned.

    In this order: (1) every name in it is settled, while nothing is imported; (2) the config's class is found, which
    loads the plugin that registers the algorithm; (3) modules that the user trusts are imported and classes found.

    Args:
        cls: The class ``from_dict`` was called on; the answer is of it or of a subclass.
        data: The data.
        trust: What names may stand for.
        overrides: Settings by field name that are not read.

    Returns:
        The config, with the stored settings and without the overrides.

    Raises:
        ConfigError: Not such data, from a newer version, or a name that is refused.
    """
    _check_outline(data)
    trust = dataclasses.replace(trust, script=_text(data.get("script")))
    stored = {name: value for name, value in data["settings"].items() if name not in overrides}
    registered = data["algorithm"] in discovery.list_algorithms()
    if data["class"] != name_of(cls) and not registered:
        trust.settle(data["class"], kind="config", name="class")
    for name, value in stored.items():
        settle(value, name=name, trust=trust)
    config = _config_class(cls, data, trust)()
    for name, value in config.of_earlier(stored).items():
        if name in config.unused_settings:
            continue  # it had no effect when it was stored, either
        setting = from_plain(value, name=name, trust=trust)
        if name in ("observation_space", "action_space") and not (setting is None or _is_space(setting)):
            raise ConfigError(f"{name}: the file has {setting!r:.80} there, which describes no space.")
        setattr(config, name, setting)
    return config.remember()


def schema_of(plain: object) -> int:
    """The schema of settings as plain data."""
    if isinstance(plain, dict):
        return max([2 if mark in plain else 1 for mark in MARKS] + [schema_of(item) for item in plain.values()])
    return max(map(schema_of, plain), default=1) if isinstance(plain, list) else 1


def names_main(plain: object) -> bool:
    """Whether plain data names something that the module ``__main__`` defines."""
    if isinstance(plain, dict):
        names = (plain.get(key) for key in (_REFERENCE, _OBJECT, "class"))
        return any(str(name).startswith("__main__:") for name in names) or any(map(names_main, plain.values()))
    return isinstance(plain, list) and any(map(names_main, plain))


def script_name() -> str:
    """The name that the module ``__main__`` would be imported by; ``""`` where it has none."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    name = spec.name if spec is not None else Path(getattr(main, "__file__", None) or "").stem
    return _text(name)


def _text(name: object) -> str:
    return name if isinstance(name, str) and all(part.isidentifier() for part in name.split(".")) else ""


def _check_outline(data: object) -> None:
    if not isinstance(data, Mapping) or not {"schema", "algorithm", "class", "settings"} <= data.keys():
        raise ConfigError("from_dict() takes what to_dict() returned: schema, algorithm, class, settings.")
    if type(data["schema"]) is not int or data["schema"] not in _SCHEMAS:
        raise ConfigError(
            f"This config has schema {data['schema']!r:.60}, this version reads up to {_SCHEMAS[-1]}: a newer version "
            "wrote it."
        )
    for key, kind in (("algorithm", str), ("class", str), ("settings", Mapping)):
        if not isinstance(data[key], kind):
            raise ConfigError(f"{key}: expected {kind.__name__}, got {type(data[key]).__name__}.")


def _config_class(cls: Any, data: Mapping[str, Any], trust: Trust) -> Any:
    """The class that data is of: ``cls``, the registered algorithm's, or one that is found by its name."""
    named = _EARLIER_NAMES.get(data["class"], data["class"])
    if named == name_of(cls):
        return cls
    try:
        registered: Any = type(discovery.get_config(data["algorithm"]))
    except PluginError:
        registered = None
    found = registered
    if registered is None or named != name_of(registered):
        found = trust.find(named, kind="config", name="class")
    if not issubclass(found, cls):
        raise ConfigError(f"The stored config is a {data['class']}, which is not a {cls.__name__}.")
    return found


def _read(value: object, name: str, lookup: _Lookup) -> Any:
    if isinstance(value, list):
        return [_read(item, name, lookup) for item in value]
    if not isinstance(value, dict):
        return value
    marks = [mark for mark in _MARKS if mark in value]
    if not marks:
        return {key: _read(item, name, lookup) for key, item in value.items()}
    content = value[marks[0]]
    if len(value) != (2 if marks[0] == _OBJECT else 1):
        raise ConfigError(f"{name}: what is stored beside {marks[0]!r} is not understood; give it again: {name}=...")
    if marks[0] == _UNPORTABLE:
        raise ConfigError(
            f"{name}: its value {content} could not be stored (functions without a name and objects are in no file); "
            f"give it again: {name}=... in from_checkpoint(path, {name}=...), or in what else reads the file."
        )
    if marks[0] == _SPACE:
        from learner_core import spaces

        return spaces.from_plain(content)
    if marks[0] == _REFERENCE:
        return lookup(content, _KINDS.get(name))
    if marks[0] in MARKS:
        return unmark(marks[0], _read(content, name, lookup), name)
    return _spec(content, _read(value.get("fields"), name, lookup), name)


def is_missing(value: object) -> bool:
    """Whether plain data have a place for something that could not be stored."""
    if isinstance(value, dict):
        return _UNPORTABLE in value or any(map(is_missing, value.values()))
    return isinstance(value, list) and any(map(is_missing, value))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def _portable(value: object) -> Any:
    """The same with None in place of what could not be stored."""
    if isinstance(value, list):
        return [_portable(item) for item in value]
    if not isinstance(value, dict):
        return value
    return None if _UNPORTABLE in value else {key: _portable(item) for key, item in value.items()}


def _spec(kind: object, fields: object, name: str) -> Any:
    """The module spec that is described: the only objects that are made of a file's data."""
    if not isinstance(kind, str) or kind not in _SPECS:
        raise ConfigError(
            f"{name}: the file describes an object of {kind!r}; only module specs are made from files. Give it again: "
            f"{name}=..."
        )
    if not isinstance(fields, dict) or not all(isinstance(key, str) for key in fields):
        raise ConfigError(f"{name}: {kind!r} cannot be made from what was stored: its fields are missing.")
    module = importlib.import_module(kind.partition(":")[0])  # one of ours, named above
    spec_class = vars(module)[_SPECS[kind]]
    try:
        wrong = _wrong_in(fields, vars(module)["RLModuleSpec"])
        spec = spec_class(**fields)
    except (AttributeError, TypeError) as error:
        raise ConfigError(f"{name}: {kind!r} cannot be made from what was stored ({error}).") from error
    if wrong:
        raise ConfigError(f"{name}: {kind!r} cannot be made from what was stored: {wrong} is not as it is to be.")
    return spec


def _wrong_in(fields: Mapping[str, Any], one: type) -> str:
    """The field of a spec that does not hold what is meant; ``""``: none."""
    several, model = fields.get("rl_module_specs", {}), fields.get("model", {})
    good = {
        "rl_module_specs": isinstance(several, dict) and all(isinstance(value, one) for value in several.values()),
        "module_class": fields.get("module_class") is None or callable(fields["module_class"]),
        "model": isinstance(model, dict) and all(isinstance(key, str) for key in model),
        "masked": isinstance(fields.get("masked", False), bool),
        "rows_of": fields.get("rows_of") is None or isinstance(fields["rows_of"], str),
        **{name: _are_names(fields.get(name, ())) for name in ("shares", "shared_by")},
        **{name: fields.get(name) is None or _is_space(fields[name]) for name in ("observation_space", "action_space")},
    }
    return next((name for name, is_good in good.items() if not is_good), "")


def _are_names(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)


def _is_space(value: object) -> bool:
    return any(base.__module__.startswith("gymnasium.spaces") for base in type(value).__mro__)
