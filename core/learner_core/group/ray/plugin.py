"""Entry point ``learner_core.launchers: ray``: learners are Ray actors, on one machine or on a cluster."""

from __future__ import annotations

import importlib.util
from typing import Any

from learner_core.errors import LearnerGroupError
from learner_core.group.launchers import Learners
from learner_core.group.local import LocalLearners
from learner_core.plugins.hookspecs import hookimpl

__all__ = ["RayLauncher", "learner_core_launcher"]

PLUGIN_API = 1


class RayLauncher:
    """Ray actors."""

    name = "ray"

    def make_learners(self, config: Any, env: Any) -> Learners:
        """As :meth:`Launcher.make_learners`."""
        if not config.num_learners:
            return LocalLearners(config, env)
        if importlib.util.find_spec("ray") is None:
            raise LearnerGroupError('launcher="ray": Ray is not installed: pip install "learner-core[ray]"')
        raise LearnerGroupError('launcher="ray": not in this version yet')


@hookimpl
def learner_core_launcher() -> RayLauncher:
    """The launcher of Ray actors."""
    return RayLauncher()
