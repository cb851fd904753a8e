"""Plugins of other distributions: found without an import, loaded one by one, blamed by name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import learner_core as lc
from learner_core import BackendNotInstalledError, PluginError, PluginNotFoundError
from learner_core.plugins import claims, discovery, loading, manager, registry
from learner_core.plugins.hookspecs import hookimpl

Install = Callable[..., None]

TOY_BACKEND = """
from learner_core.plugins.hookspecs import hookimpl
PLUGIN_API = 1

class ToyBackend:
    name = "toy"

@hookimpl
def learner_core_backend():
    return ToyBackend
"""

TOY_ALGORITHM = """
from dataclasses import dataclass
from typing import ClassVar
import learner_core
from learner_core.plugins.hookspecs import hookimpl

@dataclass
class ToyConfig(learner_core.AlgorithmConfig):
    algorithm_name: ClassVar[str] = "toy"
    bonus: float = 0.5

@hookimpl
def learner_core_algorithm():
    return ToyConfig
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a distribution with entry points and one module on the path."""
    monkeypatch.setattr(claims, "INDEX", claims.Index())
    monkeypatch.setattr(registry, "_MANAGER", None)
    before = set(sys.modules)

    def put(distribution: str, points: dict[str, str], module: str = "", source: str = "") -> None:
        folder = tmp_path / distribution
        info = folder / f"{distribution.replace('-', '_')}-1.5.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\n")
        lines = []
        for key, value in points.items():
            group, name = key.split(":")
            lines.append(f"[learner_core.{group}]\n{name} = {value}\n")
        (info / "entry_points.txt").write_text("".join(lines))
        if module:
            path = folder / f"{module.replace('.', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.parent != folder:
                (path.parent / "__init__.py").write_text("")
            path.write_text(source)
        monkeypatch.syspath_prepend(str(folder))
        discovery.refresh()

    yield put
    for name in set(sys.modules) - before:
        if name.startswith("toy_"):
            del sys.modules[name]


def _info(name: str, group: str = "learner_core.backends") -> discovery.PluginInfo:
    return next(info for info in discovery.list_plugins(group) if info.name == name)


def test_our_own_backends_and_algorithms_come_through_the_public_doors() -> None:
    assert {"numpy", "tf", "torch"} <= set(lc.list_backends())
    assert {"appo", "bc", "impala", "ppo", "sac"} <= set(lc.list_algorithms())
    info = _info("torch")
    assert info == "torch" and info.distribution == "learner-core" and info.version == lc.__version__


def test_listing_imports_nothing(install: Install) -> None:
    install("toy-dist", {"backends:toy": "toy_backend"}, "toy_backend", "raise RuntimeError('imported')")
    info = _info("toy")
    assert (info.status, info.distribution, info.version, info.error) == ("available", "toy-dist", "1.5", None)
    assert "toy_backend" not in sys.modules


def test_listing_says_what_is_not_installed_and_imports_nothing(install: Install) -> None:
    install(
        "toy-dist",
        {"backends:toy": "toy_backend"},
        "toy_backend",
        'PLUGIN_API = 1\nREQUIRES = ("json", "no_such_framework.core")\nraise RuntimeError("imported")',
    )
    info = _info("toy")
    assert (info.status, info.error) == (
        "not installed",
        "The backend 'toy' needs no_such_framework, which is not installed: pip install no_such_framework.",
    )
    assert "toy_backend" not in sys.modules


@pytest.mark.parametrize("requires", ['("json",)', '"json"', "7", "[1, None]", "(name for name in ())", "1 // 0"])
def test_requirements_that_are_there_or_make_no_sense(install: Install, requires: str) -> None:
    install("toy-dist", {"backends:toy": "toy_backend"}, "toy_backend", f"REQUIRES = {requires}")
    assert _info("toy").status == "available"


def test_our_own_plugins_say_what_they_need() -> None:
    """Each framework that a plugin of ours imports, once it is used, is in what it says."""
    needs = {("backends", "torch"): ("torch",), ("backends", "tf"): ("tensorflow", "keras")}
    needs |= {("launchers", "ray"): ("ray",), ("collectives", "horovod"): ("horovod",)}
    needs |= {("collectives", "torch"): ("torch",)}
    for (group, name), modules in needs.items():
        (entry,) = [one for one in claims.entries_of(f"learner_core.{group}") if one.name == name]
        assert loading.declared_in(entry.value, "REQUIRES") == modules


def test_a_backend_of_another_distribution(install: Install) -> None:
    install("toy-dist", {"backends:toy": "toy_package.plugin"}, "toy_package.plugin", TOY_BACKEND)
    backend = discovery.load("learner_core.backends", "toy")
    assert backend.name == "toy"
    assert discovery.load("learner_core.backends", "toy") is backend
    assert _info("toy").status == "loaded"
    assert lc.AlgorithmConfig().framework("toy").framework_name == "toy"


def test_an_algorithm_of_another_distribution(install: Install) -> None:
    install("toy-dist", {"algorithms:toy": "toy_algorithm"}, "toy_algorithm", TOY_ALGORITHM)
    config = lc.get_config("toy").training(bonus=1, lr=0.5)
    assert (config.bonus, config.lr) == (1.0, 0.5)
    plain = config.to_dict()
    # A process that has imported nothing of it may read the config: the distribution is installed, so it is trusted.
    del sys.modules["toy_algorithm"]
    discovery.refresh()
    again = lc.AlgorithmConfig.from_dict(plain)
    assert type(again).__name__ == "ToyConfig" and again.bonus == 1.0


def test_an_object_or_a_class_is_a_plugin_too(install: Install) -> None:
    source = """
