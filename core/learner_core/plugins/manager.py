"""The plugin manager of a process, and the only way hooks are called: isolated, with read-only copies.

Needs pluggy and numpy. Refuses plugins with misspelt hooks, hook wrappers (a wrapper could silence others), and a
second plugin of the same name. Workers build their own manager; nothing of it is ever pickled.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping

import numpy as np
import pluggy

from learner_core.errors import PluginError, did_you_mean

from . import hookspecs
from .containment import contained, said, shown

__all__ = [
    "Manager",
    "PluginQuarantineWarning",
    "checkpoint_collect",
    "checkpoint_restore",
    "hook_names",
    "notify",
]

HERE = "(registered in this process)"
OURS = "learner-core"

_MARK = f"{hookspecs.PROJECT}_impl"


class PluginQuarantineWarning(RuntimeWarning):
    """A plugin's hook raised; the plugin is told nothing more in this process."""


class Manager(pluggy.PluginManager):
    """A pluggy manager that knows learner-core's hooks and where each plugin came from.

    Attributes:
        distributions: {plugin name: distribution}.
        quarantined: {plugin name: what happened}.
    """

    def __init__(self) -> None:
        super().__init__(hookspecs.PROJECT)
        self.add_hookspecs(hookspecs)
        self.distributions: dict[str, str] = {}
        self.quarantined: dict[str, str] = {}
        self._plugins: dict[str, object] = {}

    def register(self, plugin: object, name: str | None = None, *, distribution: str = HERE) -> str | None:
        """Register a plugin after checking every hook it implements.

        Args:
            plugin: A module or object whose functions are marked with ``hookimpl``.
            name: Its name; None: pluggy's choice, the module's name.
            distribution: Where it came from, for blame.

        Returns:
            The name.

        Raises:
            PluginError: An unknown hook, a wrong signature, a wrapper, or a name that is taken.
        """
        label = name or shown(self.get_canonical_name(plugin))
        blame = f"plugin {label!r} of {distribution}"
        try:
            with contained():
                found = implemented(plugin)
        except Exception as error:
            text = f"{blame}: looking through it for hooks raised {said(error)}"
            raise PluginError(text, plugin=label, distribution=distribution) from error
        hooks = _Hooks(found)
        _check(hooks, blame=blame, plugin_name=label, distribution=distribution)
        if self.has_plugin(label) or self.is_registered(plugin):
            other = self.distributions.get(label, HERE)
            raise PluginError(
                f"{blame}: already registered, by {other}.", plugin=label, distribution=distribution
            ) from None
        registered = super().register(hooks, label)
        self.distributions[label] = distribution
        self._plugins[label] = plugin
        return registered

    def is_registered(self, plugin: object) -> bool:
        """Whether this very object is registered."""
        return any(plugin is known for known in self._plugins.values())

    def unregister(self, plugin: object = None, name: str | None = None) -> object:
        """Remove a plugin, given itself or its name; returns it."""
        if name is None:
            name = next((label for label, known in self._plugins.items() if known is plugin), None)
            assert name is not None, "plugin is not registered"
        super().unregister(name=name)
        return self._plugins.pop(name, None)


class _Hooks:
    """The hook implementations of a plugin and nothing else, for pluggy to hold.

    pluggy compares plugins with ``==`` and reads all of their attributes; a plugin's own ``__eq__``, properties and
    ``__getattr__`` would be run by the registration of others.
    """

    def __init__(self, found: Mapping[str, Callable[..., object]]) -> None:
        vars(self).update(found)


def implemented(plugin: object) -> dict[str, Callable[..., object]]:
    """{name: function} of what a plugin marks with ``hookimpl``. An attribute that cannot be read is none."""
    found: dict[str, Callable[..., object]] = {}
    for name in dir(plugin):
        try:
            value = getattr(plugin, name)
            options = getattr(value, _MARK, None)
        except Exception:
            continue
        if type(options) is dict and inspect.isroutine(value):
            found[name] = value
    return found


def _check(plugin: object, *, blame: str, plugin_name: str, distribution: str) -> None:
    """Try the plugin on a manager that is thrown away, so a bad one leaves no trace in ours."""
    trial = pluggy.PluginManager(hookspecs.PROJECT)
    trial.add_hookspecs(hookspecs)
    known = hook_names()
    try:
        trial.register(plugin, plugin_name)
        for caller in trial.get_hookcallers(plugin) or []:
            signature = f"{caller.name}{inspect.signature(getattr(hookspecs, caller.name))}" if caller.spec else ""
            if not signature:
                text = f"{blame}: there is no hook {caller.name!r}.{did_you_mean(caller.name, known)}"
                raise PluginError(text, plugin=plugin_name, distribution=distribution)
            if any(impl.hookwrapper or impl.wrapper for impl in caller.get_hookimpls()):
                text = f"{blame}: {caller.name} is a hook wrapper; implement it plainly: {signature}."
                raise PluginError(text, plugin=plugin_name, distribution=distribution)
        trial.check_pending()
    except PluginError:
        raise
    except Exception as error:  # a signature that does not fit, or a mark that pluggy cannot read
        near = next((name for name in known if f"'{name}'" in str(error)), None)
        signature = f" Its signature is {near}{inspect.signature(getattr(hookspecs, near))}." if near else ""
        reason = shown(" ".join(str(error).split()))
        raise PluginError(f"{blame}: {reason}{signature}", plugin=plugin_name, distribution=distribution) from error


