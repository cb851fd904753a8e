"""Checkpoints that would run code if a file could choose it: made on the fly, each with a canary to tell.

A canary is code of the attacker's that writes a marker when it runs: modules in the working directory that nobody
imported (``canary``) or that are imported and not trusted (``canary_here``), and functions of the standard library and
of frameworks that execute what they are given. ``HOSTILE`` lists what is changed in a good checkpoint; ``open_door``
makes reading naive for a moment, so that a test can see the canaries live.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import pickle
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from learner_core.algorithm import stored_modules
from learner_core.config import references, trust

__all__ = ["HOSTILE", "Hostile", "Lair", "hostile_names", "make_lair", "open_door"]

Tree = dict[str, Any]

_CANARY = '''
"""Runs nothing good: tells when it is imported, and when one of its things is called."""
import gymnasium
from learner_core import AlgorithmConfig, Learner, RLModule

def told(what):
    with open({marker!r}, "a") as file:
        file.write(what + "\\n")

{on_import}

def touch(note="", **more):
    told("touch")
    raise RuntimeError("touch")

def make_env(env_config):
    told("make_env")
    return gymnasium.make("CartPole-v1")

def parallel_env(**settings):
    told("parallel_env")
    raise RuntimeError("parallel_env")

def mapping(agent_id, episode=0):
    told("mapping")
    return "m"

class Module(RLModule):
    def setup(self):
        told("Module")

    def init(self, rng):
        return {{}}

class Outer:
    class Inner(RLModule):
        def setup(self):
            told("Inner")

        def init(self, rng):
            return {{}}

class Env(gymnasium.Env):
    def __init__(self, env_config=None):
        told("Env")
        raise RuntimeError("Env")

class MyLearner(Learner):
    def __init__(self, config=None, env=None):
        told("MyLearner")
        raise RuntimeError("MyLearner")

class Data:
    def __init__(self, **fields):
        told("Data")

    @classmethod
    def from_dict(cls, data):
        told("from_dict")

from dataclasses import dataclass
from typing import ClassVar

@dataclass
class Fields:
    note: str = ""
    def __post_init__(self):
        told("Fields")

@dataclass(kw_only=True, repr=False, eq=False)
class Config(AlgorithmConfig):
    algorithm_name: ClassVar[str] = "evil"
    def __post_init__(self):
        told("Config")

def __getattr__(name):
    if name.startswith("_"):
        raise AttributeError(name)
    told("getattr " + name)
    return touch

gymnasium.register("Evil-v0", entry_point=Env) if "Evil-v0" not in gymnasium.registry else None
'''


@dataclass(frozen=True)
class Lair:
    """Where the attacker's files lie; it is the working directory, and on Python's path.

    Attributes:
        folder: the folder.
        marker: the file that canaries write.
        code: a statement that writes it.
        pickle: a pickle that writes it when it is loaded.
    """

    folder: Path
    marker: Path
    code: str
    pickle: Path

    def sang(self) -> str:
        """What canaries have told since the last time; ``""``: nothing ran."""
        told = self.marker.read_text() or "touched" if self.marker.exists() else ""
        self.marker.unlink(missing_ok=True)
        for name in ("canary", "canary_hub", "hubconf", "this"):
            if sys.modules.pop(name, None) is not None:
                told += f"imported {name}\n"
        return told


class _Payload:
    def __init__(self, code: str) -> None:
        self._code = code

    def __reduce__(self) -> Any:
        return exec, (self._code,)


def make_lair(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Lair:
    """Write the attacker's modules, go there, and import the one that the process happens to have imported."""
    marker = folder / "marker"
    code = f"with open({str(marker)!r}, 'a') as file: file.write('code ran\\n')"
    for name, on_import in (("canary", 'told("import")'), ("canary_here", "")):
        (folder / f"{name}.py").write_text(_CANARY.format(marker=str(marker), on_import=on_import))
    (folder / "hubconf.py").write_text(f"{code}\ndef evil(**settings):\n    pass\n")
    (folder / "evil.pkl").write_bytes(pickle.dumps(_Payload(code)))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    sys.modules.pop("canary_here", None)
    importlib.import_module("canary_here")
    lair = Lair(folder, marker, code, folder / "evil.pkl")
    assert not lair.sang()
    return lair


