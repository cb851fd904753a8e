"""Entry point ``learner_core.algorithms: reinforce``."""

from learner_core.plugins.hookspecs import hookimpl

PLUGIN_API = 1


@hookimpl
def learner_core_algorithm():
    from .algorithm import ReinforceConfig

    return ReinforceConfig
