"""Run the grid, or a part of it, and print a table: ``PYTHONPATH=tests python -m doors.run_grid --out FILE``.

Cases of one backend and one launcher share a program, some at a time, in an order drawn once: so whatever part has run
is a fair sample of the whole. Results are appended to FILE as JSON lines; cases that it has already are not run again.
With ``--book`` cases that stand in tests/doors/grid.txt as right are not run either, and what is new is written there.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from .book import BOOK, HOLDS, read_book, write_book
from .grid import AXES, Case, every_case, expected_refusal
from .start import Door, make_door, missing, problem_with

__all__ = ["batches_of", "run_batch", "table"]

_BATCH = 12
#: Torch unrolls the memories of IMPALA and APPO when it compiles them: ten minutes and more on a busy machine.
_SECONDS_A_CASE = 1800.0


def batches_of(cases: Sequence[Case], *, seed: int = 0, size: int = _BATCH) -> list[list[Case]]:
    """Cases that share a program, and all of these in an order that is drawn."""
    rng = random.Random(seed)
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.backend, case.launcher), []).append(case)
    batches = []
    for group in groups.values():
        rng.shuffle(group)
        batches += [group[start : start + size] for start in range(0, len(group), size)]
    rng.shuffle(batches)
    return batches


def run_batch(door: Door, batch: Sequence[Case]) -> Iterator[tuple[Case, str, float]]:
    """(case, what is wrong with it or "", its seconds); a program that ends early is started again for the rest."""
    left = list(batch)
    while left:
        found = door.run(left, timeout_s=_SECONDS_A_CASE)
        for case, said in found.items():
            yield case, problem_with(case, said), max((answer.get("seconds", 0.0) for answer in said), default=0.0)
        left = [case for case in left if case not in found]


def table(outcomes: Sequence[dict[str, object]]) -> str:
    """Counts by the value of every axis, and what failed."""
    lines = [f"{'axis':12} {'value':11} {'trained':>8} {'refused':>8} {'failed':>7}"]
    for axis, values in {**AXES, "all": ("",)}.items():
        for value in values:
            counts: collections.Counter[str] = collections.Counter()
            for outcome in outcomes:
                case = Case(**outcome["case"])  # type: ignore[arg-type]  # as it was written
                if axis == "all" or getattr(case, axis) == value:
                    kind = "refused" if expected_refusal(case) else "trained"
                    counts["failed" if outcome["problem"] else kind] += 1
            lines.append(f"{axis:12} {value:11} {counts['trained']:8} {counts['refused']:8} {counts['failed']:7}")
    failures = [str(outcome["problem"]) for outcome in outcomes if outcome["problem"]]
    return "\n".join([*lines, *failures])


def letter_of(outcome: dict[str, object]) -> str:
    """How a case stands in the book."""
    case = Case(**outcome["case"])  # type: ignore[arg-type]  # as it was written
    return "F" if outcome["problem"] else "r" if expected_refusal(case) else "t"


def enter(outcomes: Sequence[dict[str, object]]) -> None:
    """Write these outcomes into the book, and leave the others in it as they are."""
    new = {Case(**outcome["case"]): letter_of(outcome) for outcome in outcomes}  # type: ignore[arg-type]
    write_book(BOOK, {**read_book(BOOK), **new})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="results, one JSON line a case")
    parser.add_argument("--part", default="1/1", help="I/N: the I-th of N parts")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing new after so many")
    parser.add_argument("--only", default="", help="AXIS=VALUE,...: only cases with these values")
    parser.add_argument("--book", action="store_true", help="go on from tests/doors/grid.txt, and write there")
    given = parser.parse_args()
    part, parts = (int(number) for number in given.part.split("/"))
    only = dict(item.split("=") for item in given.only.split(",") if item)
    lines = given.out.read_text().splitlines() if given.out.exists() else []
    outcomes = [json.loads(line) for line in lines]
    done = {Case(**outcome["case"]) for outcome in outcomes}
    if given.book:
        enter(outcomes)
        done |= {case for case, letter in read_book(BOOK).items() if letter in HOLDS}
    cases = [case for case in every_case() if all(getattr(case, axis) == value for axis, value in only.items())]
    batches = batches_of(cases)[part - 1 :: parts]
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="doors-") as folder:
        door = make_door(Path(folder))
        for number, batch in enumerate(batches, start=1):
            left = [case for case in batch if case not in done and not missing(case.launcher)]
            if not left or time.monotonic() - begin > given.seconds:
                continue
            for case, problem, seconds in run_batch(door, left):
                outcome = {"case": asdict(case), "problem": problem, "seconds": seconds}
                outcomes.append(outcome)
                with given.out.open("a") as file:
                    file.write(json.dumps(outcome) + "\n")
                print(f"{seconds:7.1f} s  {'FAILED ' + problem if problem else str(case)}", flush=True)
            if given.book:
                enter(outcomes)
            print(f"batch {number} of {len(batches)}, {time.monotonic() - begin:.0f} s", flush=True)
    print(table(outcomes))
    for launcher in AXES["launcher"]:
        if missing(launcher):
            print(f"not run: {launcher}: {missing(launcher)}")
    return 1 if any(outcome["problem"] for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
