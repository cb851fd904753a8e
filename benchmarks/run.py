"""What ``make bench`` runs: the update beside other libraries, then what importing costs.

    python benchmarks/run.py [arguments of benchmarks/update/run.py]

The other libraries get an environment of their own, ``.venv-bench``, with the same torch as ours.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from peer_environments import peer_python


def main() -> int:
    """Run both benchmarks; the first failure's exit status, or 0."""
    environment = {**os.environ, "LC_BENCH_PYTHON": str(peer_python(".venv-bench"))}
    folder = Path(__file__).parent
    for script, arguments in (("update/run.py", sys.argv[1:]), ("startup.py", [])):
        finished = subprocess.run([sys.executable, str(folder / script), *arguments], env=environment, check=False)
        if finished.returncode:
            return finished.returncode
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
