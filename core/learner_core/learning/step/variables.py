"""``learner.variables``: arrays inside a step, plain floats on the host."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np

from ...errors import ConfigError, did_you_mean
from ...xp import Array
from .context import StepContext

__all__ = ["ModuleVariables", "Variables"]


class Variables(Mapping[str, "ModuleVariables"]):
    """module id -> its variables.

    Args:
        host: module id -> name -> float, of the variables that are not trained.
        bounds: module id -> name -> least and most value that may be assigned.
        context: the step being traced, or ``None`` on the host.
        trainable: ``trainable(module_id, name)`` reads a trained variable on the host, ``None`` if there is none.
    """

    def __init__(
        self,
        host: dict[str, dict[str, float]],
        bounds: Mapping[str, Mapping[str, tuple[float, float]]],
        context: StepContext | None,
        trainable: Callable[[str, str], float | np.ndarray | None],
    ) -> None:
        self._host = host
        self._bounds = bounds
        self._context = context
        self._trainable = trainable

    def __getitem__(self, module_id: str) -> ModuleVariables:
        if module_id not in self._host:
            raise ConfigError(f"unknown module id {module_id!r}.{did_you_mean(module_id, self._host)}")
        return ModuleVariables(
            module_id, self._host[module_id], self._bounds[module_id], self._context, self._trainable
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._host)

    def __len__(self) -> int:
        return len(self._host)


class ModuleVariables(MutableMapping[str, Any]):
    """name -> value of one module's variables; see :class:`Variables`."""

    def __init__(
        self,
        module_id: str,
        host: dict[str, float],
        bounds: Mapping[str, tuple[float, float]],
        context: StepContext | None,
        trainable: Callable[[str, str], float | np.ndarray | None],
    ) -> None:
        self._module_id = module_id
        self._host = host
        self._bounds = bounds
        self._context = context
        self._trainable = trainable

    def __getitem__(self, name: str) -> Array:
        if self._context is not None:
            traced = self._context.variables[self._module_id]
            if name in traced:
                return traced[name]
            params = self._context.params[self._module_id]
            if name in params:
                return params[name]
        elif name in self._host:
            return self._host[name]
        else:
            value = self._trainable(self._module_id, name)
            if value is not None:
                return value
        raise ConfigError(f"module {self._module_id!r} has no variable {name!r}.{did_you_mean(name, self._host)}")

    def __setitem__(self, name: str, value: float) -> None:
        if self._context is not None:
            raise ConfigError(f"variable {name!r} cannot be assigned inside a step; do so in a host hook")
        if name not in self._host:
            raise ConfigError(
                f"module {self._module_id!r} has no variable {name!r} that a host hook may assign."
                f"{did_you_mean(name, self._host)}"
            )
        number = float(value)
        if not math.isfinite(number):
            raise ConfigError(f"variable {name!r} of module {self._module_id!r}: {number} is not finite")
        least, most = self._bounds[name]
        if not least <= number <= most:
            raise ConfigError(
                f"variable {name!r} of module {self._module_id!r}: {number:g} is not from {least:g} to {most:g}"
            )
        self._host[name] = number

    def __delitem__(self, name: str) -> None:
        raise ConfigError(f"variable {name!r} cannot be removed")

    def __iter__(self) -> Iterator[str]:
        return iter(self._host)

    def __len__(self) -> int:
        return len(self._host)
