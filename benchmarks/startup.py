"""What importing costs: CPU seconds, memory, and which packages come along.

    python benchmarks/startup.py [--repeat N] [--out FOLDER]

Every figure is of a fresh interpreter, the best of N; that of a bare interpreter is in the first line. numpy is what
``import learner_core`` needs and itself costs most of it.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

#: What is run in a fresh interpreter.
_CASES = {
    "python": "pass",
    "import numpy": "import numpy",
    "import learner_core": "import learner_core",
    "PPOConfig()": "from learner_core_algorithms import PPOConfig; PPOConfig()",
    "learner-core --help": "import learner_core.cli.main as m\ntry: m.main(['--help'])\nexcept SystemExit: pass",
    "import torch": "import torch",
    "import tensorflow": "import tensorflow",
}
_MEASURE = """
import resource, sys, time
began = time.perf_counter()
exec({code!r})
wall = time.perf_counter() - began
usage = resource.getrusage(resource.RUSAGE_SELF)
frameworks = [n for n in ("torch", "tensorflow", "keras", "jax", "gymnasium") if n in sys.modules]
sys.stderr.write("\\n@@" + repr((usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss / 1024, frameworks)))
"""


def measure(code: str, repeat: int) -> dict[str, Any]:
    """Best CPU and wall seconds, memory in MB, frameworks loaded."""
    found = []
    for _ in range(repeat):
        command = [sys.executable, "-c", _MEASURE.format(code=code)]
        process = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(eval(process.stderr.rsplit("@@", 1)[1]))
    return {
        "cpu_s": min(each[0] for each in found),
        "wall_s": min(each[1] for each in found),
        "rss_mb": min(each[2] for each in found),
        "frameworks": found[0][3],
    }


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "startup")
    given = parser.parse_args()
    found = {name: measure(code, given.repeat) for name, code in _CASES.items()}
    lines = [
        "# What importing costs",
        "",
        f"- date: {time.strftime('%Y-%m-%d %H:%M')}",
        f"- python: {platform.python_version()}, best of {given.repeat} fresh interpreters",
        "- command: python benchmarks/startup.py",
        "",
        "| | CPU, s | RSS, MB | frameworks loaded |",
        "|---|---|---|---|",
    ]
    for name, case in found.items():
        lines.append(f"| {name} | {case['cpu_s']:.2f} | {case['rss_mb']:.0f} | {', '.join(case['frameworks'])} |")
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "startup.md").write_text("\n".join([*lines, ""]))
    (given.out / "startup.json").write_text(json.dumps(found, indent=1) + "\n")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
