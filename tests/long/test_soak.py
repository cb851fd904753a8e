"""A million updates of one learner, 100,000 of a group of two, of a run with runner processes: nothing grows.

Runs once per backend (LC_BACKEND). One learner takes half an hour on a quiet core; LC_UPDATES says another number.
"""

from __future__ import annotations

import os

import pytest

from support.soak import problems, soak

pytestmark = pytest.mark.slow

#: What is soaked -> how many updates.
UPDATES = {"learner": 1_000_000, "group": 100_000, "run": 100_000}


@pytest.mark.parametrize("kind", UPDATES)
def test_nothing_grows(kind: str) -> None:
    backend = os.environ.get("LC_BACKEND", "torch")
    outcome = soak(kind, backend, int(os.environ.get("LC_UPDATES") or UPDATES[kind]))
    print(*outcome.lines(), sep="\n")
    assert not problems(outcome)
