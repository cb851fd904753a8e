"""Trace a function over ``xp`` as a backend's compiled step would, and run what was traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["to_numpy", "traced"]


def to_numpy(tree: Any) -> Any:
    """Arrays of any backend, in tuples, lists and dicts, as numpy arrays."""
    if isinstance(tree, dict):
        return {key: to_numpy(value) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(to_numpy(value) for value in tree)
    return np.asarray(tree.detach() if hasattr(tree, "detach") else tree)


def traced(backend_name: str, function: Callable[..., Any], *arrays: np.ndarray) -> Any:
    """``function(*arrays)``: torch by make_fx with fake tensors, TF under XLA, numpy as it is.

    Args:
        backend_name: "numpy", "torch" or "tf".
        function: Takes the backend's arrays, returns tuples or lists of them.
        arrays: Its arguments.

    Returns:
        What it returned, in numpy.
    """
    if backend_name == "torch":
        import torch
        from torch.fx.experimental.proxy_tensor import make_fx

        tensors = [torch.from_numpy(np.array(a)) for a in arrays]
        return to_numpy(make_fx(function, tracing_mode="fake")(*tensors)(*tensors))
    if backend_name == "tf":
        import tensorflow as tf

        return to_numpy(tf.function(function, jit_compile=True)(*[tf.constant(a) for a in arrays]))
    return to_numpy(function(*arrays))
