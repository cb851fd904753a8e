"""Entry point ``learner_core.algorithms: impala``."""

from __future__ import annotations

from learner_core.plugins.hookspecs import hookimpl

PLUGIN_API = 1


@hookimpl
def learner_core_algorithm() -> type:
    """The configuration class of IMPALA."""
    from .config import IMPALAConfig

    return IMPALAConfig
