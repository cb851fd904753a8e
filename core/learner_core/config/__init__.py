"""Settings of an algorithm: typed, documented, validated when they are set."""

from __future__ import annotations

from .algorithm_config import AlgorithmConfig
from .environments import make_env
from .needs import ENVIRONMENT, MEMORY, SEQUENCES, Needs, needs
from .off_policy_config import OffPolicyConfig
from .settings import Setting
from .validation import FloatOrSchedule, Range

__all__ = [
    "ENVIRONMENT",
    "MEMORY",
    "SEQUENCES",
    "AlgorithmConfig",
    "FloatOrSchedule",
    "Needs",
    "OffPolicyConfig",
    "Range",
    "Setting",
    "make_env",
    "needs",
]
