"""PPO, SAC and BC as plugins of learner-core. Importing this package imports no framework and no algorithm."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["BCConfig", "PPOConfig", "SACConfig"]

_EXPORTS = {"BCConfig": "bc.config", "PPOConfig": "ppo.config", "SACConfig": "sac.config"}


def __getattr__(name: str) -> Any:
    try:
        module = _EXPORTS[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


if TYPE_CHECKING:
    from .bc.config import BCConfig as BCConfig
    from .ppo.config import PPOConfig as PPOConfig
    from .sac.config import SACConfig as SACConfig
