"""20,000 mutated state trees, half of them on each backend, through every door that takes a state.

Runs once per backend (LC_BACKEND). Prints the table of docs/reliability.md; LC_SEED and LC_MUTANTS change the draw.
"""

from __future__ import annotations

import os

import pytest

from support.state_campaign import CASES, run_all

pytestmark = pytest.mark.slow


def test_no_mutant_is_taken_without_a_meaning_or_changes_anything_when_refused() -> None:
    backend = os.environ.get("LC_BACKEND", "torch")
    seed = int(os.environ.get("LC_SEED") or int.from_bytes(os.urandom(3), "little"))
    broken = run_all(backend, int(os.environ.get("LC_MUTANTS", "10000")), seed, cases=list(CASES))
    assert not broken, f"seed {seed}\n" + "\n".join(broken)
