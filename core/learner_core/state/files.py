"""State trees on disk: written atomically and durably, read with every checksum verified.

Needs a POSIX file system with rename and fsync. Refuses anything that is not an intact state file of a known version.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import mmap as mmaps
import os
import stat
from collections.abc import Callable, Iterator

import xxhash

from ..errors import FormatError, StateError, StateIOError
from ..version import __version__
from .atomic import PathLike, write_atomically
from .format import encode
from .layout import HEADER_NBYTES, Chunk, parse_header
from .manifest import Layout, parse_manifest
from .memory import drop_pages
from .payloads import BLOCK_NBYTES, read_tree
from .threads import batches, for_each
from .tree import Plain, Tree

__all__ = ["damaged_payloads", "load_mapping", "load_state", "read_layout", "save_state"]

_POPULATE_READ = 22  # MADV_POPULATE_READ of Linux; Python has no name for it


def save_state(path: PathLike, tree: Plain, *, info: Tree | None = None) -> None:
    """Write a state tree to exactly one file, atomically and durably.

    Until the new file is complete and on the disk, `path` goes on holding the old one; after any fault or kill it
    holds one of the two. Arrays are written from where they lie: should another thread change one meanwhile, that is
    noticed and refused.

    Args:
        path: The file; its folder must exist. What is there already must be a regular file, whose permissions the new
            one gets; a symbolic link is followed to such a file.
        tree: Nested dicts (str or int keys) and lists of None, bool, int, float, str, bytes, numpy arrays and scalars.
        info: Provenance to store beside it (str keys, plain values); `writer` and `created` are filled in.

    Raises:
        StateError: a leaf, named by its path, has no place in a state, or an array was changed while it was being
            written; the old file is intact.
        StateIOError: there is a folder, a device, a pipe or a socket at `path`, or it ends in a slash, or the operating
            system refused a step (also an OSError, with its errno); the old file is intact.
    """

    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    write_atomically(path, encode(tree, info={"writer": f"learner-core {__version__}", "created": now, **(info or {})}))


def load_state(path: PathLike, *, mmap: bool = False) -> Plain:
    """Read a state tree, verifying every byte of the file.

    Args:
        path: A file that `save_state` wrote.
        mmap: Map the file instead of reading it: arrays are then read-only views of the page cache, without a copy.
            The file must not be changed in place as long as they live (`save_state` never does that).

    Returns:
        The tree; without `mmap` every array has writable memory of its own.

    Raises:
        FormatError: the file is damaged, foreign, hostile or of a newer version; the message says what and where.
        StateIOError: the operating system cannot read it (also an OSError, with its errno).
    """
    with _opened(path) as (descriptor, nbytes):
        layout = _layout(descriptor, nbytes)
        return read_tree(_MappedFile(descriptor, nbytes) if mmap else _File(descriptor), layout, copy=not mmap)


def load_mapping(path: PathLike, *, is_mapped: Callable[[str], bool]) -> Tree:
    """As `load_state`, mapping some arrays and reading the others.

    What is mapped takes no memory of this process until it is read (`memory.copy_into` gives it back then).

    Args:
        path: A file that `save_state` wrote.
        is_mapped: Whether the array at a path in the tree (``state/learner/...``) is to be a read-only view.

    Returns:
        The tree.

    Raises:
        FormatError: as `load_state`.
        StateIOError: as `load_state`.
    """
    with _opened(path) as (descriptor, nbytes):
        layout = _layout(descriptor, nbytes)
        source = _MappedFile(descriptor, nbytes, keep=False)
        tree: Tree = read_tree(source, layout, copy=lambda place: not is_mapped(place))
        return tree


def read_layout(path: PathLike) -> Layout:
    """Read what a file says about itself without reading its arrays; their checksums are not verified.

    Args:
        path: A file that `save_state` wrote.

    Returns:
        Provenance, and the tree with references in place of arrays.

    Raises:
        FormatError: header, manifest or size of the file are not as they must be.
        StateIOError: the operating system cannot read it.
    """
    with _opened(path) as (descriptor, nbytes):
        return _layout(descriptor, nbytes)


@contextlib.contextmanager
def _opened(path: PathLike) -> Iterator[tuple[int, int]]:
    """Descriptor and size of a regular file; every error raised inside comes out with the file's path."""
    name = os.fspath(path)
    descriptor = -1
    try:
        # O_NONBLOCK: opening a named pipe must not wait for a writer.
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise FormatError("not a regular file" if not stat.S_ISDIR(status.st_mode) else "a folder, not a file")
        yield descriptor, status.st_size
    except FormatError as error:
        located = FormatError(f"{name}: {error}")
        located.path = error.path
        raise located from None
    except StateError:
        raise
    except MemoryError:
        raise StateError(f"{name}: the file is intact so far, but its arrays do not fit into memory") from None
    except OSError as error:
        raise StateIOError.of(error, f"cannot read {name}") from error
    finally:
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _read(descriptor: int, start: int, nbytes: int) -> bytes:
    data = os.pread(descriptor, nbytes, start)
    while len(data) < nbytes:
        more = os.pread(descriptor, nbytes - len(data), start + len(data))
        if not more:
            raise FormatError("truncated while it was being read")
        data += more
    return data


