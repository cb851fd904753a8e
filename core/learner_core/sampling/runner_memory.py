"""Memory that a driver and its runner processes share: fragments one way, weights the other.

Needs Linux: a segment is a file in memory without a name, whose descriptor is handed over. When the last process that
holds it ends, by whatever death, it is gone; nothing can be left behind. Trusts the other side: both ends are processes
of one driver. docs/decisions/environment-runners.md says why.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import pickle
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xxhash

__all__ = ["FragmentReader", "FragmentWriter", "WeightsBoard", "WeightsReader"]

_ALIGNMENT = 64


def _segment(name: str, size: int) -> tuple[int, mmap.mmap]:
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
    os.ftruncate(descriptor, size)
    return descriptor, mmap.mmap(descriptor, size)


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


class FragmentWriter:
    """A runner's end: fragments are put into slots that are used again and again.

    Args:
        hand_over: called with the descriptor of a segment that is new, before the fragment in it is announced.
    """

    def __init__(self, hand_over: Callable[[int], None]) -> None:
        self._hand_over = hand_over
        self._slots: dict[int, mmap.mmap] = {}

    def write(self, slot: int, value: object) -> dict[str, object]:
        """Copy a value's arrays into a slot; whatever it held before is gone.

        Args:
            slot: its number.
            value: anything that can be pickled; C-contiguous arrays go through the memory, arrays that are views of
                the same memory (``obs`` and ``next_obs``) only once.

        Returns:
            What the reader needs to know, to be pickled.
        """
        buffers: list[pickle.PickleBuffer] = []
        data = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        views = [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]
        spans, places, size = _lay_out([(view.ctypes.data, view.nbytes) for view in views])
        memory = self._reserve(slot, size)
        if memory is not None:
            base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            for address, length, offset in spans:
                ctypes.memmove(base + offset, address, length)
        return {
            "slot": slot,
            "size": 0 if memory is None else len(memory),
            "used": size,
            "places": places,
            "data": data,
        }

    def _reserve(self, slot: int, size: int) -> mmap.mmap | None:
        memory = self._slots.get(slot)
        if memory is None or len(memory) < size:
            if not size:
                return memory
            # Room to spare, so that fragments of slightly different sizes do not ask again and again.
            rounded = -(-size * 5 // 4 // mmap.PAGESIZE) * mmap.PAGESIZE
            descriptor, memory = _segment("learner-core-fragment", rounded)
            self._slots[slot] = memory
            self._hand_over(descriptor)
            os.close(descriptor)
        return memory


def _lay_out(buffers: list[tuple[int, int]]) -> tuple[list[tuple[int, int, int]], list[tuple[int, int]], int]:
    """Places for (address, length) buffers, those that overlap together.

    Returns:
        [(address, length, offset)] of what to copy, [(offset, length)] of each buffer, the size of it all.
    """
    spans: list[tuple[int, int, int]] = []
    places: dict[int, tuple[int, int]] = {}
    end = 0
    for index in sorted(range(len(buffers)), key=buffers.__getitem__):
        address, length = buffers[index]
        if not length:
            places[index] = (0, 0)
            continue
        if spans and address < spans[-1][0] + spans[-1][1]:
            start, known, offset = spans[-1]
            spans[-1] = (start, max(known, address + length - start), offset)
        else:
            spans.append((address, length, _aligned(end)))
        start, known, offset = spans[-1]
        places[index] = (offset + address - start, length)
        end = offset + known
    return spans, [places[index] for index in range(len(buffers))], end


class FragmentReader:
    """The driver's end of one runner's slots.

    Args:
        receive: returns the descriptor of a segment that the runner has made.
    """

    def __init__(self, receive: Callable[[], int]) -> None:
        self._receive = receive
        self._slots: dict[int, mmap.mmap] = {}

    def read(self, place: Mapping[str, Any]) -> object:
        """The value that was written, copied out: the slot may be written again.

        Args:
            place: what ``FragmentWriter.write`` returned.
        """
        size, slot = place["size"], place["slot"]
        if size and (slot not in self._slots or len(self._slots[slot]) != size):
            descriptor = self._receive()
            self._slots[slot] = mmap.mmap(descriptor, size, prot=mmap.PROT_READ)
            os.close(descriptor)
        own = np.empty(place["used"], np.uint8)
        if size:
            own[:] = np.frombuffer(self._slots[slot], np.uint8, place["used"])
        view = own.data
        return pickle.loads(place["data"], buffers=[view[start : start + n] for start, n in place["places"]])

    def close(self) -> None:
        """Let go of the memory."""
        self._slots.clear()


# ---- weights ---------------------------------------------------------------------------------------------------------

_SLOTS = 3
_HEADER = 64
#: Number of the publication, version, checksum of the slot's bytes.
_STAMP = struct.Struct("<qqQ")
#: (module id, name, dtype, shape, offset in the slot)
Layout = list[tuple[str, str, str, tuple[int, ...], int]]


class WeightsBoard:
    """The driver's end: the newest weights, written over and over again in turn into three slots.

    Nobody ever waits: a reader that was overtaken while it copied sees that by the checksum, and copies again.
    """

    def __init__(self) -> None:
        self._layout: Layout = []
        self._memory: mmap.mmap | None = None
        self._descriptor = -1
        self._size = 0
        self._published = 0

    def publish(self, weights: Mapping[str, Mapping[str, np.ndarray]], version: int) -> bool:
        """Put weights up.

        Args:
            weights: {module_id: {name: array}}.
            version: their number.

        Returns:
            Whether the board is a new one, which readers have to be given (``notice``).
        """
        layout, end = [], 0
        arrays = []
        for module_id, parameters in weights.items():
            for name, value in parameters.items():
                array = np.ascontiguousarray(value)
                layout.append((module_id, name, array.dtype.str, np.shape(value), _aligned(end)))
                arrays.append((array, _aligned(end)))
                end = _aligned(end) + array.nbytes
        new = layout != self._layout or self._memory is None
        if new:
            self.close()
            self._layout, self._size = layout, _aligned(max(end, 1))
            total = _HEADER + _SLOTS * (_HEADER + self._size)
            self._descriptor, self._memory = _segment("learner-core-weights", total)
            self._published = 0
        memory = self._memory
        assert memory is not None  # made above
        number = self._published + 1
        start = _HEADER + (number % _SLOTS) * (_HEADER + self._size)
        for array, offset in arrays:
            if array.nbytes:
                target = np.frombuffer(memory, np.uint8, array.nbytes, start + _HEADER + offset)
                target[:] = array.reshape(-1).view(np.uint8)
        body = np.frombuffer(memory, np.uint8, self._size, start + _HEADER)
        _STAMP.pack_into(memory, start, number, version, xxhash.xxh3_64_intdigest(body.data))
        struct.pack_into("<q", memory, 0, number)
        self._published = number
        return new

    def notice(self) -> tuple[int, dict[str, object]] | None:
        """(descriptor, what a ``WeightsReader`` needs to know), or None before the first weights."""
        if self._memory is None:
            return None
        return self._descriptor, {"layout": self._layout, "size": self._size}

    def close(self) -> None:
        """Let go of the memory; readers keep it until they are given another."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._memory, self._descriptor = None, -1


