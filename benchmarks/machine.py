"""What a benchmark's report says of the machine."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

__all__ = ["output", "processor"]


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def output(command: Sequence[str]) -> str:
    """What a command printed; "" if it failed."""
    return subprocess.run(list(command), capture_output=True, text=True, check=False).stdout.strip()
