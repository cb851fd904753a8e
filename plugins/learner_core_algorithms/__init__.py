"""APPO, BC, IMPALA, PPO and SAC as plugins of learner-core. Importing this imports no framework and no algorithm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from learner_core.lazy_exports import lazy_exports

__all__ = ["APPOConfig", "BCConfig", "IMPALAConfig", "PPOConfig", "SACConfig"]

_EXPORTS = {
    "APPOConfig": "appo.config",
    "BCConfig": "bc.config",
    "IMPALAConfig": "impala.config",
    "PPOConfig": "ppo.config",
    "SACConfig": "sac.config",
}


__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)


if TYPE_CHECKING:
    from .appo.config import APPOConfig as APPOConfig
    from .bc.config import BCConfig as BCConfig
    from .impala.config import IMPALAConfig as IMPALAConfig
    from .ppo.config import PPOConfig as PPOConfig
    from .sac.config import SACConfig as SACConfig
