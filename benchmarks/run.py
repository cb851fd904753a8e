"""What ``make bench`` runs: the update beside other libraries, then what importing costs.

    python benchmarks/run.py [arguments of benchmarks/update/run.py]

The other libraries get an environment of their own, ``.venv-bench``, with the same torch as ours.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / ".venv-bench"
PACKAGES = ["stable-baselines3==2.9.2", "gymnasium[mujoco]", "torch"]


def peers_python() -> Path:
    """The interpreter of the peers' environment, which is made if it is missing or of another description."""
    constraints = ROOT / "constraints.txt"
    described = f"{PACKAGES} {sys.version_info[:2]}".encode() + constraints.read_bytes()
    stamp = PEERS / f".installed-{hashlib.sha256(described).hexdigest()[:16]}"
    python = PEERS / "bin" / "python"
    if not stamp.exists():
        print(f"installing {' '.join(PACKAGES)} into {PEERS.name}", flush=True)
        if not python.exists():
            venv.create(PEERS, with_pip=True)
        command = [str(python), "-m", "pip", "install", "--quiet", *PACKAGES, "-c", str(constraints)]
        subprocess.run(command, check=True)
        for old in PEERS.glob(".installed-*"):
            old.unlink()
        stamp.touch()
    return python


def main() -> int:
    """Run both benchmarks; the first failure's exit status, or 0."""
    environment = {**os.environ, "LC_BENCH_PYTHON": str(peers_python())}
    folder = Path(__file__).parent
    for script, arguments in (("update/run.py", sys.argv[1:]), ("startup.py", [])):
        finished = subprocess.run([sys.executable, str(folder / script), *arguments], env=environment, check=False)
        if finished.returncode:
            return finished.returncode
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
