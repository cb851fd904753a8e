"""One Learner in this process, with a queue in front for asynchronous updates."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ..errors import LearnerGroupError
from .results import merge_results

__all__ = ["LocalLearners"]


class LocalLearners:
    """The group of ``num_learners=0``.

    Asynchronous updates run one after the other in a thread of their own, in the order they were asked for; everything
    else waits for them first, so that it sees their effect.

    Args:
        config: frozen configuration.
        env: environment to take the spaces from.
    """

    def __init__(self, config: Any, env: Any) -> None:
        self.learner = config.get_learner_class()(config=config, env=env)
        self._limit = config.max_requests_in_flight_per_learner
        self._block = config.queue_full == "block"
        self._pending: deque[Future[Any]] = deque()
        self._finished: deque[Future[Any]] = deque()
        self._thread: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._dropped = 0

    def update(self, **arguments: Any) -> dict[str, Any]:
        """Update now and return the results."""
        self.drain()
        return dict(self.learner.update_from_batch(**arguments))

    def submit(self, **arguments: Any) -> dict[str, Any]:
        """Queue an update; returns the reduced results of earlier ones that have finished, ``{}`` if none has.

        Raises:
            LearnerCoreError: what an earlier queued update raised; this one is not queued then.
        """
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="learner")
        results = self.take()
        accepted = len(self._pending) < self._limit
        if not accepted and self._block:
            self._pending[0].exception()
            self._collect()
            accepted = True
        if accepted:
            self._pending.append(self._thread.submit(self.learner.update_from_batch, **arguments))
        else:
            self._dropped += 1
        return results

    def _collect(self) -> None:
        while self._pending and self._pending[0].done():
            self._finished.append(self._pending.popleft())

    def take(self) -> dict[str, Any]:
        """Reduced results of the asynchronous updates that have finished since they were last taken."""
        self._collect()
        done: list[dict[str, Any]] = []
        while self._finished:
            done.append(self._finished.popleft().result())
        if not done and not self._dropped:
            return {}
        results = merge_results(done)
        results.setdefault("__all__", {}).update(
            num_updates_reduced=float(len(done)),
            num_updates_dropped=float(self._dropped),
            queue_depth=float(len(self._pending)),
        )
        self._dropped = 0
        return results

    def drain(self) -> None:
        """Wait until no asynchronous update is running; their results stay to be taken."""
        while self._pending:
            self._pending[0].exception()
            self._collect()

    def foreach(self, function: Callable[[Any], Any]) -> list[Any]:
        """``[function(learner)]``."""
        self.drain()
        return [function(self.learner)]

    def close(self) -> None:
        """Wait for what is running and release the thread."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)
            self._thread = None


def refuse_closed() -> LearnerGroupError:
    """The error of a call after ``shutdown()``."""
    return LearnerGroupError("this LearnerGroup has been shut down; build a new one and give it the saved state")
