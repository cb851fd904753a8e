"""Config values as plain data: callables, classes and specs become references by name, never code.

Needs nothing but names. Refuses to import on behalf of a file unless told to, to resolve names of the standard library
(a config file must not be able to name ``subprocess:run``), and to invent a value for what could not be stored.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Mapping
from typing import Any

from learner_core.errors import ConfigError, PluginError
from learner_core.plugins import discovery

__all__ = ["config_class", "from_plain", "to_plain"]

_REFERENCE, _OBJECT, _UNPORTABLE, _SPACE = "__reference__", "__object__", "__unportable__", "__space__"


def to_plain(value: Any) -> Any:
    """Turn one setting's value into plain data.

    Args:
        value: Plain data, numpy scalars and arrays (as lists), callables, classes, gymnasium spaces, dataclasses
            (module specs) and objects with ``to_dict``/``from_dict``, nested at will.

    Returns:
        Plain data; ``{"__unportable__": text}`` stands for what cannot be stored.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {key if isinstance(key, int) else str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_plain(item) for item in value]
    if type(value).__module__ == "numpy":
        return to_plain(value.tolist())
    if callable(getattr(value, "to_dict", None)) and not isinstance(value, type):
        name = _name_of(type(value))
        return {_OBJECT: name, "data": to_plain(value.to_dict())} if name else {_UNPORTABLE: repr(value)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        name = _name_of(type(value))
        return {_OBJECT: name, "fields": to_plain(fields)} if name else {_UNPORTABLE: repr(value)}
    if callable(value):
        name = _name_of(value)
        return {_REFERENCE: name} if name else {_UNPORTABLE: repr(value)}
    if any(base.__module__.startswith("gymnasium.spaces") for base in type(value).__mro__):
        from learner_core import spaces

        return {_SPACE: spaces.to_plain(value)}
    return {_UNPORTABLE: repr(value)}


def from_plain(value: Any, *, name: str, import_modules: bool) -> Any:
    """Turn plain data back into a setting's value.

    Args:
        value: What :func:`to_plain` returned.
        name: The setting, for errors.
        import_modules: Whether references may import modules.

    Returns:
        The value.

    Raises:
        ConfigError: An unportable value, or a reference that cannot or may not be resolved.
    """
    if isinstance(value, list):
        return [from_plain(item, name=name, import_modules=import_modules) for item in value]
    if not isinstance(value, dict):
        return value
    if _UNPORTABLE in value:
        raise ConfigError(
            f"{name}: its value {value[_UNPORTABLE]} could not be stored (only module-level functions and classes "
            f"have a name); give it again: from_dict(..., {name}=...)."
        )
    if _SPACE in value:
        from learner_core import spaces

        return spaces.from_plain(value[_SPACE])
    if _REFERENCE in value:
        return resolve(value[_REFERENCE], name=name, import_modules=import_modules)
    if _OBJECT in value:
        kind: Any = resolve(value[_OBJECT], name=name, import_modules=import_modules)
        fields = from_plain(value.get("fields", value.get("data")), name=name, import_modules=import_modules)
        try:
            if isinstance(kind, type) and dataclasses.is_dataclass(kind) and "fields" in value:
                return kind(**fields)
            return kind.from_dict(fields)
        except (AttributeError, TypeError) as error:
            raise ConfigError(f"{name}: {value[_OBJECT]!r} cannot be made from what was stored ({error}).") from error
    return {key: from_plain(item, name=name, import_modules=import_modules) for key, item in value.items()}


def resolve(reference: Any, *, name: str, import_modules: bool) -> Any:
    """Find a function or class by its ``"module:qualname"``.

    Args:
        reference: The name.
        name: The setting, for errors.
        import_modules: Whether a module that is not imported yet may be.

    Returns:
        The function or class.

    Raises:
        ConfigError: It is malformed, forbidden or not there.
    """
    module_name, _, qualname = str(reference).partition(":")
    ways = f"Import that module first, give the value again (from_dict(..., {name}=...)), or say import_modules=True."
    standard = module_name.partition(".")[0] in sys.stdlib_module_names and module_name != "__main__"
    if not qualname or standard:
        raise ConfigError(f"{name}: the stored reference {reference!r} is not allowed.")
    known = module_name in sys.modules or module_name.partition(".")[0] in discovery.trusted_packages()
    if not known and not import_modules:
        raise ConfigError(f"{name}: the stored reference {reference!r} is in a module that is not imported. {ways}")
    try:
        found: Any = importlib.import_module(module_name)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{name}: the stored reference {reference!r} cannot be found ({error}). {ways}") from error
    if not callable(found) or getattr(found, "__module__", None) != module_name:
        raise ConfigError(f"{name}: the stored reference {reference!r} is not a function or class of that module.")
    return found


def config_class(cls: Any, data: Any, *, import_modules: bool) -> Any:
    """Find the config class that stored data is of.

    Args:
        cls: The class ``from_dict`` was called on; the answer is it or a subclass of it.
        data: What ``to_dict`` returned.
        import_modules: Whether the class's module may be imported.

    Returns:
        The class.

    Raises:
        ConfigError: Not such data, from a newer version, or a class that cannot be found.
    """
    if not isinstance(data, Mapping) or not {"schema", "algorithm", "class", "settings"} <= data.keys():
        raise ConfigError("from_dict() takes what to_dict() returned: schema, algorithm, class, settings.")
    if data["schema"] != 1:
        raise ConfigError(f"This config has schema {data['schema']!r}, this version reads 1: a newer version wrote it.")
    if data["class"] == _name_of(cls):
        return cls
    try:
        registered = type(discovery.get_config(data["algorithm"]))
    except PluginError:
        registered = None
    found: Any = registered
    if registered is None or data["class"] != _name_of(registered):
        found = resolve(data["class"], name="class", import_modules=import_modules)
    if not (isinstance(found, type) and issubclass(found, cls)):
        raise ConfigError(f"The stored config is a {data['class']}, which is not a {cls.__name__}.")
    return found


def _name_of(value: Any) -> str | None:
    module, qualname = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not module or not qualname or "<" in qualname:
        return None
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return f"{module}:{qualname}" if found is value else None
