"""Makes the golden state file of a new format version: python tests/golden/make_golden.py VERSION

A golden file is made once, when its version of the format is released, and never again: this script refuses to
overwrite one. `tree()` is what every golden file of version 1 holds.
"""

from __future__ import annotations

import math
import struct
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

FOLDER = Path(__file__).parent


def tree() -> dict[str, Any]:
    """Every kind of leaf, of values that say where they belong."""
    whole = {name: np.arange(6, dtype=name).reshape(2, 3) for name in "int8 int16 int32 int64".split()}
    whole |= {f"u{name}": np.arange(6, dtype=f"u{name}").reshape(2, 3) for name in list(whole)}
    real = {name: (np.arange(5) / 4 - 0.5).astype(name) for name in "float16 float32 float64".split()}
    small = "bfloat16 float8_e3m4 float8_e4m3 float8_e4m3b11fnuz float8_e4m3fn float8_e4m3fnuz float8_e5m2".split()
    for name in [*small, "float8_e5m2fnuz", "float8_e8m0fnu"]:
        real[name] = np.array([0.25, 0.5, 1, 2], np.float32).astype(getattr(ml_dtypes, name))
    return {
        "whole": whole,
        "real": real,
        "complex": {name: np.array([1 + 2j, -0.5j]).astype(name) for name in ("complex64", "complex128")},
        "bool": np.array([[True, False], [False, True]]),
        "specials": np.array([np.nan, np.inf, -np.inf, -0.0], np.float32),
        "zero_d": np.array(2.5, np.float32),
        "empty": {"array": np.zeros((0, 3), np.int32), "list": [], "dict": {}},
        "chunks": (np.arange(5000) % 251).astype(np.uint8),
        "scalars": [np.float32(0.1), np.int64(-5), np.bool_(False), np.complex64(1j), ml_dtypes.bfloat16(1.5)],
        "plain": [None, True, False, 0, -1, 127, 128, -33, 1 << 63, (1 << 64) - 1, -(1 << 63), 1 << 64, -(1 << 200)],
        "floats": [0.1, -0.0, math.inf, -math.inf, struct.unpack("<d", bytes.fromhex("efbeadde0000f87f"))[0]],
        "text": ["", "plain", "räksmörgås", "漢字", "😀", "\0", "long " * 300],
        "bytes": [b"", b"\x00\xff", b"\x80" * 1500],
        "keys": {0: "int", -1: "negative", 1 << 62: "large", "0": "str", "a/b": "slash", "": "empty", "~": "tilde"},
    }


def main() -> None:
    from learner_core.state.format import encode

    path = FOLDER / f"v{sys.argv[1]}.lcstate"
    with path.open("xb") as file:
        file.write(encode(tree(), info={"writer": "golden"}, chunk_nbytes=4096).tobytes())
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