from learner_core.plugins.hookspecs import hookimpl

class Plugin:
    @hookimpl
    def learner_core_backend(self):
        return dict

plugin = Plugin()
"""
    points = {"backends:toy-object": "toy_objects:plugin", "backends:toy-class": "toy_objects:Plugin"}
    install("toy-dist", points, "toy_objects", source)
    assert discovery.load("learner_core.backends", "toy-object") is dict
    assert discovery.load("learner_core.backends", "toy-class") is dict


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("trch", r"There is no backend 'trch'\. Did you mean 'torch'\?"),
        ("tensorflow", "Did you mean 'tf'"),
        ("zzzz", "There is: numpy, tf, torch"),
    ],
)
def test_an_unknown_name_brings_the_nearest(install: Install, name: str, text: str) -> None:
    with pytest.raises(PluginNotFoundError, match=text):
        discovery.load("learner_core.backends", name)


def test_an_unknown_algorithm_and_an_unknown_group() -> None:
    with pytest.raises(LookupError, match="There is no algorithm 'pp0'"):
        lc.get_config("pp0")
    with pytest.raises(PluginError, match=r"no plugin group.*Did you mean 'learner_core\.backends'"):
        discovery.load("learner_core.backend", "torch")


def test_a_duplicate_is_refused_naming_both(install: Install) -> None:
    install("toy-one", {"backends:toy": "toy_one"}, "toy_one", TOY_BACKEND)
    install("toy-two", {"backends:toy": "toy_two", "backends:toy-good": "toy_two"}, "toy_two", TOY_BACKEND)
    with pytest.raises(PluginError, match=r"toy-one 1\.5 \(toy_one\) and toy-two 1\.5 \(toy_two\).*Uninstall"):
        discovery.load("learner_core.backends", "toy")
    infos = [info for info in lc.list_backends() if info == "toy"]
    assert [(info.distribution, info.status) for info in infos] == [("toy-one", "duplicate"), ("toy-two", "duplicate")]
    assert discovery.load("learner_core.backends", "toy-good").name == "toy"


def test_a_duplicate_of_a_built_in_is_refused_too(install: Install) -> None:
    install("toy-dist", {"backends:torch": "toy_backend"}, "toy_backend", TOY_BACKEND)
    with pytest.raises(PluginError, match=r"learner-core .* and toy-dist"):
        discovery.load("learner_core.backends", "torch")


@pytest.mark.parametrize("line", ["PLUGIN_API = 99", "PLUGIN_API: int = 99"])
def test_another_plugin_api_is_refused_before_the_import(install: Install, line: str) -> None:
    source = f"{line}\nraise RuntimeError('imported')\n"
    install("toy-dist", {"backends:toy": "toy_package.new"}, "toy_package.new", source)
    with pytest.raises(PluginError, match=r"plugin 'toy' of toy-dist 1\.5: .*PLUGIN_API 99.* has 1") as caught:
        discovery.load("learner_core.backends", "toy")
    assert (caught.value.plugin, caught.value.distribution) == ("toy", "toy-dist")
    assert not [name for name in sys.modules if name.startswith("toy_package")]


def test_a_computed_plugin_api_is_refused_after_the_import(install: Install) -> None:
    install("toy-dist", {"backends:toy": "toy_new"}, "toy_new", "PLUGIN_API = 90 + 9\n")
    with pytest.raises(PluginError, match="PLUGIN_API 99"):
        discovery.load("learner_core.backends", "toy")


HOOK = "from learner_core.plugins.hookspecs import hookimpl\n@hookimpl\n"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("1 / 0", "importing it raised ZeroDivisionError"),
        ("def (:", "importing it raised SyntaxError"),
        ("import toy_missing_inside", None),
        ("", r"has no function learner_core_backend\(\) marked with hookimpl"),
        (HOOK + "def learner_core_backend(): pass", r"learner_core_backend\(\) returned None"),
        (HOOK + "def learner_core_backend(): raise OSError('no card')", "raised OSError: no card"),
        (
            HOOK + "def learner_core_backnd(): pass",
            "no hook 'learner_core_backnd'. Did you mean 'learner_core_backend'",
        ),
        (HOOK + "def learner_core_backend(gpu): pass", r"Its signature is learner_core_backend\(\)"),
        (
            "from learner_core.plugins.hookspecs import hookimpl\n"
            "@hookimpl(wrapper=True)\ndef learner_core_backend(): return (yield)",
            "is a hook wrapper",
        ),
    ],
)
def test_a_broken_plugin_is_blamed_and_disturbs_no_other(install: Install, source: str, text: str | None) -> None:
    install("toy-bad", {"backends:toy-bad": "toy_bad"}, "toy_bad", source)
    install("toy-good", {"backends:toy": "toy_good"}, "toy_good", TOY_BACKEND)
    with pytest.raises(PluginError, match=text or "toy_missing_inside") as caught:
        discovery.load("learner_core.backends", "toy-bad")
    assert (caught.value.plugin, caught.value.distribution) == ("toy-bad", "toy-bad")
    assert text is None or "toy-bad" in str(caught.value)
    assert discovery.load("learner_core.backends", "toy").name == "toy"
    assert (_info("toy-bad").status, _info("toy").status) == ("broken" if text else "not installed", "loaded")
    assert str(caught.value) == _info("toy-bad").error


def test_an_algorithm_must_be_a_config(install: Install) -> None:
    install("toy-dist", {"algorithms:toy": "toy_a"}, "toy_a", HOOK + "def learner_core_algorithm(): return dict")
    with pytest.raises(PluginError, match="subclass of AlgorithmConfig"):
        lc.get_config("toy")


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("torch", r"learner-core\[torch\]"),
        ("tensorflow", r"learner-core\[tf-cpu\]"),
        ("toy_jax", "pip install toy_jax"),
    ],
)
def test_a_missing_framework_names_what_to_install(
    install: Install, monkeypatch: pytest.MonkeyPatch, module: str, command: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    install(
        "toy-dist", {"backends:toy": "toy_fw"}, "toy_fw", HOOK + f"def learner_core_backend():\n    import {module}"
    )
    with pytest.raises(BackendNotInstalledError, match=command) as caught:
        discovery.load("learner_core.backends", "toy")
    assert isinstance(caught.value, ImportError)
    assert _info("toy").status == "not installed"


def test_doctor_tries_everything(install: Install) -> None:
    install("toy-bad", {"algorithms:bad": "toy_bad"}, "toy_bad", "1 / 0")
    install("toy-good", {"algorithms:good": "toy_good"}, "toy_good", TOY_ALGORITHM)
    infos = discovery.list_plugins("learner_core.algorithms", try_loading=True)
    assert {info.name: info.status for info in infos if info.distribution.startswith("toy")} == {
        "bad": "broken",
        "good": "loaded",
    }


def test_registering_by_hand(install: Install) -> None:
    class Plugin:
        @hookimpl
        def learner_core_backend(self) -> type:
            return dict

    discovery.register("learner_core.backends", "mine", Plugin())
    discovery.refresh()
    assert discovery.load("learner_core.backends", "mine") is dict
    with pytest.raises(PluginError, match="taken"):
        discovery.register("learner_core.backends", "mine", Plugin())
    with pytest.raises(PluginError, match="told, not asked"):
        discovery.register("learner_core.plugins", "mine", Plugin())
        discovery.load("learner_core.plugins", "mine")


LISTENER = HOOK + "def learner_update_end(update):\n    CALLS.append(update)\nCALLS = []\n"


def test_installed_listeners_are_told_and_broken_ones_left_out(install: Install) -> None:
    install("toy-bad", {"plugins:bad": "toy_bad"}, "toy_bad", "1 / 0")
    install("toy-good", {"plugins:listener": "toy_listener"}, "toy_listener", LISTENER)
    with pytest.warns(manager.PluginQuarantineWarning, match="left out: plugin 'bad' of toy-bad"):
        pm = registry.get_manager()
    assert registry.get_manager() is pm
    manager.notify(pm, "learner_update_end", update=7, timesteps={}, results={}, rank=0)
    assert sys.modules["toy_listener"].CALLS == [7]
    assert pm.distributions["listener"] == "toy-good" and "bad" in pm.quarantined


def test_a_backend_that_listens_is_told_once_it_is_loaded(install: Install) -> None:
    source = TOY_BACKEND + LISTENER
    install("toy-dist", {"backends:toy": "toy_both", "plugins:toy": "toy_both"}, "toy_both", source)
    install("toy-two", {"backends:other": "toy_two"}, "toy_two", source)
    pm = registry.get_manager()
    discovery.load("learner_core.backends", "toy")
    discovery.load("learner_core.backends", "other")
    manager.notify(pm, "learner_update_end", update=1, timesteps={}, results={}, rank=0)
    assert sys.modules["toy_both"].CALLS == sys.modules["toy_two"].CALLS == [1]
    assert pm.has_plugin("backend:other")
