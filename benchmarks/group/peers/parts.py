"""One learner of several, without the others: what the cost model of docs/scaling.md is made of, each measured alone.

The learner computes its slice of every minibatch on the path that learners of a ring take, with a reduction that
returns what it is given. The ring reduces vectors between stretches of other work, as between a learner's two halves.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
from ppo import ppo_config
from work import WORKS, batch, serve

from learner_core.group.collectives import load_collective
from learner_core.learning.ranks import WholeBatch
from learner_core.plugins import discovery


class Parts:
    """See the module.

    Args:
        backend, collective: names.
    """

    def __init__(self, backend: str, collective: str) -> None:
        backend_class = discovery.load("learner_core.backends", backend)
        backend_class.limit_threads(1)
        self._backend = backend_class(device="cpu", precision="float32")
        self._collective = load_collective(collective).create(self._backend)
        self._learner: Any = None
        self._joined = False

    def build(self, work: str, size: int, rank: int) -> dict[str, Any]:
        """A learner that believes itself to be one of ``size``, and two updates to warm up."""
        self._batch = batch(WORKS[work])
        config = ppo_config(self._backend.name, WORKS[work]).freeze()
        ring = WholeBatch(rank, size, lambda flat: flat) if size > 1 else None
        self._learner = config.get_learner_class()(config=config, backend=self._backend, ranks=ring)
        for _ in range(2):
            self.update()
        return {}

    def update(self) -> dict[str, Any]:
        """Seconds of one update."""
        began = time.perf_counter()
        self._learner.update_from_batch(self._batch)
        return {"seconds": time.perf_counter() - began}

    def prepare(self) -> dict[str, Any]:
        """Before the ring."""
        self._collective.prepare()
        return {}

    def join(self, rank: int, size: int, meeting: dict[str, str]) -> dict[str, Any]:
        """Into the ring."""
        self._collective.init(rank=rank, size=size, rendezvous=meeting, timeout_s=60.0)
        self._joined = True
        return {}

    def reduce(self, length: int, work_ms: float, count: int) -> dict[str, Any]:
        """Milliseconds that a sum of ``length`` float32 adds to a stretch of other work, the mean of ``count``."""
        flat = self._backend.from_numpy(np.ones(length, np.float32))
        matrix = np.ones((96, 96), np.float32)

        def work() -> None:
            until = time.perf_counter() + work_ms / 1e3
            while time.perf_counter() < until:
                matrix @ matrix

        def seconds(reducing: bool) -> float:
            self._collective.barrier()
            began = time.perf_counter()
            for _ in range(count):
                work()
                if reducing:
                    self._collective.allreduce_flat_(flat)
            return time.perf_counter() - began

        seconds(True)
        return {"ms": 1e3 * (seconds(True) - seconds(False)) / count}

    def close(self) -> None:
        """Leave the ring."""
        if self._joined:
            self._collective.close()


if __name__ == "__main__":
    serve(Parts(*sys.argv[1:]))
