"""Memory for what is read from a state: from malloc where it is small, pages of its own where it is large.

On Linux fresh pages are brought in block by block, right before they are filled and in the thread that fills them: one
system call instead of a fault a page, and the page is still in the cache. Elsewhere `touch` does nothing and the pages
come by themselves (docs/decisions/restore-cost.md has the figures).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
from collections.abc import Callable, Iterator

import numpy as np

from .dtypes import view_bytes

__all__ = ["MAPPED_NBYTES", "allocate", "copy_into", "drop_pages", "in_blocks", "map_memory", "touch", "trim"]

MAPPED_NBYTES = 1 << 25
"""From here on malloc maps every block anew in any case; below it reuses warm pages."""

_COPIED_NBYTES = 1 << 22
_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE of Linux 5.14; Python has no name for it


def allocate(nbytes: int) -> memoryview:
    """Writable memory that nobody else refers to.

    Large blocks are mapped here: numpy would ask for huge pages, and where memory is fragmented the kernel then moves
    pages about for seconds (800 MB in arrays of 66 MB, on a busy machine: 13.8 s with `np.empty`, 2.9 s this way).

    Args:
        nbytes: How much, in bytes.

    Returns:
        The memory (format "B"), not initialised.

    Raises:
        MemoryError: there is not so much.
    """
    if nbytes >= MAPPED_NBYTES:
        return map_memory(nbytes)
    return view_bytes(np.empty(nbytes, np.uint8))


def map_memory(nbytes: int) -> memoryview:
    """Memory of its own from the operating system, which gets it back as soon as nobody refers to it.

    Args:
        nbytes: How much, in bytes; not 0. It begins at a page.

    Returns:
        The memory (format "B"), writable, all zero; its pages are not there yet (`touch`).

    Raises:
        MemoryError: there is not so much.
    """
    try:
        return memoryview(mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    except (OSError, OverflowError, ValueError) as error:
        raise MemoryError(f"{nbytes} bytes cannot be allocated") from error


def touch(memory: memoryview) -> None:
    """Bring in the pages of a part of mapped memory that is about to be filled; what it holds stays as it is.

    Only a matter of speed, so a system that cannot do it is no error. Other threads go on meanwhile.

    Args:
        memory: A writable part, format "B", of memory from `map_memory`, or of `allocate` from `MAPPED_NBYTES` on.
    """
    madvise = _madvise()
    if madvise is not None and len(memory):
        begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        end = begin + len(memory)
        begin -= begin % mmap.PAGESIZE
        madvise(begin, end - begin, _POPULATE_WRITE)


def copy_into(target: np.ndarray, source: np.ndarray) -> None:
    """``target[...] = source``; where ``source`` is a view of a mapped file, its pages are given back as it is read.

    Args:
        target: Of any dtype.
        source: Of the same shape.
    """
    if source.nbytes <= _COPIED_NBYTES:
        target[...] = source
        _let_go(source)
        return
    rows = max(1, _COPIED_NBYTES * len(source) // source.nbytes)
    for start in range(0, len(source), rows):
        target[start : start + rows] = source[start : start + rows]
        _let_go(source[start : start + rows])


def in_blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """The array in parts of a few megabytes; where it is a view of a mapped file, pages are given back once read.

    Args:
        array: Of any dtype and shape.

    Yields:
        Views of it along its first axis; the array itself if it is small.
    """
    if array.nbytes <= _COPIED_NBYTES or array.ndim == 0:
        yield array
        _let_go(array)
        return
    rows = max(1, _COPIED_NBYTES * len(array) // array.nbytes)
    for start in range(0, len(array), rows):
        yield array[start : start + rows]
        _let_go(array[start : start + rows])


def _let_go(array: np.ndarray) -> None:
    """Give back the pages of a view of a mapped file; read again, they come again. Other arrays stay as they are."""
    base: object = array
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    # Memory that may be written to is nobody's copy of a file: its pages would come back as zeros.
    if isinstance(base, mmap.mmap) and memoryview(base).readonly and array.flags.c_contiguous:
        start = array.ctypes.data - np.frombuffer(base, np.uint8, 1).ctypes.data
        drop_pages(base, start, array.nbytes)


def drop_pages(mapped: mmap.mmap, start: int, nbytes: int) -> None:
    """Let the operating system have the pages that lie wholly in a part of a mapped file; its cache keeps the file."""
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (start + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED, first, last - first)


def trim() -> None:
    """Ask malloc to give back what is free: after much work on large arrays it keeps some in case more comes."""
    with contextlib.suppress(OSError, AttributeError):  # another malloc than glibc's
        ctypes.CDLL(None).malloc_trim(0)


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    """The system's ``madvise``, which lets go of the interpreter's lock as Python's own does not; None: not Linux."""
    if not hasattr(mmap, "MAP_POPULATE"):
        return None
    try:
        call = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    call.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    call.restype = ctypes.c_int
    return lambda begin, nbytes, advice: int(call(begin, nbytes, advice))
