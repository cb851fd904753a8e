"""Whom a file's names are trusted to: the one place where the text of a file becomes a class.

Needs names, and the modules that the user trusts. A name is a class of the right base, defined in ``__main__``, in the
package of an installed plugin, or in a module that the user named; where it is looked up is settled before anything is
imported, and what it is before anything is called. Refuses functions, everything else of other modules, and whatever
only can be reached there: being imported already is not enough, because frameworks' own classes act on keywords.
docs/decisions/trust.md says why.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from learner_core.errors import ConfigError
from learner_core.plugins import discovery

from .agents import PETTINGZOO

__all__ = ["Kind", "Trust", "name_of"]

Kind = Literal["config", "environment", "learner", "module"]

#: Kind -> where its bases are. A framework that is not imported has no subclasses here, so nothing is imported to look.
_BASES: Final[dict[Kind, tuple[str, ...]]] = {
    "config": ("learner_core.config.algorithm_settings:AlgorithmSettings",),
    "environment": (
        "gymnasium:Env",
        "gymnasium.vector:VectorEnv",
        "pettingzoo.utils.env:ParallelEnv",
        "pettingzoo.utils.env:AECEnv",
    ),
    "learner": ("learner_core.learning.learner:Learner",),
    "module": ("learner_core.learning.rl_module:RLModule", "torch.nn:Module", "keras:Model"),
}
_WORDS: Final[dict[Kind, str]] = {
    "config": "a subclass of AlgorithmConfig",
    "environment": "a class of gymnasium.Env or of a PettingZoo environment",
    "learner": "a subclass of Learner",
    "module": "a class of RLModule, torch.nn.Module or keras.Model",
}
#: Packages that define bases: their own classes act on keywords, so nobody can trust them as a whole.
_FRAMEWORKS: Final = {base.partition(".")[0].partition(":")[0] for bases in _BASES.values() for base in bases} - {
    "learner_core"
}
#: Environments of Gymnasium's registry that make another one by the name in ``env_config``, importing what it says.
_INDIRECT: Final = ("GymV21Environment", "GymV26Environment")
#: What every class has, past any metaclass.
_MRO: Final[Any] = type.__dict__["__mro__"]
_QUALNAME: Final[Any] = type.__dict__["__qualname__"]
#: Characters of a name; Python's own are far shorter.
_MAX_NAME = 500


@dataclass(frozen=True)
class Trust:
    """What names in a file may stand for.

    Args:
        modules: Modules that the user named; what lies below a package belongs to it.
        given: {"module:qualname": class or function} of the user's own arguments: what a file names so is theirs.
        script: Name of the module that ``__main__`` was where the file was saved, for advice alone.
    """

    modules: tuple[str, ...] = ()
    given: Mapping[str, Any] = field(default_factory=dict)
    script: str = ""

    @classmethod
    def of(cls, import_modules: Iterable[str]) -> Trust:
        """The trust that ``import_modules=[...]`` and ``--trust MODULE`` express.

        Raises:
            ConfigError: No list of module names, or one of the standard library's or of a framework's.
        """
        if not isinstance(import_modules, (list, tuple, set, frozenset)):
            listed = f'["{import_modules}"]' if isinstance(import_modules, str) else '["mine"]'
            raise ConfigError(
                f"import_modules={import_modules!r}: expected a list of the modules that you trust, "
                f"import_modules={listed} for instance; a file would choose for itself otherwise."
            )
        for module in import_modules:
            if not _is_dotted(module):
                raise ConfigError(f"import_modules: {module!r} is no module's name; expected one like 'mine.networks'.")
            if (root := module.partition(".")[0]) in sys.stdlib_module_names or root in _FRAMEWORKS:
                raise ConfigError(
                    f"import_modules: {module!r} is of {root}, whose own classes act on what they are given; name the "
                    "module that defines your class."
                )
        return cls(tuple(dict.fromkeys(import_modules)))

    def knowing(self, things: Iterable[object]) -> Trust:
        """As this one, with classes and functions of the user's own arguments, by their names."""
        named = {name: thing for thing in things if thing is not None and (name := name_of(thing)) is not None}
        return replace(self, given={**self.given, **named})

    def allows(self, module: str) -> bool:
        """Whether names of a module are looked up; nothing is imported to find out."""
        if module == "__main__" or any(module == one or module.startswith(f"{one}.") for one in self.modules):
            return True
        return discovery.is_of_plugin(module)

    def settle(self, reference: object, *, kind: Kind | None, name: str) -> None:
        """Refuse a name that :meth:`find` would refuse; nothing is imported, so a new module's classes are not seen.

        Args:
            reference: ``"module:qualname"``, from a file.
            kind: What it is to be; None: any of the kinds.
            name: The setting, for errors.

        Raises:
            ConfigError: It is malformed, in a module that is not trusted, or seen not to be such a class.
        """
        self._find(reference, kind=kind, name=name, may_import=False)

    def find(self, reference: object, *, kind: Kind | None, name: str) -> Any:
        """The class of a name; arguments and errors as :meth:`settle`, and its module is imported.

        Raises:
            ConfigError: As :meth:`settle`, or there is no such class.
        """
        return self._find(reference, kind=kind, name=name, may_import=True)

    def settle_environment(self, env: str, *, name: str = "env") -> None:
        """Refuse the name of an environment that would import a module which is not trusted.

        Args:
            env: From a file: a name of Gymnasium's or PettingZoo's registry, or one with a module before it.
            name: The setting, for errors.

        Raises:
            ConfigError: Its module is not trusted.
        """
        if env.rpartition(":")[2].startswith(_INDIRECT):
            raise ConfigError(
                f"{name}: {env!r} makes another environment by a name in env_config, and a file chooses no code. Give "
                f"the environment yourself: {name}={env!r}."
            )
        module = _module_of_environment(env)
        if not module or (_is_dotted(module) and self.allows(module)):
            return
        raise ConfigError(
            f"{name}: the file names {env!r}, which imports {module!r}, and a file chooses no code. {_advice(module)} "
            f"Or give the environment yourself: {name}={env!r}."
        )

    def _find(self, reference: object, *, kind: Kind | None, name: str, may_import: bool) -> Any:
        if isinstance(reference, str) and reference in self.given:
            return self.given[reference]
        module_name, qualname = _split(reference, name)
        if not self.allows(module_name):
            advice = "" if _is_known_to_be_no_class(module_name, qualname) else f"{_advice(module_name)} Or "
            raise ConfigError(
                f"{name}: the file names {reference!r}, and a file chooses no code. {_sentence(advice + _again(name))}"
            )
        found: Any = None
        # A class of a script is in ``__main__``; in another program, it may be in what the user says the script was.
        for one in (module_name, *(self.modules if module_name == "__main__" else ())):
            module = _module(one, may_import=may_import, setting=name)
            if module is None:
                return None  # not imported yet: whoever settles may not look further
            found = _defined_in(module, qualname)
            if isinstance(found, type):
                break
        if not isinstance(found, type):
            raise ConfigError(
                f"{name}: the file names {reference!r}. {self._what_is_there(str(reference), found, name)}"
            )
        if not _is_of(found, kind):
            words = " or ".join(_WORDS.values()) if kind is None else _WORDS[kind]
            raise ConfigError(f"{name}: the file names {reference!r}, which is not {words}.")
        return found

    def _what_is_there(self, reference: str, found: Any, name: str) -> str:
        if found is not None:
            return (
                "It is no class that is defined there, and functions and all else come from your own arguments alone: "
                f"{_again(name)}"
            )
        if reference.startswith("__main__:"):
            script = self.script or "mine"
            return (
                f"The script that saved it defined that, and this program does not. {_advice(script)} Or {_again(name)}"
            )
        return f"There is no such class: {_again(name)}"


