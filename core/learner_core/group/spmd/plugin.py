"""Entry point ``learner_core.launchers: spmd``: every rank runs the same script, and nobody starts anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from learner_core.group.launchers import Learners
from learner_core.plugins.hookspecs import hookimpl

if TYPE_CHECKING:
    from learner_core.config.algorithm_settings import AlgorithmSettings

__all__ = ["SpmdLauncher", "learner_core_launcher"]

PLUGIN_API = 1


class SpmdLauncher:
    """Ranks that ``horovodrun``, ``torchrun``, an MPI launcher, SLURM or a person has started."""

    name = "spmd"

    def make_learners(self, config: AlgorithmSettings, env: object) -> Learners:
        """As :meth:`Launcher.make_learners`; there is one learner here, and as many as there are ranks."""
        from .learners import SpmdLearners

        return SpmdLearners(config, env)


@hookimpl
def learner_core_launcher() -> SpmdLauncher:
    """The launcher of ranks."""
    return SpmdLauncher()
