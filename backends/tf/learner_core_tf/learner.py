"""Learner for hooks written in raw TensorFlow."""

from __future__ import annotations

from typing import ClassVar

from learner_core.learning.learner import Learner

from .backend import TfBackend

__all__ = ["TfLearner"]


class TfLearner(Learner):
    """A Learner whose hooks may call ``tf`` directly: the arrays they get are ``tf.Tensor``.

    The same hooks, the same step and the same compilation as ``learner_core.Learner``; it only runs on this backend.
    """

    framework: ClassVar[str | None] = "tf"
    backend: TfBackend

    @property
    def device(self) -> str:
        """TensorFlow's name of the device that parameters and batches live on."""
        return self.backend.tf_device
