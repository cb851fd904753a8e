"""The plugin manager of this process."""

from __future__ import annotations

from .loading import register_all
from .manager import Manager

__all__ = ["get_manager"]

_MANAGER: Manager | None = None


def get_manager() -> Manager:
    """The manager of this process, built on first use with every installed plugin of group ``learner_core.plugins``.

    A plugin that cannot be loaded is left out and named in a warning.
    """
    global _MANAGER
    if _MANAGER is None:
        _MANAGER = Manager()
        register_all(_MANAGER)
    return _MANAGER
