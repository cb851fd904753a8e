"""Run every suite, two at a time, each in the process it needs, and close with one line: N passed, N failed.

Usage: python tests/run_all.py [--slow] [--jobs N] [SUITE ...]

Logs and JUnit files go to .test-results/. A suite that crashes counts as one failure more.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / ".test-results"


@dataclass(frozen=True)
class Suite:
    """One pytest process. `backend` becomes LC_BACKEND."""

    name: str
    folder: str
    backend: str = ""


#: Only with --slow, or by name: it has nothing else.
LONG = [Suite("long-torch", "tests/long", "torch"), Suite("long-tf", "tests/long", "tf")]

# The longest first, so that two workers finish together.
SUITES = [
    Suite("group", "tests/group"),
    Suite("ray", "tests/on_ray"),
    Suite("hosts", "tests/hosts"),
    *LONG,
    Suite("torch", "tests/torch"),
    Suite("tf", "tests/tf"),
    Suite("shared-torch", "tests/shared", "torch"),
    Suite("shared-tf", "tests/shared", "tf"),
    Suite("parity", "tests/parity"),
    Suite("doors", "tests/doors"),
    Suite("cli", "tests/cli"),
    Suite("core", "tests/core"),
    Suite("shared-numpy", "tests/shared", "numpy"),
]


@dataclass
class Outcome:
    suite: Suite
    seconds: float
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list)
    log: Path = RESULTS


def run(suite: Suite, *, slow: bool) -> Outcome:
    """Run one suite to its end and count from its JUnit file."""
    log, report = RESULTS / f"{suite.name}.log", RESULTS / f"{suite.name}.xml"
    report.unlink(missing_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "MPLBACKEND": "Agg"}
    if suite.backend:
        environment["LC_BACKEND"] = suite.backend
    command = [sys.executable, "-m", "pytest", suite.folder, "-q", "--durations=10", f"--junitxml={report}"]
    command += ["-p", "no:cacheprovider", "--slow", "--timeout=0"] if slow else ["-p", "no:cacheprovider"]
    start = time.monotonic()
    with log.open("w") as stream:
        code = subprocess.run(command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT).returncode
    outcome = Outcome(suite, time.monotonic() - start, log=log)
    try:
        cases = list(ElementTree.parse(report).iter("testcase"))
    except (OSError, ElementTree.ParseError):
        cases = []
    for case in cases:
        if case.find("failure") is not None or case.find("error") is not None:
            outcome.failed += 1
            outcome.failures.append(f"{case.get('classname')}::{case.get('name')}")
        elif case.find("skipped") is not None:
            outcome.skipped += 1
        else:
            outcome.passed += 1
    no_tests = code == 5  # pytest's code for an empty folder
    if code != 0 and not outcome.failed and not no_tests:
        outcome.failed += 1
        outcome.failures.append(f"{suite.name}: pytest ended with exit code {code}")
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slow", action="store_true", help="the long tier as well")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="suites at a time")
    parser.add_argument("suites", nargs="*", help=f"only these of: {' '.join(s.name for s in SUITES)}")
    arguments = parser.parse_args()
    unknown = set(arguments.suites) - {suite.name for suite in SUITES}
    if unknown:
        parser.error(f"no such suite: {', '.join(sorted(unknown))}")
    chosen = [s for s in SUITES if s.name in arguments.suites or (not arguments.suites and s not in LONG)]
    if arguments.slow and not arguments.suites:
        chosen = SUITES
    suites = [s for s in chosen if (ROOT / s.folder).is_dir()]
    RESULTS.mkdir(exist_ok=True)
    outcomes: list[Outcome] = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for future in as_completed([pool.submit(run, suite, slow=arguments.slow) for suite in suites]):
            outcome = future.result()
            outcomes.append(outcome)
            counts = f"{outcome.passed} passed, {outcome.failed} failed, {outcome.skipped} skipped"
            print(f"{outcome.suite.name:14} {counts:42} {outcome.seconds:7.1f} s", flush=True)
            if outcome.failed:
                print("-" * 80, *outcome.log.read_text(errors="replace").splitlines()[-200:], "-" * 80, sep="\n")
    for outcome in outcomes:
        for failure in outcome.failures:
            print(f"FAILED {outcome.suite.name}: {failure}")
    passed, failed = sum(o.passed for o in outcomes), sum(o.failed for o in outcomes)
    print(f"{passed} passed, {failed} failed", flush=True)
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
