"""Environments of their own for the libraries that ours is measured beside, made when they are first needed.

    python benchmarks/peer_environments.py .venv-rllib        or: make venv-rllib

Each has the torch of constraints.txt. An environment is made anew in place when its description here has changed.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

#: Folder -> packages, and whether every version of constraints.txt holds. RLlib pins gymnasium and others itself.
ENVIRONMENTS: dict[str, tuple[list[str], bool]] = {
    ".venv-bench": (["stable-baselines3==2.9.2", "gymnasium[mujoco]", "torch"], True),
    ".venv-rllib": (["ray[rllib]==2.60.0", "torch"], False),
}

__all__ = ["ENVIRONMENTS", "peer_python"]


def peer_python(name: str) -> Path:
    """The interpreter of an environment, which is made if it is missing or of another description.

    Args:
        name: folder below the repository's root, a key of ``ENVIRONMENTS``.

    Returns:
        Path of its ``python``.

    Raises:
        subprocess.CalledProcessError: pip cannot install it; its own words are above.
    """
    packages, constrained = ENVIRONMENTS[name]
    constraints = ROOT / "constraints.txt"
    lines = constraints.read_text().splitlines()
    pins = [str(constraints)] if constrained else []
    if not constrained:
        packages = [next((pin for pin in lines if pin.startswith(f"{p}==")), p) for p in packages]
    described = f"{packages} {sys.version_info[:2]}".encode() + (constraints.read_bytes() if constrained else b"")
    folder = ROOT / name
    stamp = folder / f".installed-{hashlib.sha256(described).hexdigest()[:16]}"
    python = folder / "bin" / "python"
    if not stamp.exists():
        print(f"installing {' '.join(packages)} into {name}", flush=True)
        if not python.exists():
            venv.create(folder, with_pip=True)
        command = [str(python), "-m", "pip", "install", "--quiet", *packages]
        for path in pins:
            command += ["-c", path]
        subprocess.run(command, check=True)
        for old in folder.glob(".installed-*"):
            old.unlink()
        stamp.touch()
    return python


if __name__ == "__main__":
    for wanted in sys.argv[1:] or list(ENVIRONMENTS):
        print(peer_python(wanted))
