"""Entry point ``learner_core.algorithms: sac``."""

from __future__ import annotations

from learner_core.plugins.hookspecs import hookimpl

PLUGIN_API = 1


@hookimpl
def learner_core_algorithm() -> type:
    """The configuration class of SAC."""
    from .config import SACConfig

    return SACConfig
