"""Who answers observations: numpy, or the backend for networks that numpy is slow at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import numpy_xp
from ..config.algorithm_settings import AlgorithmSettings
from ..learning.rl_module import RLModuleSpec
from ..plugins.discovery import load
from ..sampling.numpy_backend import ForwardPolicy, NumpyPolicy, choose_inference
from ..xp import Columns, Outputs

__all__ = ["BackendPolicy", "ModuleFunction", "make_policy"]


def make_policy(config: AlgorithmSettings, spec: RLModuleSpec) -> ForwardPolicy:
    """The policy of an environment runner, as the setting ``inference`` says.

    Args:
        config: frozen configuration.
        spec: complete RLModuleSpec.
    """
    if choose_inference(spec, setting=config.inference) == "numpy":
        return NumpyPolicy(spec)
    return BackendPolicy(config, spec)


class BackendPolicy(ForwardPolicy):
    """A module computed on the configured backend; distributions are evaluated in numpy."""

    def __init__(self, config: AlgorithmSettings, spec: RLModuleSpec) -> None:
        backend_class = load("learner_core.backends", config.framework_name)
        self._backend = backend_class(device=config.device, precision="float32")
        module = spec.build(self._backend.xp)
        in_numpy = spec.build(numpy_xp)
        self._params: Any = {}
        self._explore = self._backend.compile_function(module.forward_exploration)
        self._infer = self._backend.compile_function(module.forward_inference)
        super().__init__(
            self._answer,
            spec.action_space,
            exploration=in_numpy.get_exploration_action_dist_cls(),
            inference=in_numpy.get_inference_action_dist_cls(),
            set_weights=self._take,
            initial_state=in_numpy.initial_state(),
        )

    def _take(self, weights: Mapping[str, np.ndarray]) -> None:
        self._params = self._backend.from_numpy(dict(weights))

    def _answer(self, batch: Columns, explore: bool) -> Outputs:
        forward = self._explore if explore else self._infer
        outputs = forward(self._params, self._backend.from_numpy(batch))
        answer: Outputs = self._backend.to_numpy(dict(outputs))
        return answer


class ModuleFunction:
    """A module's ``forward_train`` on numpy arrays: in numpy, or on its framework's backend.

    Args:
        config: frozen configuration.
        spec: complete RLModuleSpec.
    """

    def __init__(self, config: AlgorithmSettings, spec: RLModuleSpec) -> None:
        self._backend = None
        if not spec.is_neutral:
            backend_class = load("learner_core.backends", config.framework_name)
            self._backend = backend_class(device=config.device, precision="float32")
        self._module = spec.build(numpy_xp if self._backend is None else self._backend.xp, self._backend)

    def __call__(self, params: Mapping[str, np.ndarray], batch: Columns) -> dict[str, np.ndarray]:
        """Outputs for columns [B, ...]; parameters and buffers by name."""
        if self._backend is None:
            return {name: np.asarray(value) for name, value in self._module.forward_train(params, batch).items()}
        outputs = self._module.forward_train(self._backend.from_numpy(dict(params)), self._backend.from_numpy(batch))
        answer: dict[str, np.ndarray] = self._backend.to_numpy(dict(outputs))
        return answer
