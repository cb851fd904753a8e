"""The import of one plugin, and what it says of itself before: whatever goes wrong names it and its distribution."""

from __future__ import annotations

import ast
import contextlib
import importlib.machinery
import importlib.metadata
import importlib.util
import warnings
from pathlib import Path

from learner_core.errors import BackendNotInstalledError, PluginError

from . import hookspecs
from .claims import Entry, duplicate, entries_of
from .containment import contained, said, shown, undisturbed
from .manager import OURS, Manager, PluginQuarantineWarning

__all__ = ["blame", "declared_in", "load_plugin", "not_installed", "refusal", "register_all"]

#: Largest source file that is looked through for PLUGIN_API before it is imported, in bytes.
_MOST_SOURCE = 1 << 22

# Framework's top-level module -> the extra of learner-core that installs it.
_EXTRAS = {"torch": "torch", "tensorflow": "tf-cpu", "keras": "tf-cpu", "ray": "ray", "horovod": "horovod"}


def register_all(manager: Manager) -> None:
    """Register every plugin of group ``learner_core.plugins``, leaving out those that cannot be, with a warning each.

    Args:
        manager: The manager to register them with.
    """
    entries = entries_of("learner_core.plugins")
    problems: list[PluginError] = []
    for entry in entries:
        twins = [other for other in entries if other.name == entry.name]
        try:
            if len(twins) > 1:
                raise duplicate("learner_core.plugins", twins)
            plugin = load_plugin(entry)
            if not manager.is_registered(plugin):
                manager.register(plugin, entry.name, distribution=entry.distribution)
        except PluginError as problem:
            entry.error = problem
            manager.quarantined[entry.name] = str(problem)
            problems.append(problem)
    for left_out in problems:  # all the others are in by now, even where a warning is turned into an error
        warnings.warn(f"left out: {left_out}", PluginQuarantineWarning, stacklevel=2)


def load_plugin(entry: Entry) -> object:
    """The plugin of an entry, imported at the first call.

    Raises:
        PluginError: it has another PLUGIN_API, raises, or is nothing.
        BackendNotInstalledError: its framework is missing.
    """
    if entry.plugin is None:
        _check_api(entry, declared_in(entry.value, "PLUGIN_API"))
        try:
            entry.plugin = _import(entry)
        except PluginError:
            raise
        except Exception as error:
            raise blame(entry, error, "importing it") from error
    return entry.plugin


def _import(entry: Entry) -> object:
    point = importlib.metadata.EntryPoint(entry.name, entry.value, entry.group)
    if point.pattern.match(entry.value) is None:
        raise refusal(entry, f"{shown(entry.value)!r} names no module: expected module or module:object.")
    # Frameworks silence their own warnings when they are imported, so what we bring ourselves may do so.
    around = contextlib.nullcontext() if entry.distribution == OURS else undisturbed()
    with contained(), around:
        plugin = point.load()
        plugin = plugin() if isinstance(plugin, type) else plugin
        if plugin is None:
            raise refusal(entry, f"{shown(entry.value)} is None.")
        _check_api(entry, getattr(plugin, "PLUGIN_API", None))
    return plugin


def _check_api(entry: Entry, declared: object) -> None:
    if declared is not None and (type(declared) is not int or declared != hookspecs.PLUGIN_API):
        raise refusal(
            entry,
            f"it is written for PLUGIN_API {shown(declared)}, this learner-core has {hookspecs.PLUGIN_API}; "
            f"install a version of {entry.distribution} that fits.",
        )


def refusal(entry: Entry, text: str) -> PluginError:
    """An error that names the plugin and its distribution."""
    return PluginError(f"{entry.owner}: {text}", plugin=entry.name, distribution=entry.distribution)


def blame(entry: Entry, error: Exception, doing: str) -> PluginError:
    """What a plugin raised, as an error that names it; a missing framework is told apart."""
    name = error.name if type(error) is ModuleNotFoundError else None
    missing = name.partition(".")[0] if type(name) is str else ""
    own = entry.value.partition(":")[0].partition(".")[0]
    if entry.group == "learner_core.backends" and missing and missing != own:
        return BackendNotInstalledError(
            not_installed(entry, missing),
            plugin=entry.name,
            distribution=entry.distribution,
        )
    return refusal(entry, f"{doing} raised {said(error)}")


def not_installed(entry: Entry, missing: str) -> str:
    """That a module is missing, and the command that installs it."""
    extra = _EXTRAS.get(missing)
    command = f'pip install "learner-core[{extra}]"' if extra else f"pip install {missing}"
    kind = entry.group.partition(".")[2].removesuffix("s")
    return f"The {kind} {entry.name!r} needs {missing}, which is not installed: {command}."


def declared_in(value: str, name: str) -> object:
    """Read ``name = <literal>`` from a module's source without importing it; None if it does not say."""
    parts = value.partition(":")[0].strip().split(".")
    try:
        spec = importlib.util.find_spec(parts[0])
        for depth in range(2, len(parts) + 1):
            if spec is None or spec.submodule_search_locations is None:
                return None
            spec = importlib.machinery.PathFinder.find_spec(
                ".".join(parts[:depth]), list(spec.submodule_search_locations)
            )
        if spec is None or not spec.origin or not spec.origin.endswith(".py"):
            return None
        source = Path(spec.origin)
        if not source.is_file() or source.stat().st_size > _MOST_SOURCE:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes: the import will tell
            tree = ast.parse(source.read_bytes())
    except Exception:
        return None  # importing it will say what is wrong
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            try:
                return ast.literal_eval(getattr(node, "value", None) or "")
            except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                return None
    return None
