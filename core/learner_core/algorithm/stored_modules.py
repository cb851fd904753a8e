"""What a stored run says of its modules, and what of that is taken: specifications, who learns, settings.

Needs the tree that ``AgentModules.modules_state`` made, out of a file perhaps. Classes in it are looked up by
``learner_core.config.trust``. Refuses those that are not trusted, before anything is built or changed; takes no
function: who plays whom is said by the user, or stays as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ..config import references
from ..config.algorithm_settings import AlgorithmSettings
from ..config.trust import Trust
from ..config.values import same
from ..errors import StateError
from ..learning.rl_module import MultiRLModuleSpec, RLModuleSpec
from ..state.tree import Tree

__all__ = ["KEEP", "MODULE_SETTINGS", "Opening", "named_by", "read_modules", "settle_modules"]

#: Leave this as it is.
KEEP: Any = object()
#: The settings that a state has beside the learners' arrays, with several agents.
MODULE_SETTINGS: Final = ("policies", "policy_mapping_fn", "policies_to_train", "policy_settings")
#: Those that are data.
_DATA: Final = ("policies", "policies_to_train", "policy_settings")
_PATH: Final = "algorithm/modules"


@dataclass(frozen=True)
class Opening:
    """What the user said when a state is taken over.

    Args:
        trust: what names in it may stand for, besides the classes and functions of the run that takes it.
        policy_mapping_fn: who plays whom from then on; ``KEEP``: as it is there.
        override_spaces: go on in an environment of other spaces.
    """

    trust: Trust = field(default_factory=Trust)
    policy_mapping_fn: Any = KEEP
    override_spaces: bool = False


def settle_modules(state: object, trust: Trust) -> None:
    """Refuse a checkpoint whose state names what is not trusted, before anything of the checkpoint is built.

    Args:
        state: of the checkpoint.
        trust: what names may stand for.

    Raises:
        ConfigError: a module of it is of a class that is not trusted.
        StateError: the modules are not described as they are to be.
    """
    own = state.get("algorithm") if isinstance(state, Mapping) else None
    modules = own.get("modules") if isinstance(own, Mapping) else None
    if modules is not None:
        _check_outline(modules)
        for name in _DATA:
            references.settle(modules[name], name=name, trust=trust, names_only=True)


def read_modules(
    state: Tree, *, mine: Tree, config: AlgorithmSettings, specs: Mapping[str, RLModuleSpec], opening: Opening
) -> dict[str, Any]:
    """The settings in a state, as values; what is the same here is what is here.

    Args:
        state: what ``modules_state`` returned where it was saved.
        mine: what it returns here.
        config: the configuration here.
        specs: {module_id: specification} of the modules here.
        opening: what the user said.

    Returns:
        {name: value} of ``MODULE_SETTINGS``; ``policies`` is {module_id: RLModuleSpec}.

    Raises:
        ConfigError: it names what is not trusted.
        StateError: the modules are not described as they are to be.
    """
    _check_outline(state)
    trust = opening.trust.knowing(named_by({"policies": specs, "rl_module_spec": config.rl_module_spec}))
    ours, theirs = mine["policies"], state["policies"]
    known = {mid: spec for mid, spec in specs.items() if mid in theirs and same(ours.get(mid), theirs[mid])}
    stored = {name: state[name] for name in _DATA if not same(state[name], mine[name])}
    stored["policies"] = {mid: plain for mid, plain in theirs.items() if mid not in known}
    for name, plain in stored.items():
        references.settle(plain, name=name, trust=trust)
    saved: dict[str, Any] = {name: getattr(config, name) for name in _DATA}
    saved.update({name: references.from_plain(plain, name=name, trust=trust) for name, plain in stored.items()})
    if not isinstance(saved["policies"], Mapping):  # a mapping that says it stands for something else
        raise StateError("expected a mapping of specifications", path=f"{_PATH}/policies")
    for module_id, spec in saved["policies"].items():
        if not isinstance(spec, RLModuleSpec):
            raise StateError("expected a module's specification", path=f"{_PATH}/policies/{module_id}")
    saved["policies"] = {mid: known[mid] if mid in known else saved["policies"][mid] for mid in theirs}
    mapping = opening.policy_mapping_fn
    if mapping is KEEP:
        mapping = _mapping_in(state["policy_mapping_fn"], mine["policy_mapping_fn"], config.policy_mapping_fn)
    return {**saved, "policy_mapping_fn": mapping}


def named_by(settings: Mapping[str, object]) -> list[type]:
    """The classes and functions of networks in settings of the user's own: a state may name them, they are known."""
    specs = [*_specs_in(settings.get("rl_module_spec")), *_specs_in(settings.get("policies"))]
    return [spec.module_class for spec in specs]


def _specs_in(value: object) -> Iterator[RLModuleSpec]:
    if isinstance(value, RLModuleSpec):
        yield value
    elif isinstance(value, MultiRLModuleSpec):
        yield from value.rl_module_specs.values()
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _specs_in(item)


def _mapping_in(
    stored: Tree | None, mine: Tree | None, function: Callable[..., str] | None
) -> Callable[..., str] | None:
    """Who plays whom: by data, where the state says that nobody's function does; else the function that is here."""
    if stored is None:
        return None
    if "__reference__" in stored and not same(stored, mine):
        here = "none" if mine is None else next(iter(mine.values()))
        warnings.warn(
            f"who plays whom stays as it is here ({here}): the state is of a run with {stored['__reference__']!r}, a "
            "function, and functions are not taken from files; give it by restore(path, policy_mapping_fn=...)",
            UserWarning,
            stacklevel=2,
        )
    return function


def _check_outline(modules: object) -> None:
    """Refuse what ``modules_state`` cannot have returned."""
    if not isinstance(modules, Mapping):
        raise StateError(f"expected a mapping, got {type(modules).__name__}", path=_PATH)
    for name in MODULE_SETTINGS:
        if name not in modules:
            raise StateError("missing", path=f"{_PATH}/{name}")
    if not isinstance(modules["policies"], Mapping) or not modules["policies"]:
        raise StateError("expected a mapping of specifications", path=f"{_PATH}/policies")
    if not isinstance(modules["policy_mapping_fn"], Mapping | None):
        raise StateError("expected the name of a function, or None", path=f"{_PATH}/policy_mapping_fn")
