"""Finds what is chosen by name: backends, algorithms, launchers, collectives; and the plugins that are told everything.

Listing reads the distributions' metadata and imports nothing; loading imports one plugin. Refuses: unknown names (with
the nearest one), names that two distributions claim, another PLUGIN_API, plugins that raise (SystemExit, too), return
nothing or something of another kind; each refusal names the plugin and its distribution, and none disturbs the others.
docs/decisions/plugins-and-backends.md says why.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.metadata
import importlib.util
import json
import sys
import urllib.parse
from pathlib import Path
from typing import Any, Literal, overload

import pluggy

from learner_core.backend import Backend, BackendFacts
from learner_core.errors import BackendNotInstalledError, LearnerCoreError, PluginError

from .claims import GROUPS, Entry, chosen, duplicate, entries_of, nearest, refresh, register, unreadable
from .containment import contained, shown, undisturbed
from .loading import blame, declared_in, load_plugin, not_installed, refusal, register_all
from .manager import HERE, OURS, Manager, hook_names, implemented
from .registry import get_manager

__all__ = [
    "GROUPS",
    "PluginInfo",
    "backend_facts",
    "get_config",
    "is_of_plugin",
    "list_algorithms",
    "list_backends",
    "list_plugins",
    "load",
    "make_backend",
    "nearest",
    "refresh",
    "register",
    "register_all",
    "unreadable",
]


# What the thing that a plugin returns must have, to be one.
_PARTS = {
    "learner_core.launchers": ("make_learners",),
    "learner_core.collectives": ("check", "preload", "open_rendezvous", "create"),
}


# Asked of a plugin that was chosen by name, as those are; it need not answer.
_FACTS = "learner_core_backend_facts"


class PluginInfo(str):
    """What is known of one plugin without importing it. It is its name, a ``str``, with attributes.

    Attributes:
        name: The name it is chosen by.
        group: Its entry-point group.
        distribution: The installed distribution that brings it.
        version: That distribution's version.
        status: "available" (not loaded yet), "loaded", "not installed" (its framework is missing), "duplicate" or
            "broken".
        error: What is wrong, if something is.
    """

    name: str
    group: str
    distribution: str
    version: str
    status: str
    error: str | None

    def __new__(
        cls, name: str, *, group: str, distribution: str, version: str, status: str, error: str | None
    ) -> PluginInfo:
        self = super().__new__(cls, name)
        self.name, self.group, self.distribution = name, group, distribution
        self.version, self.status, self.error = version, status, error
        return self


def list_backends() -> list[PluginInfo]:
    """List the registered backends; imports none of them.

    Returns:
        One entry per claim of a name, sorted; each is the name and has ``distribution version status error``.
    """
    return list_plugins("learner_core.backends")


def list_algorithms() -> list[PluginInfo]:
    """List the registered algorithms; imports none of them. Returns as :func:`list_backends`."""
    return list_plugins("learner_core.algorithms")


def get_config(name: str) -> Any:
    """Make the config of a registered algorithm, third-party ones included.

    Args:
        name: The algorithm's name, ``"ppo"``.

    Returns:
        A new AlgorithmConfig of the algorithm's class, with its defaults.

    Raises:
        PluginNotFoundError: No such algorithm; the text has the nearest name.
        PluginError: Its plugin is broken, or claimed twice.
    """
    make = load("learner_core.algorithms", name)
    try:
        with contained():
            return make()
    except LearnerCoreError:
        raise
    except Exception as error:
        raise blame(chosen("learner_core.algorithms", name), error, "making its config") from error


def make_backend(name: str, **settings: str) -> Backend:
    """Load a backend and make one.

    Args:
        name: The backend's name.
        settings: As ``Backend`` takes them: ``device``, ``precision``.

    Raises:
        PluginNotFoundError, BackendNotInstalledError: As :func:`load`.
        ConfigError: A setting does not fit the backend.
        PluginError: It is broken, or raises.
    """
    make = load("learner_core.backends", name)
    try:
        with contained():
            return make(**settings)
    except LearnerCoreError:
        raise
    except Exception as error:
        raise blame(chosen("learner_core.backends", name), error, "making the backend") from error


def list_plugins(group: str, *, only: str | None = None, try_loading: bool = False) -> list[PluginInfo]:
    """List the plugins of a group.

    Args:
        group: One of :data:`GROUPS`.
        only: This name alone; None: all.
        try_loading: Load each one, to learn whether it works (``learner-core plugins doctor``).

    Returns:
        As :func:`list_backends`.
    """
    entries = [entry for entry in entries_of(group) if only in (None, entry.name)]
    infos = []
    for entry in sorted(entries, key=lambda entry: (entry.name, entry.distribution)):
        if try_loading and not entry.error:
            try:
                _try_hooks(entry) if GROUPS[group] is None else load(group, entry.name)
            except PluginError as problem:
                entry.error = problem
        twins = [other for other in entries if other.name == entry.name]
        status = "available" if entry.plugin is None else "loaded"
        error = str(entry.error) if entry.error else None
        if entry.error:
            status = "not installed" if isinstance(entry.error, BackendNotInstalledError) else "broken"
        elif missing := _missing(entry):
            status, error = "not installed", not_installed(entry, missing)
        if len(twins) > 1:
            status, error = "duplicate", str(duplicate(group, twins))
        infos.append(
            PluginInfo(
                entry.name,
                group=group,
                distribution=entry.distribution,
                version=entry.version,
                status=status,
                error=error,
            )
        )
    return infos


@overload
def load(group: Literal["learner_core.backends"], name: str) -> type[Backend]: ...


@overload
def load(group: str, name: str) -> Any: ...


def load(group: str, name: str) -> object:
    """Load one plugin by name and ask it for its thing.

    Args:
        group: One of :data:`GROUPS`, except ``learner_core.plugins``.
        name: The name it is chosen by.

    Returns:
        What its registration hook returned: the Backend class, the AlgorithmConfig subclass, ...; the same every time.

    Raises:
        PluginNotFoundError: No such name; the text has the nearest one.
        BackendNotInstalledError: Its framework is missing; the text has the command that installs it.
        PluginError: It is claimed twice, has another PLUGIN_API, raises, or does not answer the hook.
    """
    entry = chosen(group, name)
    if entry.thing is None:
        try:
            entry.thing = _ask(entry, load_plugin(entry))
        except PluginError as problem:
            entry.error = problem
            raise
        entry.error = None
        _tell(entry)
    return entry.thing


def backend_facts(name: str) -> BackendFacts:
    """What a backend says of itself; imports its plugin, not its framework.

    Args:
        name: The backend's name.

    Raises:
        PluginNotFoundError: No such backend; the text has the nearest name.
        PluginError: Its plugin is broken, or claimed twice.
    """
    entry = chosen("learner_core.backends", name)
    if entry.facts is None:
        plugin = load_plugin(entry)
        facts = _answer(entry, plugin, _FACTS) if _offers(entry, plugin, _FACTS) else BackendFacts()
        if not isinstance(facts, BackendFacts):
            raise refusal(entry, f"{_FACTS}() must return learner_core.backend.BackendFacts, got {shown(facts)}.")
        entry.facts = facts
    return entry.facts


def is_of_plugin(module: str) -> bool:
    """Whether a module is in the package that an installed distribution registered a plugin from.

    Nothing is imported. A namesake in the working directory is not it, unless the distribution is installed there.

    Args:
        module: A dotted name.
    """
    for entry in [entry for group in GROUPS for entry in entries_of(group)]:
        path = entry.value.partition(":")[0].strip()
        if path.partition(".")[0] == module.partition(".")[0] and (found := _package_of(path)) is not None:
            package, folder = found
            inside = module == package or module.startswith(f"{package}.")
            if inside and (folder != _working_directory() or folder in _places_of(entry.distribution)):
                return True
    return False


def _package_of(path: str) -> tuple[str, Path] | None:
    """The outermost package of a plugin's module that is not shared by several distributions, and its folder."""
    parts = path.split(".")
    try:
        spec = importlib.util.find_spec(parts[0])
        for depth in range(1, len(parts) + 1):
            if depth > 1 and spec is not None and spec.submodule_search_locations is not None:
                places = list(spec.submodule_search_locations)
                spec = importlib.machinery.PathFinder.find_spec(".".join(parts[:depth]), places)
            if spec is None:
                return None
            if spec.origin and spec.has_location:  # a namespace has none: whoever is in it may be anybody
                folder = Path(spec.origin).parent
                inside = depth if spec.submodule_search_locations is not None else depth - 1
                for _ in range(inside):
                    folder = folder.parent
                return ".".join(parts[:depth]), folder.resolve()
    except (ImportError, OSError, ValueError):
        pass  # there is no such package, or one without a spec
    return None


