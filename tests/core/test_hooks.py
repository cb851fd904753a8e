"""Every hook: documented, called with what it says, isolated from training and from other plugins."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

from learner_core import PluginError
from learner_core.plugins import hookspecs, manager
from learner_core.plugins.hookspecs import hookimpl
from learner_core.plugins.manager import Manager, PluginQuarantineWarning, notify

# One complete call of every notification hook. A hook that is added must be added here.
CALLS: dict[str, dict[str, Any]] = {
    "algorithm_iteration_end": {"iteration": 1, "results": {"return": 2.0}, "timesteps": {}},
    "env_runner_lost": {"worker_index": 1, "exitcode": -9, "reason": "killed"},
    "env_runner_restarted": {"worker_index": 1, "num_restarts": 1},
    "learner_build_end": {
        "config": {}, "module_ids": ["p"], "backend": "torch", "compiled": True, "rank": 0, "world_size": 1,
    },
    "learner_checkpoint_collect": {"rank": 0},
    "learner_checkpoint_restore": {"state": {"a": 1}, "rank": 0},
    "learner_checkpoint_saved": {"path": "x", "update": 3, "rank": 0},
    "learner_group_worker_lost": {"rank": 1, "exitcode": -9, "reason": "killed"},
    "learner_group_worker_restarted": {"rank": 1, "update": 4},
    "learner_update_begin": {"update": 0, "timesteps": {}, "num_rows": {"p": 8}, "rank": 0},
    "learner_update_end": {"update": 0, "timesteps": {}, "results": {"p": {"loss": 1.0}}, "rank": 0},
}  # fmt: skip

REGISTRATION = {
    "learner_core_algorithm", "learner_core_backend", "learner_core_backend_facts", "learner_core_collective",
    "learner_core_launcher",
}  # fmt: skip


def _plugin(hook: str, body: Any) -> Any:
    """A plugin that implements one hook with all its arguments and hands them to ``body`` as a dict."""
    names = list(inspect.signature(getattr(hookspecs, hook)).parameters)
    namespace: dict[str, Any] = {"body": body}
    pairs = ", ".join(f"{name}={name}" for name in names)
    exec(f"def {hook}({', '.join(names)}):\n    return body(dict({pairs}))", namespace)
    return type("Plugin", (), {hook: staticmethod(hookimpl(namespace[hook]))})()


def test_every_hook_has_a_test_here() -> None:
    assert set(manager.hook_names()) == set(CALLS) | REGISTRATION


@pytest.mark.parametrize("hook", sorted(set(CALLS) | REGISTRATION))
def test_every_hook_says_who_calls_it_when_how_often_and_where(hook: str) -> None:
    spec = getattr(hookspecs, hook)
    doc = inspect.getdoc(spec) or ""
    assert "Called by" in doc
    assert "once per" in doc or ", once," in doc
    assert "rank" in doc or "driver" in doc or "learner" in doc
    signature = inspect.signature(spec)
    for name, parameter in signature.parameters.items():
        assert f"    {name}: " in doc, f"{hook}: argument {name} is not documented"
        assert parameter.annotation is not inspect.Parameter.empty
        assert parameter.default is inspect.Parameter.empty  # pluggy ignores defaults of implementations
    assert signature.return_annotation is not inspect.Signature.empty


@pytest.mark.parametrize("hook", sorted(CALLS))
def test_every_hook_reaches_its_implementations(hook: str) -> None:
    pm, seen = Manager(), []
    pm.register(_plugin(hook, seen.append), "listener")
    assert notify(pm, hook, **CALLS[hook]) == {}
    assert seen == [CALLS[hook]]


@pytest.mark.parametrize("hook", sorted(CALLS))
def test_a_hook_that_raises_is_quarantined_and_the_others_are_told(hook: str) -> None:
    pm, seen = Manager(), []

    def broken(arguments: dict[str, Any]) -> None:
        raise ZeroDivisionError("oh")

    pm.register(_plugin(hook, seen.append), "first")
    pm.register(_plugin(hook, broken), "broken", distribution="toy-dist 1.0")
    pm.register(_plugin(hook, seen.append), "last")
    text = f"plugin 'broken' of toy-dist 1.0 is quarantined.*{hook} raised ZeroDivisionError: oh"
    with pytest.warns(PluginQuarantineWarning, match=text):
        notify(pm, hook, **CALLS[hook])
    assert len(seen) == 2
    assert pm.quarantined == {"broken": f"{hook} raised ZeroDivisionError: oh"}
    notify(pm, hook, **CALLS[hook])  # without a warning: it is not called again
    assert len(seen) == 4


def test_hooks_see_copies_and_arrays_are_read_only() -> None:
    pm = Manager()
    results = {"p": {"grads": np.arange(3.0)}}
    kept: list[Any] = []

    def rude(arguments: dict[str, Any]) -> None:
        arguments["results"]["p"]["new"] = 1
        arguments["results"]["p"]["grads"][0] = 7

    pm.register(_plugin("learner_update_end", kept.append), "polite")
    pm.register(_plugin("learner_update_end", rude), "rude")
    with pytest.warns(PluginQuarantineWarning, match="read-only"):
        notify(pm, "learner_update_end", update=0, timesteps={}, results=results, rank=0)
    assert list(results["p"]) == ["grads"] and results["p"]["grads"].flags.writeable
    assert list(kept[0]["results"]["p"]) == ["grads"]  # what one plugin writes, no other sees
    results["p"]["grads"][0] = 9.0
    assert kept[0]["results"]["p"]["grads"][0] == 0.0


def test_plugins_states_come_back_to_their_owner() -> None:
    pm, restored = Manager(), {}
    for name in ("a", "b"):
        collect = _plugin("learner_checkpoint_collect", lambda arguments, name=name: {"is": name})
        restore = _plugin("learner_checkpoint_restore", lambda arguments, name=name: restored.update({name: arguments}))
        collect.learner_checkpoint_restore = restore.learner_checkpoint_restore
        pm.register(collect, name)
    pm.register(_plugin("learner_checkpoint_collect", lambda arguments: None), "nothing to say")
    states = manager.checkpoint_collect(pm)
    assert states == {"a": {"is": "a"}, "b": {"is": "b"}}
    assert manager.checkpoint_restore(pm, {**states, "gone": {}}, rank=2) == ["gone"]
    assert restored == {"a": {"state": {"is": "a"}, "rank": 2}, "b": {"state": {"is": "b"}, "rank": 2}}


def test_a_hook_may_take_some_of_its_arguments() -> None:
    class Plugin:
        @hookimpl
        def learner_update_end(self, rank: int, update: int) -> tuple[int, int]:
            return rank, update

    pm = Manager()
    pm.register(Plugin(), "p")
    assert notify(pm, "learner_update_end", **{**CALLS["learner_update_end"], "update": 5}) == {"p": (0, 5)}


class Misspelt:
    @hookimpl
    def learner_update_ends(self, update: int) -> None: ...


class WrongArgument:
    @hookimpl
    def learner_update_end(self, loss: float) -> None: ...


class Wrapper:
    @hookimpl(wrapper=True)
    def learner_update_end(self, update: int) -> Any:
        return (yield)


@pytest.mark.parametrize(
    ("plugin", "text"),
    [
        (Misspelt, "no hook 'learner_update_ends'. Did you mean 'learner_update_end'"),
        (WrongArgument, r"Its signature is learner_update_end\(update: .*results: "),
        (Wrapper, r"is a hook wrapper; implement it plainly: learner_update_end\("),
    ],
)
def test_a_plugin_with_a_wrong_hook_is_refused_and_leaves_no_trace(plugin: type, text: str) -> None:
    pm = Manager()
    with pytest.raises(PluginError, match=text) as caught:
        pm.register(plugin(), "p", distribution="toy-dist")
    assert (caught.value.plugin, caught.value.distribution) == ("p", "toy-dist")
    assert "plugin 'p' of toy-dist" in str(caught.value)
    assert not pm.get_plugins()
    pm.check_pending()


def test_a_name_is_taken_once() -> None:
    pm = Manager()
    pm.register(_plugin("learner_checkpoint_collect", print), "p", distribution="first-dist")
    with pytest.raises(PluginError, match="second-dist: already registered, by first-dist"):
        pm.register(_plugin("learner_checkpoint_collect", print), "p", distribution="second-dist")