def _read_into(descriptor: int, start: int, target: memoryview) -> None:
    while len(target):
        count = os.preadv(descriptor, [target], start)
        if not count:
            raise FormatError("truncated while it was being read")
        start += count
        target = target[count:]


class _File:
    """An open file as a `Source`; without a position, so that several threads may read.

    Args:
        descriptor: Of the file.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def piece(self, start: int, nbytes: int) -> bytes:
        return _read(self._descriptor, start, nbytes)

    def view(self, start: int, nbytes: int) -> memoryview:
        return memoryview(self.piece(start, nbytes))

    def verified(self, start: int, nbytes: int) -> None:
        pass

    def fill(self, target: memoryview, start: int) -> None:
        _read_into(self._descriptor, start, target)


class _MappedFile(_File):
    """As `_File`, but that views are of the page cache.

    Args:
        descriptor: Of the file.
        nbytes: Its size.
        keep: Whether pages stay in this process once they have been verified, for they are about to be read.
    """

    def __init__(self, descriptor: int, nbytes: int, *, keep: bool = True) -> None:
        super().__init__(descriptor)
        self._keep = keep
        try:
            self._mapped = mmaps.mmap(descriptor, nbytes, access=mmaps.ACCESS_READ)
        except ValueError:
            raise FormatError("truncated while it was being read") from None

    def view(self, start: int, nbytes: int) -> memoryview:
        # Read into the page cache first: a disk that fails is an error here instead of a signal later.
        page = start - start % mmaps.PAGESIZE
        try:
            self._mapped.madvise(_POPULATE_READ, page, start + nbytes - page)
        except OSError as error:
            if error.errno != errno.EINVAL:  # EINVAL: Linux before 5.14 reads page by page, when it is asked to
                raise OSError(errno.EIO, "the disk did not deliver all of the file") from error
        return memoryview(self._mapped)[start : start + nbytes]

    def verified(self, start: int, nbytes: int) -> None:
        if not self._keep:
            drop_pages(self._mapped, start, nbytes)


def _layout(descriptor: int, nbytes: int) -> Layout:
    front = _read(descriptor, 0, min(nbytes, HEADER_NBYTES))
    manifest_nbytes, checksum = parse_header(front, file_nbytes=nbytes)
    return parse_manifest(_read(descriptor, HEADER_NBYTES, manifest_nbytes), checksum=checksum, file_nbytes=nbytes)


def damaged_payloads(path: PathLike) -> tuple[Layout, set[int]]:
    """Verify every byte of a file while holding no more than a few megabytes of its arrays.

    Args:
        path: A file that `save_state` wrote.

    Returns:
        What the file says about itself, and the indices of payloads whose bytes are damaged; empty for an intact file.

    Raises:
        FormatError: header, manifest or size of the file are not as they must be.
        StateIOError: the operating system cannot read it.
    """
    with _opened(path) as (descriptor, nbytes):
        layout = _layout(descriptor, nbytes)
        damaged: set[int] = set()

        def check(chunks: list[Chunk]) -> None:
            scratch = memoryview(bytearray(BLOCK_NBYTES))
            for chunk in chunks:
                checksum = xxhash.xxh3_64()
                for start in range(0, chunk.nbytes, BLOCK_NBYTES):
                    block = scratch[: min(BLOCK_NBYTES, chunk.nbytes - start)]
                    _read_into(descriptor, chunk.start + start, block)
                    checksum.update(block)
                sound = checksum.intdigest() == layout.payloads[chunk.payload].checksums[chunk.number]
                if not sound or _read(descriptor, chunk.start - len(chunk.gap), len(chunk.gap)) != chunk.gap:
                    damaged.add(chunk.payload)

        for_each(check, list(batches(layout.chunks, lambda chunk: chunk.nbytes)), nbytes=nbytes)
        return layout, damaged
