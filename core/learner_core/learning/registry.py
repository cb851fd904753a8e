"""What a Learner's hooks register while it is built: variables, and optimizers for parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..config.algorithm_settings import AlgorithmSettings
from ..errors import ConfigError, did_you_mean
from ..maths import noise as noise_maths
from ..maths.optimizers import OptimizerSpec
from ..schedules import parse as parse_schedule
from .blueprint import LearningRate
from .parameters import match_names
from .rl_module import RLModule, RLModuleSpec
from .shared_parameters import take_shared

__all__ = ["Registered", "Registry"]


@dataclass(frozen=True)
class Registered:
    """An optimizer as it was registered."""

    spec: OptimizerSpec
    params: list[str]
    lr: LearningRate


class Registry:
    """Modules with their first values, and what hooks add to them.

    Args:
        modules: module id -> module over the backend's namespace.
        specs: module id -> its specification.
        config: the settings that learning rates are named by.
        seed: of the first values.

    Attributes:
        values: module id -> name -> first value of a parameter, trainable variables among them.
        host_variables: module id -> name -> value of a variable that is not trained.
        trained_variables: module id -> names of those that are.
        bounds: module id -> variable -> least and most value.
        optimizers: module id -> name -> what was registered.
        borrowed: module id -> parameter -> module that holds it for several.
    """

    def __init__(
        self,
        modules: Mapping[str, RLModule],
        specs: Mapping[str, RLModuleSpec],
        config: AlgorithmSettings,
        seed: int,
    ) -> None:
        self.modules: dict[str, RLModule] = dict(modules)
        self._config = config
        self.values: dict[str, dict[str, np.ndarray]] = {}
        for module_id, module in self.modules.items():
            rng = np.random.Generator(np.random.Philox(key=[seed, noise_maths.stream_id(f"init/{module_id}")]))
            self.values[module_id] = {name: np.asarray(value) for name, value in module.init(rng).items()}
        self.host_variables: dict[str, dict[str, float]] = {module_id: {} for module_id in self.modules}
        self.trained_variables: dict[str, list[str]] = {module_id: [] for module_id in self.modules}
        self.bounds: dict[str, dict[str, tuple[float, float]]] = {module_id: {} for module_id in self.modules}
        self.optimizers: dict[str, dict[str, Registered]] = {module_id: {} for module_id in self.modules}
        self.borrowed: dict[str, dict[str, str]] = take_shared(specs, self.values)

    def register_variable(
        self, module_id: str, name: str, value: npt.ArrayLike, trainable: bool, bounds: tuple[float, float] | None
    ) -> None:
        """See ``Learner.register_variable``."""
        self._known(module_id)
        taken = (self.values[module_id], self.host_variables[module_id], self.borrowed[module_id])
        if any(name in names for names in taken):
            raise ConfigError(f"register_variable: module {module_id!r} has {name!r} already")
        try:
            array = np.asarray(value, np.float64)
        except (TypeError, ValueError):
            raise ConfigError(f"register_variable({name!r}): value={value!r} is not a number or array") from None
        if not np.all(np.isfinite(array)):
            raise ConfigError(f"register_variable({name!r}): value={value!r} is not finite")
        least, most = (-math.inf, math.inf) if bounds is None else map(float, bounds)
        if not (np.all(array >= least) and np.all(array <= most)):
            raise ConfigError(f"register_variable({name!r}): value={value!r} is not within bounds={bounds!r}")
        self.bounds[module_id][name] = (least, most)
        if trainable:
            self.trained_variables[module_id].append(name)
            self.values[module_id][name] = array
        elif array.ndim:
            raise ConfigError(f"register_variable({name!r}): only a trainable variable may be an array")
        else:
            self.host_variables[module_id][name] = float(array)

    def register_optimizer(
        self, module_id: str, name: str, optimizer: OptimizerSpec, params: Sequence[str], lr: LearningRate
    ) -> None:
        """See ``Learner.register_optimizer``."""
        self._known(module_id)
        where = f"register_optimizer({module_id!r}, {name!r})"
        if name in self.optimizers[module_id]:
            raise ConfigError(f"{where}: there is an optimizer of that name already")
        if not isinstance(optimizer, OptimizerSpec):
            raise ConfigError(f"{where}: optimizer={optimizer!r} is not an OptimizerSpec")
        chosen = match_names(params, [*self.values[module_id], *self.borrowed[module_id]], what=where)
        frozen = {*self.modules[module_id].frozen_parameters, *self.borrowed[module_id]}
        chosen = [parameter for parameter in chosen if parameter not in frozen]
        if not chosen:
            return
        for other, registered in self.optimizers[module_id].items():
            shared = sorted(set(registered.params) & set(chosen))
            if shared:
                raise ConfigError(f"{where}: {shared[0]!r} belongs to optimizer {other!r} already")
        if isinstance(lr, str) and not hasattr(self._config, lr):
            known = self._config.settings()
            raise ConfigError(f"{where}: lr_or_lr_schedule={lr!r} is no setting.{did_you_mean(lr, known)}")
        if not isinstance(lr, str):
            parse_schedule(lr, where)
        self.optimizers[module_id][name] = Registered(optimizer, chosen, lr)

    def _known(self, module_id: str) -> None:
        if module_id not in self.modules:
            raise ConfigError(f"unknown module_id {module_id!r}.{did_you_mean(module_id, self.modules)}")
