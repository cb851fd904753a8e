"""State trees on disk: written atomically and durably, read with every checksum verified.

Needs a POSIX file system with rename and fsync. Refuses anything that is not an intact state file of a known version.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import mmap as mmaps
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import xxhash

from ..errors import FormatError, StateError, StateIOError
from .dtypes import allocate
from .format import build, encode, resolve, verified
from .layout import HEADER_NBYTES, parse_header
from .manifest import Layout, parse_manifest

__all__ = [
    "damaged_payloads",
    "load_state",
    "read_layout",
    "save_state",
    "sweep_temporaries",
    "sync_folder",
    "write_atomically",
]

_SUFFIX = ".lctmp"
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{12}\.lctmp", re.DOTALL)
_BLOCK = 1 << 18
_BATCH = 256
_STRIDE = 1 << 23
_POPULATE_READ = 22  # MADV_POPULATE_READ of Linux; Python has no name for it

PathLike = str | os.PathLike[str]


def save_state(path: PathLike, tree: Any, *, info: Mapping[str, Any] | None = None) -> None:
    """Write a state tree to exactly one file, atomically and durably.

    Until the new file is complete and on the disk, `path` goes on holding the old one; after any fault or kill it
    holds one of the two. Arrays are written from where they lie: should another thread change one meanwhile, that is
    noticed and refused.

    Args:
        path: The file; its folder must exist. A symbolic link is followed.
        tree: Nested dicts (str or int keys) and lists of None, bool, int, float, str, bytes, numpy arrays and scalars.
        info: Provenance to store beside it (str keys, plain values); `writer` and `created` are filled in.

    Raises:
        StateError: a leaf, named by its path, has no place in a state, or an array was changed while it was being
            written; the old file is intact.
        StateIOError: the operating system refused a step (also an OSError, with its errno); the old file is intact.
    """
    from .. import __version__

    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    write_atomically(path, encode(tree, info={"writer": f"learner-core {__version__}", "created": now, **(info or {})}))


def load_state(path: PathLike, *, mmap: bool = False) -> Any:
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
        return verified(_mapped(descriptor, nbytes), layout, copy=False) if mmap else _read_payloads(descriptor, layout)


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


# Writing ---------------------------------------------------------------------------------------------------------


def write_atomically(path: PathLike, buffers: Iterable[Any]) -> None:
    """Replace a file by new bytes so that at every moment one of the two is there, whole.

    Args:
        path: The file.
        buffers: Its new bytes.

    Raises:
        StateIOError: a step failed. The old file is intact and no temporary is left; only when the very last step
            failed, the fsync of the folder, the new file is in place and merely not known to survive a power loss.
    """
    target = os.path.realpath(os.fspath(path))
    folder, name = os.path.split(target)
    temporary: str | None = None
    descriptor = -1
    try:
        if os.path.isdir(target):
            raise IsADirectoryError(21, "Is a directory")
        # The order is what makes this safe:
        # 1. lock the temporary, so that no sweeper takes it for an abandoned one;
        temporary, descriptor = _create(folder, name)
        # 2. write and fsync it: rename may reach the disk before data that were not synced;
        _write_all(descriptor, buffers)
        os.fsync(descriptor)
        # 3. rename: readers see the old file or the new one;
        os.replace(temporary, target)
        temporary = None
        # 4. fsync the folder: without it a power loss may undo the rename.
        sync_folder(folder)
    except OSError as error:
        raise StateIOError.of(error, f"cannot save {target}") from error
    finally:
        # The name goes before the lock: a sweeper must never find an unlocked name that is ours.
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)
    sweep_temporaries(folder, is_target=name.__eq__)


def _create(folder: str, name: str) -> tuple[str, int]:
    """A new locked temporary file: its path and descriptor."""
    for _ in range(100):
        temporary = os.path.join(folder, f".{name}.{secrets.token_hex(6)}{_SUFFIX}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            with contextlib.suppress(OSError):  # a file system without locks: then nothing there is ever swept either
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:  # not swept between open and flock
                return temporary, descriptor
            os.close(descriptor)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            with contextlib.suppress(OSError):
                os.close(descriptor)
            raise
    raise OSError(16, "temporary files vanish as soon as they are created")


def _write_all(descriptor: int, buffers: Iterable[Any]) -> None:
    """Write every byte, many small buffers in one call, large ones in strides, going on after short writes."""
    batch: list[memoryview] = []
    position = size = 0
    for buffer in buffers:
        view = memoryview(buffer).cast("B")
        for start in range(0, len(view), _STRIDE):
            batch.append(view[start : start + _STRIDE])
            size += len(batch[-1])
            if len(batch) < _BATCH and size < _STRIDE:
                continue
            _write_batch(descriptor, batch)
            with contextlib.suppress(OSError):
                # Starts writing to the disk what would otherwise wait for fsync (15 % of a save of 80 MB). Dirty pages
                # stay in the cache, whatever the name says.
                os.posix_fadvise(descriptor, position, size, os.POSIX_FADV_DONTNEED)
            position += size
            batch, size = [], 0
    _write_batch(descriptor, batch)


def _write_batch(descriptor: int, batch: list[memoryview]) -> None:
    while batch:
        written = os.writev(descriptor, batch)
        while batch and written >= len(batch[0]):
            written -= len(batch.pop(0))
        if batch and written:
            batch[0] = batch[0][written:]


def sync_folder(folder: str) -> None:
    """Make the names in a folder survive a power loss.

    Args:
        folder: The folder.

    Raises:
        OSError: it cannot be opened or synced.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def sweep_temporaries(folder: PathLike, *, is_target: Callable[[str], bool]) -> list[str]:
    """Remove what killed writers have left; nothing else, and nothing a living writer holds.

    Args:
        folder: Where to look.
        is_target: Whether a file of this name is one whose temporaries are ours to remove.

    Returns:
        The paths removed. What cannot be read or removed is left alone: sweeping never fails.
    """
    removed: list[str] = []
    with contextlib.suppress(OSError):
        for entry in os.listdir(folder):
            match = _TEMPORARY.fullmatch(entry)
            if match is None or not is_target(match[1]):
                continue
            stale = os.path.join(folder, entry)
            with contextlib.suppress(OSError):
                descriptor = os.open(stale, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held by a living writer: BlockingIOError
                    os.unlink(stale)
                    removed.append(stale)
                finally:
                    os.close(descriptor)
    return removed


# Reading ---------------------------------------------------------------------------------------------------------


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


def _mapped(descriptor: int, nbytes: int) -> memoryview:
    """The whole file, read into the page cache: a disk that fails is an error here instead of a signal later."""
    try:
        mapped = mmaps.mmap(descriptor, nbytes, access=mmaps.ACCESS_READ)
    except ValueError:
        raise FormatError("truncated while it was being read") from None
    try:
        mapped.madvise(_POPULATE_READ)
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: Linux before 5.14 reads page by page, when it is asked to
            raise OSError(errno.EIO, "the disk did not deliver all of the file") from error
    return memoryview(mapped)


def _layout(descriptor: int, nbytes: int) -> Layout:
    front = _read(descriptor, 0, min(nbytes, HEADER_NBYTES))
    manifest_nbytes, checksum = parse_header(front, file_nbytes=nbytes)
    return parse_manifest(_read(descriptor, HEADER_NBYTES, manifest_nbytes), checksum=checksum, file_nbytes=nbytes)


def damaged_payloads(path: PathLike) -> tuple[Layout, set[int]]:
    """Verify every byte of a file while holding no more than a megabyte of its arrays.

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
        scratch = memoryview(bytearray(_BLOCK))
        damaged = set()
        for chunk in layout.chunks:
            checksum = xxhash.xxh3_64()
            for start in range(0, chunk.nbytes, _BLOCK):
                block = scratch[: min(_BLOCK, chunk.nbytes - start)]
                _read_into(descriptor, chunk.start + start, block)
                checksum.update(block)
            sound = checksum.intdigest() == layout.payloads[chunk.payload].checksums[chunk.number]
            if not sound or _read(descriptor, chunk.start - len(chunk.gap), len(chunk.gap)) != chunk.gap:
                damaged.add(chunk.payload)
        return layout, damaged


def _read_payloads(descriptor: int, layout: Layout) -> Any:
    """Read every payload into memory of its own, hashing each block while it is in the processor's cache."""
    paths = layout.paths()
    contents: list[memoryview] = []
    for chunk in layout.chunks:
        payload, path = layout.payloads[chunk.payload], paths[chunk.payload]
        while len(contents) <= chunk.payload:
            contents.append(allocate(layout.payloads[len(contents)].nbytes))
        if _read(descriptor, chunk.start - len(chunk.gap), len(chunk.gap)) != chunk.gap:
            raise FormatError("the bytes before its data are damaged", path=path)
        offset = chunk.number * layout.chunk_nbytes
        target = contents[chunk.payload][offset : offset + chunk.nbytes]
        checksum = xxhash.xxh3_64()
        for start in range(0, chunk.nbytes, _BLOCK):
            block = target[start : start + _BLOCK]
            _read_into(descriptor, chunk.start + start, block)
            checksum.update(block)
        if checksum.intdigest() != payload.checksums[chunk.number]:
            raise FormatError(f"chunk {chunk.number} of its data is damaged: wrong checksum", path=path)
    contents += [memoryview(b"")] * (len(layout.payloads) - len(contents))
    values: list[Any] = []
    for index, payload in enumerate(layout.payloads):
        values.append(build(payload, contents[index], paths[index]))
        contents[index] = memoryview(b"")  # long bytes and str have just been copied: let go of the first copy
    return resolve(layout.tree, values.__getitem__)