def name_of(value: object) -> str | None:
    """``"module:qualname"`` of a class or function that can be found by it; None of all else."""
    module, qualname = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(qualname, str) or "<" in qualname:
        return None
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return f"{module}:{qualname}" if found is value else None


def _split(reference: object, name: str) -> tuple[str, str]:
    module, sign, qualname = reference.partition(":") if isinstance(reference, str) else ("", "", "")
    if not sign or not _is_dotted(module) or not _is_dotted(qualname):
        text = repr(reference)[:100]
        raise ConfigError(f"{name}: the stored reference {text} is malformed: expected 'module:Class'.")
    return module, qualname


def _is_dotted(text: object) -> bool:
    return isinstance(text, str) and len(text) <= _MAX_NAME and all(part.isidentifier() for part in text.split("."))


def _module_of_environment(env: str) -> str:
    """The module that making an environment of this name would import by its name; ``""``: none."""
    if not env.startswith(PETTINGZOO):
        return env.rpartition(":")[0]
    package, _, name = env.removeprefix(PETTINGZOO).rpartition(":")
    return package or (name if "." in name else "")


def _module(name: str, *, may_import: bool, setting: str) -> types.ModuleType | None:
    """A module that is trusted; None where it is not imported and may not be yet."""
    if name not in sys.modules and not may_import:
        return None
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        text = f"{setting}: {name!r} cannot be imported: {type(error).__name__}: {error}."
        raise ConfigError(f"{text}{_where_it_lies(name, error)}") from error
    if not isinstance(module, types.ModuleType):
        raise ConfigError(f"{setting}: {name!r} is no module here but {type(module).__name__}.")
    return module