def _working_directory() -> Path | None:
    try:
        return Path.cwd().resolve()
    except OSError:
        return None  # it was removed: nothing is found there


def _places_of(distribution: str) -> set[Path]:
    """Folders that a distribution is installed in: where its files are, and of an editable one its project's."""
    try:
        found = importlib.metadata.distribution(distribution)
        places = {Path(str(found.locate_file(""))).resolve()}
        origin = json.loads(found.read_text("direct_url.json") or "{}")
        if origin.get("dir_info", {}).get("editable") and str(origin.get("url", "")).startswith("file://"):
            project = Path(urllib.parse.unquote(origin["url"].removeprefix("file://"))).resolve()
            here = _working_directory()
            places |= {here} if here is not None and here.is_relative_to(project) else set()
    except (importlib.metadata.PackageNotFoundError, OSError, ValueError, AttributeError):
        return set()
    return places


def _ask(entry: Entry, plugin: object) -> object:
    hook = GROUPS[entry.group]
    if hook is None:
        raise PluginError(f"{entry.group}: these plugins are told, not asked; there is nothing to load.")
    thing = _answer(entry, plugin, hook)
    try:
        with contained():
            lacks = _lacking(entry.group, thing)
    except Exception as error:
        raise blame(entry, error, f"looking at what {hook}() returned") from error
    if lacks:
        raise refusal(entry, f"{hook}() must return {lacks}, got {shown(thing)}.")
    return thing