@dataclass(frozen=True)
class Hostile:
    """One way in.

    Attributes:
        change: makes a good checkpoint's tree hostile.
        several: the good checkpoint is one of several agents.
        framework: "torch" or "tf": the framework whose own code is abused; "": none.
    """

    change: Callable[[Tree, Lair], None]
    several: bool = False
    framework: str = ""

    @property
    def kind(self) -> str:
        """Which good checkpoint it is made of."""
        return "several" if self.several else "one"


def _reference(name: str) -> Tree:
    return {"__reference__": name}


def _spec(module_class: Any, model: Tree | None = None) -> Tree:
    fields = {
        "module_class": module_class,
        "observation_space": None,
        "action_space": None,
        "model": model or {},
        "masked": False,
    }
    return {"__object__": "learner_core.learning.rl_module:RLModuleSpec", "fields": fields}


def _module(name: str, model: Tree) -> Callable[[Tree, Lair], None]:
    """``rl_module_spec.module_class`` is a name, called with keywords out of ``model``."""

    def change(tree: Tree, lair: Lair) -> None:
        given = {key: value(lair) if callable(value) else value for key, value in model.items()}
        tree["config"]["settings"]["rl_module_spec"] = _spec(_reference(name), given)

    return change


def _policy(name: str, model: Tree) -> Callable[[Tree, Lair], None]:
    def change(tree: Tree, lair: Lair) -> None:
        given = {key: value(lair) if callable(value) else value for key, value in model.items()}
        tree["config"]["settings"]["policies"]["m"] = _spec(_reference(name), given)

    return change


def _state(name: str, model: Tree) -> Callable[[Tree, Lair], None]:
    """A module that the state adds to those of the configuration."""

    def change(tree: Tree, lair: Lair) -> None:
        given = {key: value(lair) if callable(value) else value for key, value in model.items()}
        modules = tree["state"]["algorithm"]["modules"]
        added = _spec(_reference(name), given)
        added["fields"]["observation_space"] = modules["policies"]["m"]["fields"]["observation_space"]
        added["fields"]["action_space"] = modules["policies"]["m"]["fields"]["action_space"]
        modules["policies"]["a"] = added  # the agent's name

    return change


def _setting(setting: str, value: Any, **more: Any) -> Callable[[Tree, Lair], None]:
    def change(tree: Tree, lair: Lair) -> None:
        for name, given in {setting: value, **more}.items():
            tree["config"]["settings"][name] = given(lair) if callable(given) else given

    return change


def _own(name: str, value: Any) -> Callable[[Tree, Lair], None]:
    """An entry of the state's modules."""

    def change(tree: Tree, lair: Lair) -> None:
        tree["state"]["algorithm"]["modules"][name] = value

    return change


def _class(name: str, algorithm: str) -> Callable[[Tree, Lair], None]:
    def change(tree: Tree, lair: Lair) -> None:
        tree["config"].update({"class": name, "algorithm": algorithm})

    return change


def _code(lair: Lair) -> str:
    return lair.code


def _touch(lair: Lair) -> str:
    return f"touch {lair.marker}"


def _logging(lair: Lair) -> Tree:
    return {"version": 1, "filters": {"evil": {"()": "canary.touch"}}}


def _pickle(lair: Lair) -> str:
    return str(lair.pickle)


def _folder(lair: Lair) -> str:
    return str(lair.folder)


def _script(lair: Lair) -> str:
    return str(lair.folder / "hubconf.py")


def _words(lair: Lair) -> Tree:
    """What ``subprocess`` takes for a command: the keys."""
    return {"touch": 0, str(lair.marker): 0}


