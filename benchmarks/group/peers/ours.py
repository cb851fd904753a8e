"""learner-core: groups of learner processes on one backend, over one collective."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import numpy as np
from ppo import ppo_config
from work import WORKS, batch, memory_mb, serve

from learner_core_algorithms.ppo.learner import PPOLearner


class TimedLearner(PPOLearner):
    """Knows how long its last update took."""

    seconds = 0.0

    def update_from_batch(self, *arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return super().update_from_batch(*arguments, **named)
        finally:
            self.seconds = time.perf_counter() - began


class LearnerCore:
    """See the module.

    Args:
        backend, collective: names.
    """

    def __init__(self, backend: str, collective: str) -> None:
        self._backend, self._collective = backend, collective
        self._group: Any = None

    def build(self, work: str, size: int, starts: int) -> dict[str, Any]:
        """A group, started several times: the first start imports the framework."""
        self._work = WORKS[work]
        self._batch = batch(self._work)
        seconds = []
        for _ in range(starts):
            self.close()
            began = time.perf_counter()
            config = ppo_config(self._backend, self._work)
            config.learners(num_learners=size, num_cpus_per_learner=1)
            config.learners(collective=self._collective, learner_class=TimedLearner)
            self._group = config.build_learner_group()
            seconds.append(time.perf_counter() - began)
        self.round()
        weights = self._group.foreach_learner(_weights)[0]["default_policy"]
        return {
            "starts": seconds,
            "memory": [memory_mb(pid) for pid in self._group.foreach_learner(_pid)],
            "submit_ms": self._submit(),
            "num_parameters": int(sum(np.size(value) for value in weights.values())),
        }

    def _submit(self) -> list[float]:
        """Milliseconds of asynchronous calls into a queue that has room."""
        found = []
        for _ in range(10):
            began = time.perf_counter()
            self._group.update_from_batch(batch=self._batch, async_update=True)
            found.append(1e3 * (time.perf_counter() - began))
            self._group.wait()
        return found

    def round(self) -> dict[str, Any]:
        """One update."""
        began = time.perf_counter()
        self._group.update_from_batch(batch=self._batch)
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "slowest_s": max(self._group.foreach_learner(_seconds))}

    def empty(self) -> dict[str, Any]:
        """Milliseconds of requests for nothing."""
        found = []
        for _ in range(20):
            began = time.perf_counter()
            self._group.foreach_learner(_nothing)
            found.append(1e3 * (time.perf_counter() - began))
        return {"ms": found}

    def close(self) -> None:
        """End the group."""
        if self._group is not None:
            self._group.shutdown()
            self._group = None


def _nothing(learner: Any) -> None:
    """Nothing."""


def _pid(learner: Any) -> int:
    return os.getpid()


def _seconds(learner: Any) -> float:
    return float(learner.seconds)


def _weights(learner: Any) -> Any:
    return learner.get_module_state()


if __name__ == "__main__":
    # Learners find this class by its module's name.
    from ours import LearnerCore as Peer

    serve(Peer(*sys.argv[1:]))
