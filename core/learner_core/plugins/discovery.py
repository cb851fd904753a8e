"""Finds what is chosen by name: backends, algorithms, launchers, collectives; and the plugins that are told everything.

Listing reads the distributions' metadata and imports nothing; loading imports one plugin. Refuses: unknown names (with
the nearest one), names that two distributions claim, another PLUGIN_API, plugins that raise (SystemExit, too), return
nothing or something of another kind; each refusal names the plugin and its distribution, and none disturbs the others.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.machinery
import importlib.metadata
import importlib.util
import json
import sys
import urllib.parse
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pluggy

from learner_core.backend import BackendFacts
from learner_core.errors import (
    BackendNotInstalledError,
    LearnerCoreError,
    PluginError,
    PluginNotFoundError,
    did_you_mean,
)

from . import hookspecs
from .containment import contained, said, shown, undisturbed
from .manager import HERE, OURS, Manager, PluginQuarantineWarning, get_manager, hook_names, implemented
from .metadata import Unreadable, read_claims

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

GROUPS: dict[str, str | None] = {
    "learner_core.backends": "learner_core_backend",
    "learner_core.algorithms": "learner_core_algorithm",
    "learner_core.launchers": "learner_core_launcher",
    "learner_core.collectives": "learner_core_collective",
    "learner_core.plugins": None,
}
"""Entry-point group -> the hook that its plugins answer; None: told everything instead of being asked for something."""

# What the thing that a plugin returns must have, to be one.
_PARTS = {
    "learner_core.launchers": ("make_learners",),
    "learner_core.collectives": ("check", "preload", "open_rendezvous", "create"),
}

#: Largest source file that is looked through for PLUGIN_API before it is imported, in bytes.
_MOST_SOURCE = 1 << 22

# Asked of a plugin that was chosen by name, as those are; it need not answer.
_FACTS = "learner_core_backend_facts"

# Framework's top-level module -> the extra of learner-core that installs it.
_EXTRAS = {"torch": "torch", "tensorflow": "tf-cpu", "keras": "tf-cpu", "ray": "ray", "horovod": "horovod"}
_ALIASES = {"pytorch": "torch", "tensorflow": "tf", "keras": "tf", "tf2": "tf", "tf-cpu": "tf"}


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


@dataclass
class _Entry:
    name: str
    group: str
    value: str
    distribution: str
    version: str
    plugin: Any = None
    thing: Any = None
    facts: BackendFacts | None = None
    error: PluginError | None = None

    @property
    def blame(self) -> str:
        return f"plugin {self.name!r} of {self.distribution} {self.version}".rstrip()


@dataclass
class _Index:
    installed: dict[str, list[_Entry]] = field(default_factory=dict)
    unreadable: list[Unreadable] = field(default_factory=list)
    here: dict[str, list[_Entry]] = field(default_factory=dict)


_INDEX = _Index()


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
        raise _blame(_chosen("learner_core.algorithms", name), error, "making its config") from error


def make_backend(name: str, **settings: Any) -> Any:
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
        raise _blame(_chosen("learner_core.backends", name), error, "making the backend") from error


def unreadable() -> list[Unreadable]:
    """Installed distributions whose entry points cannot all be read, and why; what is lost of them is not listed."""
    _entries(next(iter(GROUPS)))
    return list(_INDEX.unreadable)


def list_plugins(group: str, *, only: str | None = None, try_loading: bool = False) -> list[PluginInfo]:
    """List the plugins of a group.

    Args:
        group: One of :data:`GROUPS`.
        only: This name alone; None: all.
        try_loading: Load each one, to learn whether it works (``learner-core plugins doctor``).

    Returns:
        As :func:`list_backends`.
    """
    entries = [entry for entry in _entries(group) if only in (None, entry.name)]
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
            status, error = "not installed", _not_installed(entry, missing)
        if len(twins) > 1:
            status, error = "duplicate", str(_duplicate(group, twins))
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


def load(group: str, name: str) -> Any:
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
    entry = _chosen(group, name)
    if entry.thing is None:
        try:
            entry.thing = _ask(entry, _load_plugin(entry))
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
    entry = _chosen("learner_core.backends", name)
    if entry.facts is None:
        plugin = _load_plugin(entry)
        facts = _answer(entry, plugin, _FACTS) if _offers(entry, plugin, _FACTS) else BackendFacts()
        if not isinstance(facts, BackendFacts):
            raise _error(entry, f"{_FACTS}() must return learner_core.backend.BackendFacts, got {shown(facts)}.")
        entry.facts = facts
    return entry.facts


def nearest(group: str, name: str) -> str:
    """Suggest the registered name of a group that is nearest to ``name``, as :func:`did_you_mean` does."""
    known = [entry.name for entry in _entries(group)]
    return f" Did you mean {_ALIASES[name]!r}?" if _ALIASES.get(name) in known else did_you_mean(name, known)


def register(group: str, name: str, plugin: Any) -> None:
    """Register a plugin of this process by hand, as an entry point would; other processes do not see it.

    Args:
        group: One of :data:`GROUPS`.
        name: The name it is chosen by.
        plugin: The plugin: an object or module with hook implementations.

    Raises:
        PluginError: The name is taken, or the group does not exist.
    """
    taken = [entry for entry in _entries(group) if entry.name == name]
    if taken:
        raise PluginError(f"{group}: {name!r} is taken, by {taken[0].blame}.", plugin=name, distribution=HERE)
    entry = _Entry(name, group, "", HERE, "", plugin=plugin)
    _INDEX.here.setdefault(group, []).append(entry)


def refresh() -> None:
    """Forget everything but hand-made registrations: distributions were installed or removed while running."""
    _INDEX.installed.clear()
    _INDEX.unreadable.clear()


def register_all(manager: Manager) -> None:
    """Register every plugin of group ``learner_core.plugins``, leaving out those that cannot be, with a warning each.

    Args:
        manager: The manager to register them with.
    """
    entries = _entries("learner_core.plugins")
    problems: list[PluginError] = []
    for entry in entries:
        twins = [other for other in entries if other.name == entry.name]
        try:
            if len(twins) > 1:
                raise _duplicate("learner_core.plugins", twins)
            plugin = _load_plugin(entry)
            if not manager.is_registered(plugin):
                manager.register(plugin, entry.name, distribution=entry.distribution)
        except PluginError as problem:
            entry.error = problem
            manager.quarantined[entry.name] = str(problem)
            problems.append(problem)
    for left_out in problems:  # all the others are in by now, even where a warning is turned into an error
        warnings.warn(f"left out: {left_out}", PluginQuarantineWarning, stacklevel=2)


def is_of_plugin(module: str) -> bool:
    """Whether a module is in the package that an installed distribution registered a plugin from.

    Nothing is imported. A namesake in the working directory is not it, unless the distribution is installed there.

    Args:
        module: A dotted name.
    """
    for entry in [entry for group in GROUPS for entry in _entries(group)]:
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


def _entries(group: str) -> list[_Entry]:
    if group not in GROUPS:
        raise PluginError(f"There is no plugin group {group!r}.{did_you_mean(group, GROUPS)}")
    if group not in _INDEX.installed:
        claims, _INDEX.unreadable = read_claims(GROUPS)
        _INDEX.installed = {known: [] for known in GROUPS}
        for claim in claims:
            entry = _Entry(claim.name, claim.group, claim.value, claim.distribution, claim.version)
            _INDEX.installed[claim.group].append(entry)
    return [*_INDEX.installed[group], *_INDEX.here.get(group, [])]


def _chosen(group: str, name: str) -> _Entry:
    """The one entry of this name."""
    claims = [entry for entry in _entries(group) if entry.name == name]
    kind = group.partition(".")[2].removesuffix("s")
    if not claims:
        damaged = "".join(f" (of {one.distribution}: {one.reason})" for one in _INDEX.unreadable)
        raise PluginNotFoundError(f"There is no {kind} {name!r}.{nearest(group, name)}{damaged}", plugin=str(name))
    if len(claims) > 1:
        raise _duplicate(group, claims)
    return claims[0]


def _duplicate(group: str, claims: list[_Entry]) -> PluginError:
    owners = " and ".join(sorted(f"{entry.distribution} {entry.version} ({shown(entry.value)})" for entry in claims))
    return PluginError(
        f"{group}: {claims[0].name!r} is claimed by {owners}. Uninstall all but one.",
        plugin=claims[0].name,
        distribution=claims[0].distribution,
    )


def _load_plugin(entry: _Entry) -> Any:
    if entry.plugin is None:
        _check_api(entry, _declared_api(entry.value))
        try:
            entry.plugin = _import(entry)
        except PluginError:
            raise
        except Exception as error:
            raise _blame(entry, error, "importing it") from error
    return entry.plugin


def _import(entry: _Entry) -> Any:
    point = importlib.metadata.EntryPoint(entry.name, entry.value, entry.group)
    if point.pattern.match(entry.value) is None:
        raise _error(entry, f"{shown(entry.value)!r} names no module: expected module or module:object.")
    # Frameworks silence their own warnings when they are imported, so what we bring ourselves may do so.
    around = contextlib.nullcontext() if entry.distribution == OURS else undisturbed()
    with contained(), around:
        plugin = point.load()
        plugin = plugin() if isinstance(plugin, type) else plugin
        if plugin is None:
            raise _error(entry, f"{shown(entry.value)} is None.")
        _check_api(entry, getattr(plugin, "PLUGIN_API", None))
    return plugin


def _ask(entry: _Entry, plugin: Any) -> Any:
    hook = GROUPS[entry.group]
    if hook is None:
        raise PluginError(f"{entry.group}: these plugins are told, not asked; there is nothing to load.")
    thing = _answer(entry, plugin, hook)
    try:
        with contained():
            lacks = _lacking(entry.group, thing)
    except Exception as error:
        raise _blame(entry, error, f"looking at what {hook}() returned") from error
    if lacks:
        raise _error(entry, f"{hook}() must return {lacks}, got {shown(thing)}.")
    return thing


def _lacking(group: str, thing: Any) -> str | None:
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


def _offers(entry: _Entry, plugin: Any, hook: str) -> bool:
    try:
        with contained():
            return hasattr(plugin, hook)
    except Exception as error:
        raise _blame(entry, error, f"looking for {hook}()") from error


def _answer(entry: _Entry, plugin: Any, hook: str) -> Any:
    """What the plugin of one entry answers to a registration hook."""
    asked = Manager()
    asked.register(plugin, entry.name, distribution=entry.distribution)
    caller: pluggy.HookCaller = getattr(asked.hook, hook)
    if not caller.get_hookimpls():
        raise _error(entry, f"{shown(entry.value or plugin)} has no function {hook}() marked with hookimpl.")
    around = contextlib.nullcontext() if entry.distribution in (OURS, HERE) else undisturbed()
    try:
        with contained(), around:
            answers = caller()
    except Exception as error:
        raise _blame(entry, error, f"{hook}()") from error
    if not answers:
        raise _error(entry, f"{hook}() returned None.")
    return answers[0]


def _try_hooks(entry: _Entry) -> None:
    """Could a plugin that is told everything be registered?"""
    Manager().register(_load_plugin(entry), entry.name, distribution=entry.distribution)


def _tell(entry: _Entry) -> None:
    """Let a plugin that was chosen by name hear the notification hooks it implements, too."""
    heard = {name for name in hook_names() if name not in (*GROUPS.values(), _FACTS)}
    try:
        with contained():
            found = implemented(entry.plugin)
    except Exception as error:
        raise _blame(entry, error, "looking through it for hooks") from error
    if not heard.isdisjoint(found):
        manager = get_manager()
        if not manager.is_registered(entry.plugin):
            kind = entry.group.partition(".")[2].removesuffix("s")
            manager.register(entry.plugin, f"{kind}:{entry.name}", distribution=entry.distribution)


def _error(entry: _Entry, text: str) -> PluginError:
    return PluginError(f"{entry.blame}: {text}", plugin=entry.name, distribution=entry.distribution)


def _blame(entry: _Entry, error: Exception, doing: str) -> PluginError:
    name = error.name if type(error) is ModuleNotFoundError else None
    missing = name.partition(".")[0] if type(name) is str else ""
    own = entry.value.partition(":")[0].partition(".")[0]
    if entry.group == "learner_core.backends" and missing and missing != own:
        return BackendNotInstalledError(
            _not_installed(entry, missing),
            plugin=entry.name,
            distribution=entry.distribution,
        )
    return _error(entry, f"{doing} raised {said(error)}")


def _check_api(entry: _Entry, declared: Any) -> None:
    if declared is not None and (type(declared) is not int or declared != hookspecs.PLUGIN_API):
        raise _error(
            entry,
            f"it is written for PLUGIN_API {shown(declared)}, this learner-core has {hookspecs.PLUGIN_API}; "
            f"install a version of {entry.distribution} that fits.",
        )


def _missing(entry: _Entry) -> str:
    """The first module that a plugin says it needs (``REQUIRES = ("torch",)``) and that is not installed, or ""."""
    declared = _declared(entry.value, "REQUIRES") if entry.value else None
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


def _not_installed(entry: _Entry, missing: str) -> str:
    extra = _EXTRAS.get(missing)
    command = f'pip install "learner-core[{extra}]"' if extra else f"pip install {missing}"
    kind = entry.group.partition(".")[2].removesuffix("s")
    return f"The {kind} {entry.name!r} needs {missing}, which is not installed: {command}."


def _declared_api(value: str) -> Any:
    """``PLUGIN_API = <number>`` of a plugin; None if it does not say."""
    return _declared(value, "PLUGIN_API")


def _declared(value: str, name: str) -> Any:
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
