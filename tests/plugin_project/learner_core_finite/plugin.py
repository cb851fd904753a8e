"""Entry point ``learner_core.backends: finite``."""

from learner_core.plugins.hookspecs import hookimpl

PLUGIN_API = 1


@hookimpl
def learner_core_backend():
    from .backend import FiniteBackend

    return FiniteBackend
