"""The kernel's high-water mark of this process's memory, started anew where a measurement begins. Needs Linux."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["nbytes", "resident", "start_peak"]


def nbytes(tree: Any) -> int:
    """Bytes of the arrays in nested dicts and lists."""
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return sum(map(nbytes, parts)) + (int(tree.nbytes) if isinstance(tree, np.ndarray) else 0)


def resident(field: str) -> int:
    """Bytes: ``"VmRSS:"`` now, ``"VmHWM:"`` at most since ``start_peak``."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) * 1024


def start_peak() -> int:
    """Bytes resident now, and the high-water mark from here on; what is free must not hide what is taken."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS:")
