"""A peer of a benchmark: a process of its own that answers lines of JSON, with one thread everywhere."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["PeerProcess"]

#: The folder with what all benchmarks share.
FOLDER = Path(__file__).parent


class PeerProcess:
    """A running peer.

    Args:
        name: as in the tables.
        command: what to start.
        folders: where its modules are found, beside those that all benchmarks share.
        environment: variables besides the driver's.
    """

    def __init__(
        self, name: str, command: Sequence[str], *, folders: Sequence[Path], environment: Mapping[str, str]
    ) -> None:
        self.name = name
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        found = [*(str(folder) for folder in (*folders, FOLDER)), os.environ.get("PYTHONPATH", "")]
        path = os.pathsep.join(found).rstrip(os.pathsep)
        self.process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **threads, **environment, "PYTHONPATH": path},
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a line, wait for the answer."""
        self.send(**request)
        return self.receive()

    def send(self, **request: Any) -> None:
        """Send a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        """Wait for the answer to the oldest line that has none."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"peer {self.name!r} ended with status {self.process.wait()}; its messages are above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def hang_up(self) -> None:
        """Tell it to end."""
        if self.process.stdin is not None:
            self.process.stdin.close()

    def close(self) -> None:
        """End it."""
        self.hang_up()
        self.process.wait()
