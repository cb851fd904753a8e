"""Batches to learner processes: copied once, into memory that all of them see.

A segment has no name: it is a file in memory whose descriptor the driver hands to the learners. When the last process
that holds it ends, by whatever death, it is gone; nothing can be left behind.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..xp import ArrayTree, Columns

__all__ = ["Layout", "Segment", "SegmentId", "read_batch", "receive"]

_ALIGNMENT = 64
#: (path of keys, dtype, shape, offset) of arrays, and (path, value) of everything else, which travels with the request.
Layout = dict[str, Any]
#: (slot, serial number of the segment in it, size in bytes).
SegmentId = tuple[int, int, int]


class Segment:
    """Reusable shared memory of the driver, growing as batches do.

    Args:
        slot: its number, by which the learners remember it.
    """

    def __init__(self, slot: int) -> None:
        self._slot = slot
        self._serial = 0
        self._size = 0
        self._map: mmap.mmap | None = None
        self._descriptor = -1

    def write(self, batch: Columns) -> tuple[SegmentId | None, Layout, int | None]:
        """Copy a batch in.

        Args:
            batch: nested dicts of arrays; whatever is no plain numeric array goes with the request, for the learner
                to convert or to refuse.

        Returns:
            (segment or None if nothing is shared, layout, descriptor to send first if the segment is new).
        """
        arrays: list[tuple[tuple[object, ...], np.ndarray, int]] = []
        others: list[tuple[tuple[object, ...], object]] = []
        end = 0
        for path, value in _leaves(batch, ()):
            if isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and value.nbytes:
                offset = -(-end // _ALIGNMENT) * _ALIGNMENT
                arrays.append((path, value, offset))
                end = offset + value.nbytes
            else:
                others.append((path, value))
        new = self._reserve(end)
        for _, value, offset in arrays:
            np.copyto(np.ndarray(value.shape, value.dtype, self._map, offset), value)
        layout = {
            "arrays": [(path, value.dtype.str, value.shape, offset) for path, value, offset in arrays],
            "others": others,
        }
        return (self._slot, self._serial, self._size) if self._size else None, layout, new

    def _reserve(self, size: int) -> int | None:
        if size <= self._size:
            return None
        self.close()
        # Room to spare, so that batches of slightly different sizes do not ask again and again.
        self._serial += 1
        self._size = -(-size * 5 // 4 // mmap.PAGESIZE) * mmap.PAGESIZE
        self._descriptor = os.memfd_create("learner-core-batch", os.MFD_CLOEXEC)
        os.ftruncate(self._descriptor, self._size)
        self._map = mmap.mmap(self._descriptor, self._size)
        return self._descriptor

    @property
    def descriptor(self) -> int | None:
        """To hand to a learner that joins later."""
        return self._descriptor if self._size else None

    def send(self, to: socket.socket) -> None:
        """Hand the memory to a learner, which finds it by ``receive``."""
        socket.send_fds(to, [struct.pack("<Q", self._serial)], [self._descriptor])

    def close(self) -> None:
        """Let go of the memory; learners that still read it keep it until they are done."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            # The arrays that were copied in may still refer to the map; it goes when they do.
            self._map, self._descriptor, self._size = None, -1, 0


def receive(source: socket.socket, place: SegmentId) -> mmap.mmap:
    """The memory of a place, mapped; waits until it has been sent. What was sent before it is of no more use."""
    _, serial, size = place
    while True:
        message, descriptors, _, _ = socket.recv_fds(source, 8, 1)
        if not message:
            raise EOFError("the driver is gone")
        with open(descriptors[0], "rb") as file:
            if struct.unpack("<Q", message)[0] == serial:
                return mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ)


def _leaves(tree: object, path: tuple[object, ...]) -> list[tuple[tuple[object, ...], object]]:
    if isinstance(tree, Mapping) and tree:
        return [leaf for key, value in tree.items() for leaf in _leaves(value, (*path, key))]
    return [(path, tree)]


def read_batch(memory: mmap.mmap | memoryview, layout: Layout) -> ArrayTree:
    """The batch, its arrays read-only views of ``memory``."""
    leaves: list[tuple[tuple[object, ...], object]] = list(layout["others"])
    for path, dtype, shape, offset in layout["arrays"]:
        size = int(np.prod(shape, dtype=np.int64))
        leaves.append((path, np.frombuffer(memory, np.dtype(dtype), size, offset).reshape(shape)))
    if len(leaves) == 1 and leaves[0][0] == ():
        return leaves[0][1]
    batch: dict[Any, Any] = {}
    for path, value in leaves:
        node = batch
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return batch