def _lacking(group: str, thing: object) -> str | None:
    """What ``thing`` should be and is not."""
    if group == "learner_core.algorithms":
        named = isinstance(thing, type) and type(getattr(thing, "algorithm_name", None)) is str
        return None if named else "a subclass of AlgorithmConfig"
    if group == "learner_core.backends":
        return None if callable(thing) else "a Backend class"
    parts = _PARTS[group]
    if all(callable(getattr(thing, part, None)) for part in parts):
        return None
    return f"an object with {' and '.join(f'{part}()' for part in parts)}"


def _offers(entry: Entry, plugin: object, hook: str) -> bool:
    try:
        with contained():
            return hasattr(plugin, hook)
    except Exception as error:
        raise blame(entry, error, f"looking for {hook}()") from error


def _answer(entry: Entry, plugin: object, hook: str) -> object:
    """What the plugin of one entry answers to a registration hook."""
    asked = Manager()
    asked.register(plugin, entry.name, distribution=entry.distribution)
    caller: pluggy.HookCaller = getattr(asked.hook, hook)
    if not caller.get_hookimpls():
        raise refusal(entry, f"{shown(entry.value or plugin)} has no function {hook}() marked with hookimpl.")
    around = contextlib.nullcontext() if entry.distribution in (OURS, HERE) else undisturbed()
    try:
        with contained(), around:
            answers = caller()
    except Exception as error:
        raise blame(entry, error, f"{hook}()") from error
    if not answers:
        raise refusal(entry, f"{hook}() returned None.")
    return answers[0]


def _try_hooks(entry: Entry) -> None:
    """Could a plugin that is told everything be registered?"""
    Manager().register(load_plugin(entry), entry.name, distribution=entry.distribution)


def _tell(entry: Entry) -> None:
    """Let a plugin that was chosen by name hear the notification hooks it implements, too."""
    heard = {name for name in hook_names() if name not in (*GROUPS.values(), _FACTS)}
    try:
        with contained():
            found = implemented(entry.plugin)
    except Exception as error:
        raise blame(entry, error, "looking through it for hooks") from error
    if not heard.isdisjoint(found):
        manager = get_manager()
        if not manager.is_registered(entry.plugin):
            kind = entry.group.partition(".")[2].removesuffix("s")
            manager.register(entry.plugin, f"{kind}:{entry.name}", distribution=entry.distribution)


def _missing(entry: Entry) -> str:
    """The first module that a plugin says it needs (``REQUIRES = ("torch",)``) and that is not installed, or ""."""
    declared = declared_in(entry.value, "REQUIRES") if entry.value else None
    names = declared if isinstance(declared, (tuple, list)) else ()
    for name in names:
        top = name.partition(".")[0] if isinstance(name, str) else ""
        if top.isidentifier() and top not in sys.modules:
            try:
                found = importlib.util.find_spec(top)
            except (ImportError, ValueError):
                found = None
            if found is None:
                return top
    return ""