#: Function or class, and the keywords that make it act: in the place of a network's class.
_CALLED: dict[str, tuple[str, Tree]] = {
    "a function that nobody imported": ("canary:touch", {"note": "x"}),
    "a network that nobody imported": ("canary:Module", {}),
    "a function that is imported": ("canary_here:touch", {"note": "x"}),
    "a network that is imported": ("canary_here:Module", {}),
    "a network within a class": ("canary_here:Outer.Inner", {}),
    "a function that a module makes up": ("canary_here:anything", {"note": "x"}),
    "a function reached through another": ("canary_here:gymnasium.make", {"id": "canary:Evil-v0"}),
    "os.system": ("os:system", {"command": _touch}),
    "posix.system": ("posix:system", {"command": _touch}),
    "timeit": ("timeit:timeit", {"stmt": _code, "number": 1}),
    "cProfile": ("cProfile:run", {"statement": _code}),
    "runpy, a path": ("runpy:run_path", {"path_name": _script}),
    "runpy, a module": ("runpy:run_module", {"mod_name": "canary"}),
    "importlib": ("importlib:import_module", {"name": "canary"}),
    "pydoc": ("pydoc:locate", {"path": "canary.touch"}),
    "pkgutil": ("pkgutil:resolve_name", {"name": "canary:touch"}),
    "logging": ("logging.config:dictConfig", {"config": _logging}),
    "numpy.load": ("numpy:load", {"file": _pickle, "allow_pickle": True}),
    "gymnasium.make": ("gymnasium.envs.registration:make", {"id": "canary:Evil-v0"}),
    "gymnasium's loader": ("gymnasium.envs.registration:load_env_creator", {"name": "canary:touch"}),
    "gymnasium's search": ("gymnasium.envs.registration:_find_spec", {"env_id": "canary:Evil-v0"}),
    "our own loader of classes": ("learner_core.config.algorithm_settings:_load_class", {"reference": "canary:touch"}),
    "our own loader of bases": (
        "learner_core.config.trust:_module",
        {"name": "canary", "may_import": True, "setting": "x"},
    ),
    "our own lazy exports": ("learner_core.exporting.source:require", {"package": "canary", "extra": "x"}),
}
_TORCH: dict[str, tuple[str, Tree]] = {
    "torch.fx": ("torch.fx.graph_module:_exec_with_source", {"src": _code, "globals": {}}),
    "torch.load": ("torch.serialization:load", {"f": _pickle, "weights_only": False}),
    "torch.load, from outside": ("torch:load", {"f": _pickle, "weights_only": False}),
    "torch.hub": ("torch.hub:load", {"repo_or_dir": _folder, "model": "evil", "source": "local"}),
}
_TENSORFLOW: dict[str, tuple[str, Tree]] = {
    "tensorflow": (
        "tensorflow.python.autograph.pyct.loader:load_source",
        {"source": _code, "delete_on_exit": False},
    ),
}
_OBJECTS: dict[str, Tree] = {
    "an object that nobody imported": {"__object__": "canary:Data", "data": {}},
    "a dataclass that is imported": {"__object__": "canary_here:Fields", "fields": {"note": "x"}},
    "an object that is imported": {"__object__": "canary_here:Data", "data": {}},
}
_STRINGS = {
    "an environment of a module": "canary:Evil-v0",
    "an environment of the standard library": "this:x-v0",
    "agents of a package": "pettingzoo:canary:evil-v0",
    "agents of a module": "pettingzoo:canary.evil",
}
#: Those of ``_CALLED`` that are tried in more places than one.
_SOME = (
    "a function that nobody imported",
    "a network that nobody imported",
    "a function that is imported",
    "a network that is imported",
    "a network within a class",
    "a function that a module makes up",
    "os.system",
    "importlib",
    "numpy.load",
    "our own loader of classes",
)

