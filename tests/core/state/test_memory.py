"""Memory that states are read into."""

from __future__ import annotations

import mmap
import sys

import numpy as np
import pytest

from learner_core.state import memory
from learner_core.state.format import decode, encode

PAGES = 64
NBYTES = PAGES * mmap.PAGESIZE


def resident(mapped: memoryview) -> int:
    """How many bytes of a mapping of this process have pages, as the kernel counts them."""
    begin = np.frombuffer(mapped, np.uint8).ctypes.data
    held = 0
    with open("/proc/self/smaps") as file:
        inside = False
        for line in file:
            first = line.split(maxsplit=1)[0]
            if "-" in first and not first.endswith(":"):
                low, high = (int(bound, 16) for bound in first.split("-"))
                inside = low <= begin < high
            elif inside and first == "Rss:":
                held = int(line.split()[1]) * 1024
    return held


def test_mapped_memory_is_zero_and_writable() -> None:
    mapped = memory.map_memory(NBYTES + 1)
    assert len(mapped) == NBYTES + 1 and mapped.format == "B" and not any(mapped)
    mapped[-1] = 7
    assert mapped[-1] == 7


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone brings pages in when asked")
def test_touching_brings_pages_in_before_they_are_filled() -> None:
    if memory._madvise() is None or not _can_populate():
        pytest.skip("this kernel is older than 5.14")
    mapped = memory.map_memory(1 << 26)
    before = resident(mapped)
    memory.touch(mapped[5 : (1 << 25) + 5])
    assert resident(mapped) - before >= 1 << 25


def _can_populate() -> bool:
    call = memory._madvise()
    mapped = memory.map_memory(NBYTES)
    return call is not None and call(np.frombuffer(mapped, np.uint8).ctypes.data, NBYTES, memory._POPULATE_WRITE) == 0


def test_touching_changes_nothing_that_is_there() -> None:
    mapped = memory.map_memory(NBYTES)
    mapped[:] = bytes(range(256)) * (NBYTES // 256)
    for part in (mapped, mapped[1:2], mapped[mmap.PAGESIZE - 1 : mmap.PAGESIZE + 1], mapped[-1:], mapped[:0]):
        memory.touch(part)
    assert mapped == bytes(range(256)) * (NBYTES // 256)


@pytest.mark.parametrize("madvise", [None, lambda begin, nbytes, advice: -1], ids=["none", "refuses"])
def test_a_system_that_cannot_bring_pages_in_decodes_all_the_same(monkeypatch, madvise) -> None:
    monkeypatch.setattr(memory, "_madvise", lambda: madvise)
    tree = {"large": np.arange(memory.MAPPED_NBYTES // 4 + 3, dtype=np.float32)}
    read = decode(encode(tree).tobytes())
    np.testing.assert_array_equal(read["large"], tree["large"])


def test_more_memory_than_there_is_is_a_memory_error() -> None:
    with pytest.raises(MemoryError, match="bytes cannot be allocated"):
        memory.map_memory(1 << 62)
