"""Entry point ``learner_core.backends: torch``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from learner_core.backend import BackendFacts, FileFormat
from learner_core.plugins.hookspecs import hookimpl

if TYPE_CHECKING:
    from .backend import TorchBackend

PLUGIN_API = 1
#: Read without importing this: `learner-core plugins list` says what is not installed.
REQUIRES = ("torch",)


@hookimpl
def learner_core_backend() -> type[TorchBackend]:
    """The Torch backend."""
    from .backend import TorchBackend

    return TorchBackend


@hookimpl
def learner_core_backend_facts() -> BackendFacts:
    """Rings and file formats of Torch."""
    return BackendFacts(
        collectives={"horovod": "horovod.torch", "torch": "torch.distributed"},
        exports={"torch": FileFormat(weights=(".pt", ".pth"), policies=(".pt2",))},
    )
