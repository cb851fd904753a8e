"""Parameters that several modules have in common: one set of weights, one optimizer, gradients of all their losses.

Needs specifications with ``shares`` and ``shared_by``. Refuses sets that are not the same in every module that shares
them. In a state they stand once, under the id of the module that holds them; whoever acts is given them again.
docs/decisions/modules-and-critics.md says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from ..errors import ConfigError
from .parameters import match_names
from .rl_module import RLModuleSpec

__all__ = ["completed", "take_shared"]

_Array = TypeVar("_Array")


def take_shared(
    specs: Mapping[str, RLModuleSpec], values: dict[str, dict[str, np.ndarray]]
) -> dict[str, dict[str, str]]:
    """Move shared parameters to the modules that hold them.

    Args:
        specs: module id -> specification.
        values: module id -> name -> initial value; changed in place.

    Returns:
        module id -> name of a parameter that it borrows -> module that holds it.

    Raises:
        ConfigError: a pattern matches nothing, the modules have other names or shapes, or a parameter would be in two
            sets.
    """
    borrowed: dict[str, dict[str, str]] = {mid: {} for mid in specs}
    for holder, spec in specs.items():
        if not spec.shares:
            continue
        first = spec.shared_by[0]
        held: dict[str, np.ndarray] = {}
        for sharer in spec.shared_by:
            where = f"module {holder!r}: shares={list(spec.shares)!r} of {sharer!r}"
            known = [*values[sharer], *borrowed[sharer]]
            names = match_names(list(spec.shares), known, what=where)
            twice = [name for name in names if name in borrowed[sharer]]
            if twice:
                raise ConfigError(f"{where}: {twice[0]!r} is held by {borrowed[sharer][twice[0]]!r} already")
            own = {name: values[sharer].pop(name) for name in names}
            if sharer == first:
                held = own
            for name in {**held, **own}:
                ours, theirs = (np.shape(of[name]) if name in of else None for of in (held, own))
                if ours != theirs:
                    raise ConfigError(
                        f"{where}: parameter {name!r} has shape {theirs} there and {ours} in {first!r}: modules share "
                        "parameters of the same names and shapes"
                    )
            borrowed[sharer].update(dict.fromkeys(names, holder))
        values[holder].update(held)
    return borrowed


def completed(
    specs: Mapping[str, RLModuleSpec | None], weights: Mapping[str, Mapping[str, _Array]]
) -> dict[str, dict[str, _Array]]:
    """Weights {module id: {name: array}} in which every module has what it shares as well, to act or be exported."""
    full = {mid: dict(arrays) for mid, arrays in weights.items()}
    for holder, spec in specs.items():
        if spec is not None and spec.shares and holder in weights:
            for sharer in spec.shared_by:
                if sharer in full:
                    full[sharer].update(weights[holder])
    return full
