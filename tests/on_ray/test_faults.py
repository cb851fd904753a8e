"""Drawn faults of learners on two nodes, for ``--slow`` (LC_SEED, LC_FAULTS); some are in ``test_learners``.

The campaign is that of ``support.campaign``, with its guarantees: nothing is lost without a word, nothing is left.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from .conftest import nothing_left
from support import campaign
from support.faults import Fault, draw


class _RayCampaign(campaign.Campaign):
    """Learners are actors; the one without faults stays a process."""

    def _live(self, fault: Fault, outcome: Any, calls: Any, once: Path, config: Any, expected: list[Any]) -> None:
        config.learners(launcher="ray", launcher_options={"placement": "SPREAD", "start_timeout_s": 300.0})
        super()._live(fault, outcome, calls, once, config, expected)

    def _check_left(self, before: dict[str, Any]) -> None:
        # The driver's descriptors are Ray's affair; its actors and placement groups are not.
        nothing_left()

    def _check_report(self, fault: Fault, outcome: Any) -> None:
        if fault.kind == "kill" and any("on node" in said for said in outcome.said):
            outcome.said.append("(Ray tells no exit code)")
        super()._check_report(fault, outcome)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "tf"])
def test_no_drawn_fault_is_lost_without_a_word(cluster: Any, tmp_path: Path, backend: str) -> None:
    seed = int(os.environ.get("LC_SEED") or int.from_bytes(os.urandom(3), "little"))
    runs, outcomes, lost = _RayCampaign(backend, tmp_path), list[Any](), list[str]()
    print(f"seed {seed}")
    for number in range(int(os.environ.get("LC_FAULTS", "40"))):
        fault = draw(seed, number, backend)
        # Struck by the means of processes and shared memory; and the driver writes what actors on other nodes hold.
        if fault.phase in ("start", "transport", "checkpoint"):
            continue
        fault = replace(fault, size=2, rank=fault.rank % 2, restart=True)
        try:
            outcomes.append(runs.run(fault))
        except campaign.LostError as error:
            lost.append(f"{number}: {error}")
            print(f"LOST {lost[-1]}", flush=True)
            continue
        print(campaign.line(outcomes[-1]), flush=True)
    print(f"\nseed {seed}\n{campaign.table(outcomes)}")
    assert not lost, "\n".join(lost)
