"""150 injected faults on each backend: no hang, no update lost or applied twice, no process left. Half an hour each.

Runs once per backend (LC_BACKEND). Prints the table of docs/reliability.md; LC_SEED and LC_FAULTS change the draw.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.campaign import Campaign, LostError, Outcome, line, table
from support.faults import draw

pytestmark = pytest.mark.slow


def test_no_fault_is_lost_without_a_word(tmp_path: Path) -> None:
    backend = os.environ.get("LC_BACKEND", "torch")
    seed = int(os.environ.get("LC_SEED") or int.from_bytes(os.urandom(3), "little"))
    campaign, outcomes, lost = Campaign(backend, tmp_path), list[Outcome](), list[str]()
    print(f"seed {seed}")
    for number in range(int(os.environ.get("LC_FAULTS", "150"))):
        try:
            outcomes.append(campaign.run(draw(seed, number, backend)))
        except LostError as error:
            lost.append(f"{number}: {error}")
            print(f"LOST {lost[-1]}", flush=True)
            continue
        print(line(outcomes[-1]), flush=True)
    print(f"\nseed {seed}\n{table(outcomes)}")
    assert not lost, "\n".join(lost)
