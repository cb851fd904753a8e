"""Mutated state trees through every door: a subset of the long tier's (tests/long/test_mutated_states.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.state_campaign import CASES, DOORS, Campaign, Tally

#: Of each door, for each algorithm.
NUMBER = {"set_state": 20, "restore": 10}
#: Doors that open the checkpoint anew, which takes longer: with these algorithms.
OPENED = ("ppo", "sac prioritized", "impala")
#: On both backends in ``make test``: eager TensorFlow takes several times as long over the same trees.
BOTH = ("ppo", "ppo, several agents")


def _case(case: str) -> object:
    return case if case in BOTH else pytest.param(case, marks=pytest.mark.fast_on_torch)


@pytest.mark.parametrize("case", [_case(case) for case in CASES if case not in ("sac", "appo")])
def test_mutants_are_taken_with_a_meaning_or_refused(training_backend_name: str, tmp_path: Path, case: str) -> None:
    tally = Tally()
    campaign = Campaign(case, training_backend_name, tmp_path, tally)
    try:
        for door in DOORS:
            opens = door in ("from_checkpoint", "evaluate", "resume")
            if opens and case not in OPENED:
                continue
            for number in range(NUMBER.get(door, 2)):
                campaign.run(5, 100 * list(DOORS).index(door) + number, door)
    finally:
        campaign.close()
    # A campaign in which everything is accepted, or everything refused, would tell nothing.
    outcomes = {what: sum(n for (_, _, w), n in tally.counts.items() if w == what) for what in ("accepted", "refused")}
    assert outcomes["refused"] >= 10 and outcomes["accepted"] >= 3, tally.text()
