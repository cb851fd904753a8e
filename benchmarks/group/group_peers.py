"""The peers of the group benchmarks: what is started, and what its groups measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from peer_environments import peer_python
from peer_process import PeerProcess
from work import Work

__all__ = ["FOLDER", "PEERS", "Peer", "start_peer"]

FOLDER = Path(__file__).parent

#: name -> (script, arguments, sizes).
PEERS: dict[str, tuple[str, list[str], list[int]]] = {
    "torch, torch": ("ours.py", ["torch", "torch"], [1, 2]),
    "torch, horovod": ("ours.py", ["torch", "horovod"], [2]),
    "tf, horovod": ("ours.py", ["tf", "horovod"], [1, 2]),
    "rllib": ("rllib.py", [], [1, 2]),
    "ddp": ("ddp.py", [], [1, 2]),
}


def start_peer(name: str, script: str, arguments: list[str]) -> PeerProcess:
    """A process of a script in ``peers``; RLlib's has an environment of its own."""
    python = str(peer_python(".venv-rllib")) if name == "rllib" else sys.executable
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "RAY_DEDUP_LOGS": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    command = [python, str(FOLDER / "peers" / script), *arguments]
    return PeerProcess(name, command, folders=[FOLDER, FOLDER / "peers"], environment=quiet)


class Peer:
    """What a peer has measured.

    Args:
        name: in ``PEERS``.
        sizes: of its groups; by default those that ``PEERS`` has.
    """

    def __init__(self, name: str, sizes: list[int] | None = None) -> None:
        self.name = name
        self.sizes = sizes or PEERS[name][2]
        self.num_parameters = 0
        self.facts: dict[int, dict[str, Any]] = {}
        self.rounds: dict[int, list[dict[str, float]]] = {size: [] for size in self.sizes}

    def measure(
        self, work: Work, size: int, rounds: int, *, before_end: Callable[[PeerProcess], None] | None = None
    ) -> None:
        """Start one group, let it make so many updates, end it."""
        script, arguments, _ = PEERS[self.name]
        process = start_peer(self.name, script, arguments)
        try:
            facts = process.ask(do="build", work=work.name, size=size, starts=1 if size in self.facts else 3)
            print(f"  {self.name} x{size}: {json.dumps(facts)}", flush=True)
            self.facts.setdefault(size, facts)
            self.num_parameters = facts["num_parameters"]
            self.rounds[size] += [process.ask(do="round") for _ in range(rounds)]
            if before_end is not None:
                before_end(process)
        finally:
            process.close()
