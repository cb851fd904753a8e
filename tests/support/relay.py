"""A run handed from process to process: each holds one framework, takes the checkpoint up, goes on, saves.

A process stays alive between its turns, so a relay of many legs pays for each framework's import once. Every turn
builds its Algorithm anew from the file alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

__all__ = ["Runner"]

TESTS = Path(__file__).resolve().parents[1]


class Runner:
    """A process that trains on one backend, for as long as the ``with`` block lasts."""

    def __init__(self, backend_name: str, log: Path) -> None:
        self.backend_name = backend_name
        self._log = log
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
        environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "support.relay", backend_name],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def turn(self, start: Path, end: Path, num_iterations: int) -> None:
        """Take up the checkpoint ``start``, train, save to ``end``."""
        assert self._process.stdin is not None and self._process.stdout is not None
        order = {"start": str(start), "end": str(end), "num_iterations": num_iterations}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer == "done\n", f"{self.backend_name}: {answer}\n{self._log.read_text()}"


def _serve(backend_name: str) -> None:
    import learner_core as lc

    for line in sys.stdin:
        order: dict[str, Any] = json.loads(line)
        with lc.Algorithm.from_checkpoint(order["start"], framework=backend_name) as algo:
            for _ in range(order["num_iterations"]):
                algo.train()
            algo.save(order["end"])
        print("done", flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1])
