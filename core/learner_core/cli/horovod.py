"""``learner-core horovod``: build the ring's library for this environment, and say whether it works."""

from __future__ import annotations

import argparse

from learner_core.group.horovod.build import build
from learner_core.group.horovod.doctor import examine

from .console import table

__all__ = ["run"]


def run(arguments: list[str]) -> int:
    """Run the subcommand; returns the exit code: 1 where ``doctor`` found something that does not work."""
    parser = argparse.ArgumentParser(
        prog="learner-core horovod",
        description="build: download, build and install Horovod for the frameworks in this environment (minutes, once; "
        "the wheel is kept in the cache). doctor: what is there, what is missing, and whether rings work.",
    )
    parser.add_argument("action", choices=("build", "doctor"))
    parser.add_argument("--framework", choices=("torch", "tf"), action="append", help="build for this one only")
    parser.add_argument("--gpu", action="store_true", help="build with NCCL; needs nvcc and NCCL's headers")
    parser.add_argument("--force", action="store_true", help="build even where the cache has a wheel")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="S", help="for each ring tried (default 60)")
    parser.add_argument("--debug", action="store_true", help="a traceback when something is refused")
    given = parser.parse_args(arguments)
    if given.action == "build":
        build(given.framework, gpu=given.gpu, force=given.force, say=lambda text: print(text, flush=True))
        return 0
    faults = 0
    for good, what, said in examine(timeout_s=given.timeout):
        faults += not good
        print(table([("ok  " if good else "FAIL", f"{what}:", said)]), flush=True)
    print("all good" if not faults else f"{faults} {'thing' if faults == 1 else 'things'} to mend")
    return 1 if faults else 0
