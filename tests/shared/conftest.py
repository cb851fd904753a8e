"""The same tests for every backend: `LC_BACKEND=numpy|torch|tf pytest tests/shared` (default numpy)."""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest

NAMESPACES = {"numpy": "learner_core.numpy_xp", "torch": "learner_core_torch.xp", "tf": "learner_core_tf.xp"}


@pytest.fixture(scope="session", autouse=True)
def _threads_to_wait_in() -> None:
    """TensorFlow gets four threads of its own, before anything computes.

    Learners in threads of one process wait for each other inside of them, and an Algorithm would set them to one, in
    which they would wait for ever. Real ranks have a process each.
    """
    if os.environ.get("LC_BACKEND") == "tf":
        import tensorflow as tf

        tf.config.threading.set_inter_op_parallelism_threads(4)
        tf.constant(0)  # from here on the number stays


@pytest.fixture(scope="session")
def backend_name() -> str:
    name = os.environ.get("LC_BACKEND", "numpy")
    if name not in NAMESPACES:
        raise pytest.UsageError(f"LC_BACKEND={name!r}: expected one of {sorted(NAMESPACES)}")
    return name


@pytest.fixture(scope="session")
def training_backend_name(backend_name: str) -> str:
    """For tests that train: skipped under numpy, which only answers."""
    if backend_name == "numpy":
        pytest.skip("the numpy backend does not train")
    return backend_name


@pytest.fixture(scope="session")
def xp(backend_name: str) -> Any:
    """The backend's array namespace."""
    return importlib.import_module(NAMESPACES[backend_name])
