"""A peer is a process that answers the driver's lines: ``build``, ``check``, ``round``, ``close``; JSON both ways.

Answers go to what standard output was when the process began; whatever a framework prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from typing import Any, Protocol

from workloads import WORKLOADS, Workload

__all__ = ["Peer", "serve"]


class Peer(Protocol):
    """What a peer implements."""

    def build(self, workload: Workload, options: dict[str, Any]) -> dict[str, Any]:
        """Make everything ready, compilation included; answers ``num_parameters`` and what else is worth noting."""

    def check(self) -> dict[str, float]:
        """Train one step on the first minibatch from the initial weights: ``loss`` and ``gradient_norm``."""

    def round(self) -> None:
        """One update on the prepared rollout."""


def serve(peer: Peer) -> None:
    """Answer lines until ``close`` or the end of the input."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    # Allocators and lazily loaded code are warm after this many updates.
    warm_up = 2
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        if request["do"] == "close":
            break
        if request["do"] == "build":
            start = time.perf_counter()
            answer = peer.build(WORKLOADS[request["workload"]], request["options"])
            answer["build_s"] = time.perf_counter() - start
        elif request["do"] == "check":
            answer = dict(peer.check())
            for _ in range(warm_up):
                peer.round()
            answer["rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        elif request["do"] == "round":
            start, cpu = time.perf_counter(), time.process_time()
            peer.round()
            answer = {"seconds": time.perf_counter() - start, "cpu_s": time.process_time() - cpu}
        print(json.dumps(answer), file=answers, flush=True)
