"""The core imports no framework: held in fresh processes where every framework is made unimportable."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

FRAMEWORKS = ["torch", "tensorflow", "keras", "jax", "horovod", "ray", "learner_core_torch", "learner_core_tf"]

IMPORT_EVERYTHING = """
import importlib, json, pkgutil, sys
for name in json.loads(sys.argv[1]):
    sys.modules[name] = None
package = importlib.import_module(sys.argv[2])
names = [package.__name__]
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    importlib.import_module(module.name)
    names.append(module.name)
print(json.dumps({"names": names, "loaded": [m for m in sys.modules if sys.modules[m] is not None]}))
"""

FIRST_IMPORT = """
import json, resource, sys, time
base_kib = int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1])
start = time.process_time()
import learner_core
seconds = time.process_time() - start
kib = int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1])
print(json.dumps({"seconds": seconds, "total_mb": kib / 1024, "extra_mb": (kib - base_kib) / 1024,
                  "loaded": list(sys.modules)}))
"""


def _python(code: str, *arguments: str) -> dict[str, list[str]]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize("package", ["learner_core", "learner_core_algorithms"])
def test_every_module_imports_without_any_framework(package: str) -> None:
    result = _python(IMPORT_EVERYTHING, json.dumps(FRAMEWORKS), package)
    assert package in result["names"]
    # Lazily, inside functions only: gymnasium costs 0.2 s, matplotlib more.
    roots = {name.partition(".")[0] for name in result["loaded"]}
    assert not roots & {"gymnasium", "matplotlib", "tensorboard"}


def test_import_stays_within_its_budget() -> None:
    attempts = [_python(FIRST_IMPORT) for _ in range(3)]
    roots = {name.partition(".")[0] for name in attempts[0]["loaded"]}
    assert not roots & {"torch", "tensorflow", "keras", "jax", "gymnasium", "matplotlib", "ray", "horovod"}
    seconds = min(float(attempt["seconds"]) for attempt in attempts)
    megabytes = min(float(attempt["total_mb"]) for attempt in attempts)
    assert seconds <= 0.25
    assert megabytes <= 45
