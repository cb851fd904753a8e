"""Noise for step after step of N lanes, drawn in blocks.

A draw of a few numbers costs as much as one of a thousand, so a block of steps is drawn at once. Which numbers step t
gets depends on (seed, stream, t) alone: not on how the steps are cut into fragments, nor on where a run was resumed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..maths.noise import normals, stream_id, uniforms

__all__ = ["BLOCK", "NoiseBlocks"]

BLOCK = 64
"""Steps per draw. Part of what a seed means: changing it changes every run."""


class NoiseBlocks:
    """Rows of noise by step number.

    Args:
        seed: The run's seed.
        stream: Name of the stream.
        rows: Number of lanes.
        shape: Shape of one lane's noise.
        kind: "normal" (float32) or "uniform" (float64).
    """

    def __init__(self, seed: int, stream: str, rows: int, shape: tuple[int, ...], *, kind: str = "normal") -> None:
        self._seed = seed
        self._stream = stream_id(stream)
        self._rows = rows
        self._shape = shape
        self._draw = normals if kind == "normal" else uniforms
        self._dtype: type[np.floating[Any]] = np.float32 if kind == "normal" else np.float64
        self._number = -1
        self._block: Any = None

    def at(self, step: int) -> np.ndarray:
        """Noise of one step: [rows, *shape], not to be written to."""
        number, offset = divmod(step, BLOCK)
        if number != self._number:
            block = self._draw(self._seed, number, self._stream, BLOCK * self._rows, self._shape, self._dtype)
            self._block = block.reshape(BLOCK, self._rows, *self._shape)
            self._number = number
        row: np.ndarray = self._block[offset]
        return row
