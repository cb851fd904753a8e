"""Entry point ``learner_core.backends: tf``."""

from __future__ import annotations

from typing import Any

from learner_core.plugins.hookspecs import hookimpl

PLUGIN_API = 1


@hookimpl
def learner_core_backend() -> Any:
    """The TensorFlow backend."""
    from .backend import TfBackend

    return TfBackend
