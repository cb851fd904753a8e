"""Entry point ``learner_core.backends: tf``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from learner_core.backend import BackendFacts, FileFormat
from learner_core.plugins.hookspecs import hookimpl

if TYPE_CHECKING:
    from .backend import TfBackend

PLUGIN_API = 1
#: Read without importing this: `learner-core plugins list` says what is not installed.
REQUIRES = ("tensorflow", "keras")


@hookimpl
def learner_core_backend() -> type[TfBackend]:
    """The TensorFlow backend."""
    from .backend import TfBackend

    return TfBackend


@hookimpl
def learner_core_backend_facts() -> BackendFacts:
    """Rings and file formats of TensorFlow."""
    return BackendFacts(
        collectives={"horovod": "horovod.tensorflow"},
        exports={"keras": FileFormat(policies=(".keras",))},
    )