def _where_it_lies(name: str, error: BaseException) -> str:
    """For a module beside the user, whom Python's path does not name: how to add that folder."""
    root = name.partition(".")[0]
    lies_here = Path(f"{root}.py").is_file() or Path(root).is_dir()
    if isinstance(error, ModuleNotFoundError) and error.name == root and lies_here:
        return " It lies in this folder, where Python does not look: start the command with PYTHONPATH=. before it."
    return ""


def _defined_in(module: types.ModuleType, qualname: str) -> Any:
    """The class that a module defines under a name; None where there is nothing, ``Ellipsis`` where it is all else.

    Namespaces are read as they lie: no ``__getattr__``, no descriptor, no metaclass is asked. What was defined
    elsewhere and can be reached here is not a class of this module.
    """
    found: Any = None
    namespace: Mapping[str, Any] = vars(module)
    for part in qualname.split("."):
        if part not in namespace:
            return None
        found = namespace[part]
        if not isinstance(found, type):
            return ...
        namespace = vars(found)
    own = (namespace.get("__module__"), _QUALNAME.__get__(found))
    return found if own == (module.__name__, qualname) else ...


def _is_known_to_be_no_class(module: str, qualname: str) -> bool:
    """Whether a name is seen to be a function or the like, which no trust makes a class; for advice alone."""
    loaded = sys.modules.get(module)
    return type(loaded) is types.ModuleType and _defined_in(loaded, qualname) is ...


def _is_of(found: type, kind: Kind | None) -> bool:
    """Whether a class has one of the kind's bases, by its method resolution order alone."""
    bases = [base for one, names in _BASES.items() if kind in (None, one) for base in map(_base, names)]
    return any(one is base for one in _MRO.__get__(found) for base in bases)


def _base(name: str) -> Any:
    """A base class; ``Ellipsis``, which nothing inherits from, where its framework is not imported."""
    module, _, qualname = name.partition(":")
    loaded = sys.modules.get(module)
    return vars(loaded).get(qualname, ...) if isinstance(loaded, types.ModuleType) else ...


def _again(name: str) -> str:
    if name == "class":
        return "read it by that class's own from_dict()."
    return f"give the value yourself: {name}=..."


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _advice(module: str) -> str:
    """How to say that a module is trusted, where that can be said."""
    root = module.partition(".")[0]
    if not _is_dotted(module) or root in sys.stdlib_module_names or root in _FRAMEWORKS:
        return f"Nothing of {root!r} itself is taken from a file, whomever you trust."
    return f'If you trust it, name its module: import_modules=["{module}"] (on the command line: --trust {module}).'
