"""Entry point ``learner_core.collectives: torch``."""

from __future__ import annotations

from learner_core.plugins.hookspecs import hookimpl

from .collectives import CollectivePlugin, TorchDistributed

PLUGIN_API = 1
#: Read without importing this: `learner-core plugins list` says what is not installed.
REQUIRES = ("torch",)


@hookimpl
def learner_core_collective() -> CollectivePlugin:
    """The collective over ``torch.distributed``."""
    return TorchDistributed()
