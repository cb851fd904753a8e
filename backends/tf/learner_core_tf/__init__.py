"""The TensorFlow backend of learner-core. Importing this package does not import TensorFlow; using its names does."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["TfLearner"]

_EXPORTS = {"TfLearner": "learner"}  # public name -> module that defines it


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
    from .learner import TfLearner as TfLearner
