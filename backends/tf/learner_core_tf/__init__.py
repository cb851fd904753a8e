"""The TensorFlow backend of learner-core. Importing this package does not import TensorFlow; using its names does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from learner_core.lazy_exports import lazy_exports

__all__ = ["TfLearner"]

_EXPORTS = {"TfLearner": "learner"}  # public name -> module that defines it


__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)


if TYPE_CHECKING:
    from .learner import TfLearner as TfLearner
