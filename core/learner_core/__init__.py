"""learner-core: reinforcement-learning learners written once, run compiled on Torch, TensorFlow and others.

Importing this package loads no framework, no gymnasium and touches nothing; names are resolved on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy_exports import lazy_exports
from .version import __version__ as __version__

# Public name -> module that defines it. Kept sorted; tests/core/test_public_names.py holds it.
_EXPORTS = {
    "Algorithm": "algorithm.algorithm",
    "AlgorithmConfig": "algorithm.algorithm_config",
    "BackendNotInstalledError": "errors",
    "BatchError": "errors",
    "CompileError": "errors",
    "ConfigError": "errors",
    "EnvError": "errors",
    "EnvOutputError": "errors",
    "EnvRunnerLostError": "errors",
    "FormatError": "errors",
    "Learner": "learning.learner",
    "LearnerCoreError": "errors",
    "LearnerGroup": "group.learner_group",
    "LearnerGroupError": "errors",
    "MultiRLModuleSpec": "learning.rl_module",
    "NetworkError": "errors",
    "NonFiniteError": "errors",
    "OffPolicyConfig": "algorithm.off_policy_config",
    "OptimizerSpec": "maths.optimizers",
    "PluginError": "errors",
    "PluginNotFoundError": "errors",
    "RLModule": "learning.rl_module",
    "RLModuleSpec": "learning.rl_module",
    "SpaceError": "errors",
    "StateError": "errors",
    "StateIOError": "errors",
    "UnknownNameError": "errors",
    "WorkerLostError": "errors",
    "export": "exporting.export",
    "get_config": "plugins.discovery",
    "import_sb3": "exporting.sb3",
    "import_weights": "exporting.import_weights",
    "list_algorithms": "plugins.discovery",
    "list_backends": "plugins.discovery",
    "load_state": "state.files",
    "save_state": "state.files",
    "schedule": "schedules",
}

__all__ = sorted([*_EXPORTS, "__version__"])  # noqa: PLE0605 - derived from the table above, which is literal


__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)


if TYPE_CHECKING:
    from .algorithm.algorithm import Algorithm as Algorithm
    from .algorithm.algorithm_config import AlgorithmConfig as AlgorithmConfig
    from .algorithm.off_policy_config import OffPolicyConfig as OffPolicyConfig
    from .errors import (
        BackendNotInstalledError as BackendNotInstalledError,
    )
    from .errors import (
        BatchError as BatchError,
    )
    from .errors import (
        CompileError as CompileError,
    )
    from .errors import (
        ConfigError as ConfigError,
    )
    from .errors import (
        EnvError as EnvError,
    )
    from .errors import (
        EnvOutputError as EnvOutputError,
    )
    from .errors import (
        EnvRunnerLostError as EnvRunnerLostError,
    )
    from .errors import (
        FormatError as FormatError,
    )
    from .errors import (
        LearnerCoreError as LearnerCoreError,
    )
    from .errors import (
        LearnerGroupError as LearnerGroupError,
    )
    from .errors import (
        NetworkError as NetworkError,
    )
    from .errors import (
        NonFiniteError as NonFiniteError,
    )
    from .errors import (
        PluginError as PluginError,
    )
    from .errors import (
        PluginNotFoundError as PluginNotFoundError,
    )
    from .errors import (
        SpaceError as SpaceError,
    )
    from .errors import (
        StateError as StateError,
    )
    from .errors import (
        StateIOError as StateIOError,
    )
    from .errors import (
        UnknownNameError as UnknownNameError,
    )
    from .errors import (
        WorkerLostError as WorkerLostError,
    )
    from .exporting.export import export as export
    from .exporting.import_weights import import_weights as import_weights
    from .exporting.sb3 import import_sb3 as import_sb3
    from .group.learner_group import LearnerGroup as LearnerGroup
    from .learning.learner import Learner as Learner
    from .learning.rl_module import MultiRLModuleSpec as MultiRLModuleSpec
    from .learning.rl_module import RLModule as RLModule
    from .learning.rl_module import RLModuleSpec as RLModuleSpec
    from .maths.optimizers import OptimizerSpec as OptimizerSpec
    from .plugins.discovery import get_config as get_config
    from .plugins.discovery import list_algorithms as list_algorithms
    from .plugins.discovery import list_backends as list_backends
    from .schedules import schedule as schedule
    from .state.files import load_state as load_state
    from .state.files import save_state as save_state
