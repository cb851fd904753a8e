"""Entry point ``learner_core.launchers: ray``: learners are Ray actors, on one machine or on a cluster."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from learner_core.group.launchers import Learners
from learner_core.group.local import LocalLearners
from learner_core.plugins.hookspecs import hookimpl

from .cluster import RayOptions
from .fleet import RayFleet

if TYPE_CHECKING:
    from learner_core.config.algorithm_settings import AlgorithmSettings

__all__ = ["RayLauncher", "learner_core_launcher"]

PLUGIN_API = 1
#: Read without importing this: `learner-core plugins list` says what is not installed.
REQUIRES = ("ray",)


class RayLauncher:
    """Ray actors."""

    name = "ray"

    def make_learners(self, config: AlgorithmSettings, env: object) -> Learners:
        """As :meth:`Launcher.make_learners`."""
        if not config.num_learners:
            # Environment runners may be actors all the same.
            RayOptions.of(config.launcher_options)
            return LocalLearners(config, env)
        from learner_core.group.remote import RemoteLearners

        return RemoteLearners(config, env, RayFleet(config))

    def make_env_runners(self, config: AlgorithmSettings, setup: bytes, framework: str) -> Any:
        """As ``learner_core.sampling.runner_handle`` describes it: environment runners are actors, too."""
        # A floor above this one.
        return importlib.import_module("learner_core.sampling.ray_runners").RayRunners(config, setup, framework)


@hookimpl
def learner_core_launcher() -> RayLauncher:
    """The launcher of Ray actors."""
    return RayLauncher()
