"""PPO, SAC and BC as plugins of learner-core. Importing this package imports no framework and no algorithm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from learner_core.lazy_exports import lazy_exports

__all__ = ["BCConfig", "PPOConfig", "SACConfig"]

_EXPORTS = {"BCConfig": "bc.config", "PPOConfig": "ppo.config", "SACConfig": "sac.config"}


__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)


if TYPE_CHECKING:
    from .bc.config import BCConfig as BCConfig
    from .ppo.config import PPOConfig as PPOConfig
    from .sac.config import SACConfig as SACConfig
