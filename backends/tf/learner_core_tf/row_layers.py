"""BatchNormalization over the rows of all learners that share a minibatch.

Needs Keras' own class, whose moments are taken in a method of their own. In training a layer takes the count, the sum,
and then the squared deviations of its input from every learner, so that mean, variance and moving statistics are those
of the whole minibatch; gradients flow back through the same sums.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import keras
import tensorflow as tf

from learner_core.errors import ConfigError
from learner_core.learning.framework_modules import RowTotals

__all__ = ["over_all_rows", "row_layers"]

_Moments: TypeAlias = Callable[[tf.Tensor, tf.Tensor | None], tuple[tf.Tensor, tf.Tensor]]

#: The method of Keras' class that is taken the place of.
_METHOD = "_moments"


def row_layers(named: Iterator[tuple[str, keras.layers.Layer]]) -> dict[str, keras.layers.Layer]:
    """Path -> layer that normalises by the rows of a minibatch in training.

    Args:
        named: (path, layer) of every layer of a network.
    """
    found = {path: layer for path, layer in named if type(layer) is keras.layers.BatchNormalization}
    # Of a Keras that does it otherwise nothing is known: its layers count as any that couple rows, which are refused.
    return {path: layer for path, layer in found.items() if hasattr(layer, _METHOD)}


@contextlib.contextmanager
def over_all_rows(layers: Mapping[str, keras.layers.Layer], rows: RowTotals | None, *, hold: bool) -> Iterator[None]:
    """While it is open, these layers look at all learners' rows, or (``hold``) at their moving statistics alone."""
    if rows is None and not hold:
        yield
        return
    try:
        for layer in layers.values():
            # Past Keras' own __setattr__, which keeps book of what a layer has.
            object.__setattr__(layer, _METHOD, _held(layer) if rows is None else _summed(layer, rows))
        yield
    finally:
        for layer in layers.values():
            with contextlib.suppress(AttributeError):
                object.__delattr__(layer, _METHOD)


def _held(layer: keras.layers.Layer) -> _Moments:
    def moments(inputs: tf.Tensor, mask: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.cast(layer.moving_mean, inputs.dtype), tf.cast(layer.moving_variance, inputs.dtype)

    return moments


def _summed(layer: keras.layers.Layer, rows: RowTotals) -> _Moments:
    @tf.custom_gradient
    def total(flat: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        # Every learner's loss depends on the sum, so its gradient is the sum of theirs.
        return rows.total(flat), lambda gradient: rows.total(tf.identity(gradient))

    def moments(inputs: tf.Tensor, mask: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        if mask is not None:
            raise ConfigError(f"{layer.path}: BatchNormalization with a mask is not computed over several learners")
        axes = list(layer._reduction_axes)
        size = inputs.shape[layer.axis]
        own = int(tf.size(inputs)) // size if rows.has_rows else 0
        # A learner without rows computes on one that does not count; it must take part in every sum.
        weight = tf.cast(float(rows.has_rows), inputs.dtype)
        sums = total(tf.concat([weight * tf.reduce_sum(inputs, axes), tf.fill([1], tf.cast(own, inputs.dtype))], 0))
        count = tf.stop_gradient(sums[-1])
        mean = sums[:-1] / count
        shape = [1] * inputs.shape.rank
        shape[layer.axis] = size
        apart = inputs - tf.reshape(mean, shape)
        return mean, total(weight * tf.reduce_sum(tf.square(apart), axes)) / count

    return moments