HOSTILE: dict[str, Hostile] = {
    **{f"network: {name}": Hostile(_module(ref, model)) for name, (ref, model) in _CALLED.items()},
    **{
        f"network: {name}": Hostile(_module(ref, model), framework=framework)
        for framework, group in (("torch", _TORCH), ("tf", _TENSORFLOW))
        for name, (ref, model) in group.items()
    },
    **{f"policy: {n}": Hostile(_policy(*_CALLED[n]), several=True) for n in _SOME},
    **{f"state: {n}": Hostile(_state(*_CALLED[n]), several=True) for n in _SOME},
    "state: torch.fx": Hostile(_state(*_TORCH["torch.fx"]), True, "torch"),
    "state: tensorflow": Hostile(_state(*_TENSORFLOW["tensorflow"]), True, "tf"),
    **{
        f"learner: {name}": Hostile(_setting("learner_class", _reference(name)))
        for name in ("canary:MyLearner", "canary_here:MyLearner")
    },
    **{
        f"env: {name}": Hostile(_setting("env", _reference(name), env_config={}))
        for name in ("canary:make_env", "canary:Env", "canary_here:make_env", "canary_here:Env", "canary_here:any")
    },
    "env: subprocess": Hostile(_setting("env", _reference("subprocess:check_call"), env_config=_words)),
    "env: os.execvp's way": Hostile(_setting("env", _reference("subprocess:run"), env_config=_words)),
    **{f"env: {name}": Hostile(_setting("env", text, env_config={})) for name, text in _STRINGS.items()},
    **{
        f"{setting}: {name}": Hostile(_setting(setting, {"x": value} if wrapped else value))
        for name, value in _OBJECTS.items()
        for setting, wrapped in (("env_config", True), ("model", True), ("rl_module_spec", False))
    },
    **{f"policies: {name}": Hostile(_setting("policies", {"m": v}), several=True) for name, v in _OBJECTS.items()},
    **{
        f"state, whole: {name}": Hostile(_own("policies", {"m": value}), several=True)
        for name, value in _OBJECTS.items()
    },
    "state, settings: an object": Hostile(
        _own("policy_settings", {"m": {"lr": _OBJECTS["an object that is imported"]}}), several=True
    ),
    **{
        f"mapping: {name}": Hostile(_setting("policy_mapping_fn", _reference(name)), several=True)
        for name in ("canary:mapping", "canary_here:mapping", "canary_here:other")
    },
    "state, mapping: canary:mapping": Hostile(_own("policy_mapping_fn", _reference("canary:mapping")), True),
    "state, mapping: canary_here:mapping": Hostile(_own("policy_mapping_fn", _reference("canary_here:mapping")), True),
    **{
        f"class: {name}": Hostile(_class(name, algorithm))
        for name, algorithm in (("canary:Config", "evil"), ("canary_here:Config", "evil"), ("canary:Config", "ppo"))
    },
    "class: of a registered algorithm": Hostile(_class("canary_here:Config", "ppo")),
}


def hostile_names(framework: str) -> list[str]:
    """Those that a process with this framework (or with none, ``""``) can be attacked by."""
    return [name for name, one in HOSTILE.items() if one.framework in ("", framework)]


@contextlib.contextmanager
def open_door() -> Iterator[None]:
    """Read files as a careless reader would: import what they name, take whatever is there, call it."""

    def find(self: Any, reference: Any, *, kind: Any, name: str) -> Any:
        module, _, qualname = reference.partition(":")
        found: Any = importlib.import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
        return found

    def make(kind: str, fields: Any, name: str) -> Any:
        found = find(None, kind, kind=None, name=name)
        return found(**fields) if dataclasses.is_dataclass(found) else found.from_dict(fields)

    def mapping(stored: Any, mine: Any, function: Any) -> Any:
        return None if stored is None else find(None, stored["__reference__"], kind=None, name="")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_modules, "_mapping_in", mapping)
        patch.setattr(trust.Trust, "find", find)
        patch.setattr(trust.Trust, "settle", lambda self, reference, **more: None)
        patch.setattr(trust.Trust, "settle_environment", lambda self, env, **more: None)
        patch.setattr(references, "_spec", make)
        yield
