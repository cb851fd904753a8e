"""Try a ring: start its ranks as processes, reduce, broadcast, meet, and compare with what must come out.

``learner-core horovod doctor`` and the tests use it. The driver's deadline ends everything, whatever a rank does. Run
as a module it is one rank: ``python -m learner_core.group.ring_check COLLECTIVE BACKEND PRECISION``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from learner_core.errors import LearnerCoreError, LearnerGroupError
from learner_core.plugins import discovery
from learner_core.state.tree import Plain

from .collectives import load_collective

__all__ = ["RingReport", "check_ring"]

_LENGTH = 1000


@dataclass(frozen=True)
class RingReport:
    """What a ring did.

    Args:
        start_s: seconds from the first process to the last rank in the ring.
        allreduce_ms: the fastest sum of 1000 floats on rank 0.
    """

    start_s: float
    allreduce_ms: float


def check_ring(
    collective: str, backends: list[str], *, timeout_s: float = 60.0, precision: str = "float32"
) -> RingReport:
    """Start one rank per entry of ``backends`` and check what they compute together.

    Args:
        collective: ``"horovod"``, ``"torch"``, a third party's.
        backends: the framework of each rank.
        timeout_s: for everything together; then every rank is killed.
        precision: ``"float32"`` or ``"float64"``.

    Returns:
        How long it took.

    Raises:
        LearnerGroupError: the collective is missing, a rank failed or was not done in time, a number is wrong.
    """
    plugin = load_collective(collective)
    for backend in dict.fromkeys(backends):
        plugin.check(backend)
    start = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "learner_core.group.ring_check", collective, backend, precision],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for backend in backends
    ]
    deadline = threading.Timer(timeout_s, _kill, [ranks])
    deadline.start()
    try:
        # All import, then all meet: a rank that meets alone may run into the timeout.
        for rank, process in enumerate(ranks):
            _expect(rank, process, "prepared", timeout_s)
        with plugin.open_rendezvous(len(ranks), timeout_s=timeout_s) as meeting:
            for rank, process in enumerate(ranks):
                order = {"rank": rank, "size": len(ranks), "timeout_s": timeout_s, "meeting": meeting.for_rank(rank)}
                _write(process, order)
            for rank, process in enumerate(ranks):
                _expect(rank, process, "joined", timeout_s)
        start_s = time.monotonic() - start
        reports = [_expect(rank, process, "done", timeout_s) for rank, process in enumerate(ranks)]
        for rank, process in enumerate(ranks):
            if process.wait() != 0:
                raise LearnerGroupError(f"rank {rank} did not end well: exit code {process.returncode}")
        return RingReport(start_s, float(reports[0]["allreduce_ms"]))
    finally:
        deadline.cancel()
        for process in ranks:
            process.kill()
            process.communicate()


def _kill(ranks: list[subprocess.Popen[str]]) -> None:
    for process in ranks:
        process.kill()


def _write(process: subprocess.Popen[str], order: Mapping[str, object]) -> None:
    try:
        assert process.stdin is not None
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
    except OSError:
        pass  # it has died; what it said last is read next


def _expect(rank: int, process: subprocess.Popen[str], event: str, timeout_s: float) -> dict[str, Plain]:
    assert process.stdout is not None and process.stderr is not None
    for line in process.stdout:
        if not line.startswith("{"):
            continue  # frameworks print, too
        said: dict[str, Plain] = json.loads(line)
        if "error" in said:
            raise LearnerGroupError(f"rank {rank}: {said['error']}")
        if said["event"] == event:
            return said
    code = process.wait()
    tail = "\n".join(process.stderr.read().splitlines()[-5:])
    raise LearnerGroupError(f"rank {rank} ended (exit code {code}) or was not {event} within {timeout_s:g} s\n{tail}")


# ---- one rank --------------------------------------------------------------------------------------------------------


def _rank_main(collective_name: str, backend_name: str, precision: str) -> None:
    def say(**words: object) -> None:
        print(json.dumps(words), flush=True)

    try:
        backend = discovery.load("learner_core.backends", backend_name)(device="cpu", precision=precision)
        collective = load_collective(collective_name).create(backend)
        collective.prepare()
        say(event="prepared")
        order = json.loads(sys.stdin.readline())
        rank, size = order["rank"], order["size"]
        collective.init(rank=rank, size=size, rendezvous=order["meeting"], timeout_s=order["timeout_s"])
        say(event="joined")
        ramp = np.arange(_LENGTH, dtype=backend.numpy_float_dtype)
        times = []
        for _ in range(20):
            flat = backend.from_numpy(ramp * (rank + 1))
            begin = time.perf_counter()
            total = backend.to_numpy(collective.allreduce_flat_(flat))
            times.append(time.perf_counter() - begin)
            _same(total, ramp * (size * (size + 1) // 2), "the sum over the ranks")
        for root in range(size):
            got = collective.broadcast(backend.from_numpy(ramp + rank), root=root, name=f"state_{root}")
            _same(backend.to_numpy(got), ramp + root, f"rank {root}'s broadcast")
        collective.barrier()
        say(event="done", allreduce_ms=min(times) * 1e3)
        collective.close()
    except LearnerCoreError as error:
        say(error=str(error))
        sys.exit(1)


def _same(got: np.ndarray, expected: np.ndarray, what: str) -> None:
    if got.dtype != expected.dtype or not np.array_equal(got, expected):
        raise LearnerGroupError(f"{what} is wrong: expected {expected[:4]}..., got {got[:4]}...")


if __name__ == "__main__":
    _rank_main(*sys.argv[1:])
