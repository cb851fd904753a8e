"""Learner for hooks written in raw Torch."""

from __future__ import annotations

from typing import ClassVar

import torch

from learner_core.learning.learner import Learner

from .backend import TorchBackend

__all__ = ["TorchLearner"]


class TorchLearner(Learner):
    """A Learner whose hooks may call ``torch`` directly: the arrays they get are ``torch.Tensor``.

    The same hooks, the same step and the same compilation as ``learner_core.Learner``; it only runs on this backend.
    """

    framework: ClassVar[str | None] = "torch"
    backend: TorchBackend

    @property
    def device(self) -> torch.device:
        """The ``torch.device`` that parameters and batches live on."""
        return self.backend.torch_device