class WeightsReader:
    """A runner's end.

    Args:
        descriptor: of the board's memory; closed here.
        layout, size: what ``WeightsBoard.notice`` said.
    """

    def __init__(self, descriptor: int, *, layout: Layout, size: int) -> None:
        self._layout, self._size = layout, size
        self._memory = mmap.mmap(descriptor, _HEADER + _SLOTS * (_HEADER + size), prot=mmap.PROT_READ)
        os.close(descriptor)
        self._taken = 0

    def take(self) -> tuple[int, dict[str, dict[str, np.ndarray]]] | None:
        """(version, weights) if there are newer ones than last time, else None. The arrays are the caller's."""
        while True:
            (number,) = struct.unpack_from("<q", self._memory, 0)
            if number == self._taken:
                return None
            start = _HEADER + (number % _SLOTS) * (_HEADER + self._size)
            body = np.frombuffer(self._memory, np.uint8, self._size, start + _HEADER).copy()
            stamped, version, checksum = _STAMP.unpack_from(self._memory, start)
            if stamped == number and checksum == xxhash.xxh3_64_intdigest(body.data):
                break
        self._taken = number
        weights: dict[str, dict[str, np.ndarray]] = {}
        for module_id, name, dtype, shape, offset in self._layout:
            count = int(np.prod(shape, dtype=np.int64))
            array = np.frombuffer(body, np.dtype(dtype), count, offset).reshape(shape)
            weights.setdefault(module_id, {})[name] = array
        return version, weights
