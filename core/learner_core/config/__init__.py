"""Settings of an algorithm: typed, documented, validated when they are set."""

from __future__ import annotations

from .algorithm_settings import AlgorithmSettings
from .environments import make_env
from .needs import ENVIRONMENT, MEMORY, SEQUENCES, Needs, needs
from .settings import Setting
from .validation import FloatOrSchedule, Range

__all__ = [
    "ENVIRONMENT",
    "MEMORY",
    "SEQUENCES",
    "AlgorithmSettings",
    "FloatOrSchedule",
    "Needs",
    "Range",
    "Setting",
    "make_env",
    "needs",
]
