"""The whole grid, in the long tier: every case trains, or is refused in the words that are written down for it.

A part of it: ``LC_DOORS_PART=1/8``; results so far are in ``LC_DOORS_OUT`` and not made again. By hand:
``PYTHONPATH=tests python -m doors.run_grid --out FILE --part 1/8``.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from .grid import AXES, Case, every_case
from .run_grid import batches_of, run_batch, table
from .start import Door, missing


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("launcher", AXES["launcher"])
@pytest.mark.parametrize("backend", AXES["backend"])
def test_every_case(door: Door, tmp_path: Path, backend: str, launcher: str) -> None:
    if reason := missing(launcher):
        pytest.skip(reason)
    part, parts = (int(number) for number in os.environ.get("LC_DOORS_PART", "1/1").split("/"))
    out = Path(os.environ.get("LC_DOORS_OUT", tmp_path / "results.jsonl"))
    lines = out.read_text().splitlines() if out.exists() else []
    done = {Case(**json.loads(line)["case"]) for line in lines}
    cases = [case for case in every_case() if (case.backend, case.launcher) == (backend, launcher)]
    outcomes: list[dict[str, Any]] = []
    for batch in batches_of(cases)[part - 1 :: parts]:
        left = [case for case in batch if case not in done]
        for case, problem, seconds in run_batch(door, left):
            outcomes.append({"case": asdict(case), "problem": problem, "seconds": seconds})
            with out.open("a") as file:
                file.write(json.dumps(outcomes[-1]) + "\n")
    print(table(outcomes))
    failed = [outcome["problem"] for outcome in outcomes if outcome["problem"]]
    assert not failed, "\n".join(failed)
