"""The queue in front of learners: asynchronous updates, one after the other, none lost without a word."""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from .results import Results, merge_results

__all__ = ["UpdateQueue"]


class UpdateQueue:
    """Asynchronous updates run in a thread of their own, in the order they were asked for.

    Args:
        update: a blocking update.
        limit: how many may wait or run.
        block: wait when the queue is full; else drop the update and count it.
    """

    def __init__(self, update: Callable[..., Results], *, limit: int, block: bool) -> None:
        self._update = update
        self._limit = limit
        self._block = block
        self._pending: deque[Future[Results]] = deque()
        self._finished: deque[Future[Results]] = deque()
        self._thread: ThreadPoolExecutor | None = None
        self._dropped = 0
        #: Seconds that updates have taken in all, waiting not counted.
        self.busy_seconds: float = 0.0

    def set_limit(self, limit: int, *, block: bool) -> None:
        """Another limit from now on, and what happens at it; what is queued stays."""
        self._limit, self._block = limit, block

    @property
    def depth(self) -> int:
        """How many wait or run."""
        self._collect()
        return len(self._pending)

    def run(self, **arguments: object) -> Results:
        """Update now, in this thread."""
        began = time.perf_counter()
        try:
            return self._update(**arguments)
        finally:
            self.busy_seconds += time.perf_counter() - began

    def submit(self, **arguments: object) -> Results:
        """Queue an update; returns the reduced results of earlier ones that have finished, ``{}`` if none has.

        Raises:
            LearnerCoreError: what an earlier queued update raised; this one is not queued then.
        """
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="learner")
        self._collect()
        if len(self._pending) >= self._limit and self._block:
            self._pending[0].exception()
            self._collect()
        results = self.take()
        if len(self._pending) < self._limit:
            # The caller may write into a batch as soon as this returns, and the update may begin much later.
            self._pending.append(
                self._thread.submit(self.run, **{name: _owned(value) for name, value in arguments.items()})
            )
        else:
            self._dropped += 1
        return results

    def _collect(self) -> None:
        while self._pending and self._pending[0].done():
            self._finished.append(self._pending.popleft())

    def _raise_first(self) -> None:
        """Raise the oldest error that nobody has heard of; results before and after it stay to be taken."""
        for future in self._finished:
            error = future.exception()
            if error is not None:
                self._finished.remove(future)
                raise error

    def take(self) -> Results:
        """Reduced results of the asynchronous updates that have finished since they were last taken.

        Raises:
            LearnerCoreError: what the oldest of them raised, once; the others' results are there at the next call.
        """
        self._collect()
        self._raise_first()
        done: list[Results] = [future.result() for future in self._finished]
        self._finished.clear()
        if not done and not self._dropped:
            return {}
        weights = [result.pop("_weights") for result in done if "_weights" in result]
        results = merge_results(done)
        if weights:
            results["_weights"] = weights[-1]
        results.setdefault("__all__", {}).update(
            num_updates_reduced=float(len(done)),
            num_updates_dropped=float(self._dropped),
            queue_depth=float(len(self._pending)),
        )
        self._dropped = 0
        return results

    def drain(self) -> None:
        """Wait until no asynchronous update is running; their results stay to be taken.

        Raises:
            LearnerCoreError: what the oldest of them raised, once.
        """
        self._wait()
        self._raise_first()

    def _wait(self) -> None:
        while self._pending:
            self._pending[0].exception()
            self._collect()

    def close(self) -> None:
        """Wait for what is running and release the thread; warn of errors that nobody has heard of."""
        if self._thread is None:
            return
        self._wait()
        self._thread.shutdown(wait=True)
        self._thread = None
        errors = [error for future in self._finished if (error := future.exception()) is not None]
        self._finished.clear()
        if errors:
            warnings.warn(
                f"{len(errors)} asynchronous update(s) failed and no later call could say so; "
                f"the first: {type(errors[0]).__name__}: {errors[0]}",
                RuntimeWarning,
                stacklevel=3,
            )


def _owned(tree: object) -> object:
    """Arguments of an update with arrays and containers of their own; what is neither is refused by the update."""
    if isinstance(tree, Mapping):
        return {key: _owned(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_owned(value) for value in tree]
    return tree.copy(order="K") if isinstance(tree, np.ndarray) else tree
