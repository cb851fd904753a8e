"""Copying and checksums on several processors: a few threads that live as long as one call.

Worth it for work that lets go of the interpreter's lock: numpy copies, xxhash, reads from files, first touches of fresh
memory. Nothing is kept between calls, neither a thread nor a lock, so a process may be forked at any time between them;
and what fails is what would have failed without threads: the first item, in their order, that cannot be done
(docs/decisions/restore-cost.md has the figures).
"""

from __future__ import annotations

import contextvars
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

__all__ = ["batches", "for_each", "num_processors"]

_MOST = 4  # memory is shared: beyond, more of them hardly help and only take processors from others
_WORTH_NBYTES = 1 << 22  # below, starting threads costs more than they save
_BATCH_NBYTES = 1 << 20

T = TypeVar("T")


def for_each(work: Callable[[T], None], items: Sequence[T], *, nbytes: int) -> None:
    """Call ``work`` with every item, in several threads where that pays; all of them have ended on return.

    Args:
        work: Called once per item, in any thread; what it does for one item must not depend on another's.
        items: Taken up in their order.
        nbytes: How much memory all of them move, in bytes.

    Raises:
        BaseException: what ``work`` raised for the first item it failed on, as a loop over the items would have; of
            the items behind that one some have been worked on, some have not.
    """
    num_threads = min(_MOST, len(items), num_processors()) if nbytes >= _WORTH_NBYTES else 1
    if num_threads <= 1:
        for item in items:
            work(item)
        return
    turns = _Turns(work, items)
    helpers: list[threading.Thread] = []
    try:
        for _ in range(num_threads - 1):
            helper = threading.Thread(target=contextvars.copy_context().run, args=(turns.run,), daemon=True)
            try:
                helper.start()
            except RuntimeError:  # no more threads in this process, or it is ending: those that are there do it
                break
            helpers.append(helper)
        turns.run()
    finally:
        turns.stop()
        _join(helpers)
    turns.raise_failure()


def num_processors() -> int:
    """Processors that this process may run on; where the system does not say, all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Turns(Generic[T]):
    """Hands out items one by one, until there are none or one has failed."""

    def __init__(self, work: Callable[[T], None], items: Sequence[T]) -> None:
        self._work = work
        self._items = enumerate(items)
        self._lock = threading.Lock()
        self._stopped = False
        self._failures: dict[int, BaseException] = {}

    def run(self) -> None:
        """Take items and work on them; in any number of threads."""
        while True:
            with self._lock:
                turn = None if self._stopped else next(self._items, None)
            if turn is None:
                return
            number, item = turn
            try:
                self._work(item)
            except BaseException as error:
                self._failures[number] = error
                self.stop()
                return

    def stop(self) -> None:
        """Hand out no more."""
        self._stopped = True

    def raise_failure(self) -> None:
        """Raise the first failure, if any: no item before it can be outstanding, for they went out in order."""
        failures, self._failures = self._failures, {}
        if not failures:
            return
        interrupts = [error for error in failures.values() if not isinstance(error, Exception)]
        failure = interrupts[0] if interrupts else failures[min(failures)]
        failures.clear()
        try:
            raise failure
        finally:
            del failure, interrupts  # or its traceback, which refers to this frame, would keep what was read alive


def _join(helpers: Iterable[threading.Thread]) -> None:
    """Wait for threads that end by themselves, whatever interrupts."""
    interrupt: BaseException | None = None
    for helper in helpers:
        while helper.is_alive():
            try:
                helper.join()
            except BaseException as error:  # Ctrl-C: they write to memory that the caller is about to let go of
                interrupt = error
    if interrupt is not None:
        raise interrupt


def batches(items: Iterable[T], nbytes_of: Callable[[T], int]) -> Iterator[list[T]]:
    """Cut items into runs of about a megabyte, so that a turn is worth taking.

    Args:
        items: In order.
        nbytes_of: Size of one, in bytes.

    Yields:
        Runs of at least one item, in order.
    """
    run: list[T] = []
    size = 0
    for item in items:
        run.append(item)
        size += nbytes_of(item)
        if size >= _BATCH_NBYTES:
            yield run
            run, size = [], 0
    if run:
        yield run
