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
    "PLUGIN_API": "plugins.hookspecs",
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
    "hookimpl": "plugins.hookspecs",
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


if TYPE_CHECKING:  # the same once more: a type checker does not read the table
    from .algorithm.algorithm import Algorithm as Algorithm
    from .algorithm.algorithm_config import AlgorithmConfig as AlgorithmConfig
    from .algorithm.off_policy_config import OffPolicyConfig as OffPolicyConfig
    from .errors import (
        BackendNotInstalledError as BackendNotInstalledError,
        BatchError as BatchError,
        CompileError as CompileError,
        ConfigError as ConfigError,
        EnvError as EnvError,
        EnvOutputError as EnvOutputError,
        EnvRunnerLostError as EnvRunnerLostError,
        FormatError as FormatError,
        LearnerCoreError as LearnerCoreError,
        LearnerGroupError as LearnerGroupError,
        NetworkError as NetworkError,
        NonFiniteError as NonFiniteError,
        PluginError as PluginError,
        PluginNotFoundError as PluginNotFoundError,
        SpaceError as SpaceError,
        StateError as StateError,
        StateIOError as StateIOError,
        UnknownNameError as UnknownNameError,
        WorkerLostError as WorkerLostError,
    )
    from .exporting.export import export as export
    from .exporting.import_weights import import_weights as import_weights
    from .exporting.sb3 import import_sb3 as import_sb3
    from .group.learner_group import LearnerGroup as LearnerGroup
    from .learning.learner import Learner as Learner
    from .learning.rl_module import (
        MultiRLModuleSpec as MultiRLModuleSpec,
        RLModule as RLModule,
        RLModuleSpec as RLModuleSpec,
    )
    from .maths.optimizers import OptimizerSpec as OptimizerSpec
    from .plugins.discovery import (
        get_config as get_config,
        list_algorithms as list_algorithms,
        list_backends as list_backends,
    )
    from .plugins.hookspecs import (
        PLUGIN_API as PLUGIN_API,
        hookimpl as hookimpl,
    )
    from .schedules import schedule as schedule
    from .state.files import (
        load_state as load_state,
        save_state as save_state,
    )
