"""Run a function over `xp` in every way that a backend can run it: eagerly, traced, compiled."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

__all__ = ["MODES", "host", "run"]

MODES = {"torch": ("eager", "traced"), "tf": ("eager", "graph", "xla")}.get(
    os.environ.get("LC_BACKEND", ""), ("eager",)
)
"""How the backend under test can run a function: parameters for a test, known when tests are collected."""


def host(tree: Any) -> Any:
    """Bring arrays of any namespace (in dicts, tuples and lists) to numpy."""
    if isinstance(tree, Mapping):
        return {key: host(value) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree)(host(value) for value in tree)
    if hasattr(tree, "detach"):
        return tree.detach().cpu().numpy()
    return np.asarray(tree)


def run(xp: Any, mode: str, f: Callable[..., Any], *arrays: Any) -> Any:
    """Call `f` on numpy arrays (or dicts of them) turned into `xp`'s, and bring the result back.

    Modes: "eager"; torch "traced": make_fx over fake tensors, as the compiled step is made; tf "graph": tf.function;
    tf "xla": tf.function(jit_compile=True).
    """
    arguments = [
        {key: xp.asarray(value) for key, value in array.items()} if isinstance(array, Mapping) else xp.asarray(array)
        for array in arrays
    ]
    if mode == "traced":
        from torch.fx.experimental.proxy_tensor import make_fx

        f = make_fx(f, tracing_mode="fake")(*arguments)
    elif mode in ("graph", "xla"):
        import tensorflow as tf

        f = tf.function(f, jit_compile=mode == "xla")
    return host(f(*arguments))