def hook_names() -> tuple[str, ...]:
    """The names of all hooks, sorted."""
    return tuple(sorted(name for name in vars(hookspecs) if hasattr(getattr(hookspecs, name), "learner_core_spec")))


def notify(pm: Manager, hook: str, **arguments: object) -> dict[str, object]:
    """Call a notification hook on every plugin, each by itself.

    Free of any cost worth measuring when nobody implements the hook. A plugin that raises is unregistered, remembered
    in ``pm.quarantined`` and named in a :class:`PluginQuarantineWarning` once all the others have been told.

    Args:
        pm: The manager.
        hook: The hook's name.
        arguments: All arguments of its specification.

    Returns:
        {plugin name: what it returned}, without those that returned None.
    """
    implementations = getattr(pm.hook, hook).get_hookimpls()
    if not implementations:
        return {}
    frozen = {name: _read_only(value) for name, value in arguments.items()}
    return _call(pm, hook, {impl.plugin_name: frozen for impl in implementations})


def checkpoint_collect(
    pm: Manager, *, rank: int = 0, check: Callable[[object], object] = lambda tree: None
) -> dict[str, object]:
    """Collect every plugin's state: call ``learner_checkpoint_collect``.

    Args:
        pm: The manager.
        rank: The rank that collects.
        check: Raises for a tree that has no place in a state; the plugin that returned it is quarantined.

    Returns:
        {plugin name: state tree}, to be stored under ``plugins``.
    """
    hook = "learner_checkpoint_collect"
    implementations = getattr(pm.hook, hook).get_hookimpls()
    return _call(pm, hook, {impl.plugin_name: {"rank": rank} for impl in implementations}, check=check)


def checkpoint_restore(pm: Manager, states: Mapping[str, object], *, rank: int) -> list[str]:
    """Hand every plugin its own state: call ``learner_checkpoint_restore``.

    Args:
        pm: The manager.
        states: What :func:`checkpoint_collect` returned.
        rank: This learner's rank.

    Returns:
        Names in ``states`` of plugins that are not there to take them, sorted.
    """
    present = {impl.plugin_name for impl in pm.hook.learner_checkpoint_restore.get_hookimpls()}
    given = {name: {"state": _read_only(states[name]), "rank": rank} for name in states if name in present}
    _call(pm, "learner_checkpoint_restore", given)
    return sorted(set(states) - present)


def _call(
    pm: Manager,
    hook: str,
    arguments: Mapping[str, Mapping[str, object]],
    *,
    check: Callable[[object], object] = lambda result: None,
) -> dict[str, object]:
    results: dict[str, object] = {}
    failures: list[str] = []
    for impl in reversed(getattr(pm.hook, hook).get_hookimpls()):  # pluggy's order: last registered first
        if impl.plugin_name not in arguments:
            continue
        # Nobody sees what another plugin wrote into a dict.
        given = {name: _containers(value) for name, value in arguments[impl.plugin_name].items()}
        doing = "raised"
        try:
            with contained():
                result = impl.function(*[given[name] for name in impl.argnames])
                if result is not None:
                    doing = "returned what cannot be kept:"
                    check(result)
        except Exception as error:
            name = impl.plugin_name
            reason = f"{hook} {doing} {said(error)}"
            distribution = pm.distributions.get(name, HERE)
            pm.unregister(name=name)
            pm.quarantined[name] = reason
            failures.append(
                f"plugin {name!r} of {distribution} is quarantined, it is told nothing more in this process: {reason}"
            )
        else:
            if result is not None:
                results[impl.plugin_name] = result
    for failure in failures:
        warnings.warn(failure, PluginQuarantineWarning, stacklevel=3)
    return results


def _read_only(value: object) -> object:
    """Copy containers and arrays; the arrays of the copy cannot be written to."""
    if isinstance(value, np.ndarray):
        copied = np.array(value)
        copied.flags.writeable = False
        return copied
    if isinstance(value, Mapping):
        return {key: _read_only(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_read_only(item) for item in value)
    return value


def _containers(value: object) -> object:
    if isinstance(value, dict):
        return {key: _containers(item) for key, item in value.items()}
    return [_containers(item) for item in value] if type(value) is list else value
