"""Operations that a graph recorded, run one by one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

__all__ = ["run", "static_value"]

#: What raw operations call otherwise than their definitions do.
_RENAMED = dict.fromkeys(("split_dim", "concat_dim", "reduction_indices", "dim", "squeeze_dims"), "axis")


def run(
    op: tf.Operation, inputs: Sequence[tf.Tensor], *, dtypes: Mapping[tf.DType, tf.DType] | None = None
) -> list[tf.Tensor]:
    """What an operation makes of these values in place of its inputs.

    Args:
        op: as recorded.
        inputs: one for each of the operation's.
        dtypes: others in place of those that it was recorded with.
    """
    call = getattr(tf.raw_ops, op.type)
    expected = inspect.signature(call).parameters
    arguments: dict[str, Any] = {}
    left = list(inputs)
    for described in op.op_def.input_arg:
        name = described.name if described.name in expected else _RENAMED.get(described.name, described.name)
        count = op.get_attr(described.number_attr) if described.number_attr else 1
        arguments[name] = left[:count] if described.number_attr else left[0]
        left = left[count:]
    for described in op.op_def.attr:
        name = described.name if described.name in expected else _RENAMED.get(described.name, described.name)
        if name in expected and name not in arguments:
            value = op.get_attr(described.name)
            arguments[name] = (dtypes or {}).get(value, value) if isinstance(value, tf.DType) else value
    with tf.init_scope():
        made = call(**arguments)
    return list(made) if isinstance(made, (list, tuple)) else [made]


def static_value(tensor: tf.Tensor) -> np.ndarray | None:
    """The value of a tensor that depends on constants alone; ``None`` of any other."""
    value = tf.get_static_value(tensor)
    if value is not None:
        return np.asarray(value)
    op = tensor.op
    if not op.inputs or op.op_def.is_stateful:
        return None
    inputs = [static_value(one) for one in op.inputs]
    if any(one is None for one in inputs):
        return None
    return np.asarray(run(op, inputs)[tensor.value_index])
