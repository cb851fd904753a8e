"""NaN and infinity on one rank alone: skipped or raised by all alike; 200 a backend in the long tier."""

from __future__ import annotations

import os
from collections import Counter

import pytest

from support.number_faults import PLACES, draw, groups, play, table
from support.outcomes import LostError


def _played(backend: str, number: int, kinds: tuple[str, ...], size: int = 2) -> Counter[tuple[str, str]]:
    seed = int(os.environ.get("LC_SEED") or int.from_bytes(os.urandom(3), "little"))
    print(f"seed {seed}")
    outcomes, lost = Counter[tuple[str, str]](), []
    with groups(backend, size, kinds) as made:
        for at in range(number):
            fault = draw(seed, at, size, kinds)
            try:
                outcomes[fault.place, play(fault, made[fault.group])] += 1
            except LostError as error:
                lost.append(f"{at}: {error}")
                print(f"LOST {lost[-1]}", flush=True)
    print(f"{table(outcomes)}\nseed {seed}, {number} faults, {len(lost)} lost something")
    assert not lost, "\n".join(lost)
    return outcomes


def test_all_ranks_decide_alike_on_torch() -> None:
    outcomes = _played("torch", 10, ("skip", "raise"))
    assert {place for place, _ in outcomes} == set(PLACES)


def test_all_ranks_decide_alike_on_tensorflow_compiled() -> None:
    _played("tf", 5, ("compiled",))


@pytest.mark.slow
def test_two_hundred_of_a_backend() -> None:
    """``LC_BACKEND`` says which, Torch by default; three learners; compiled and not."""
    number = int(os.environ.get("LC_FAULTS", "200"))
    _played(os.environ.get("LC_BACKEND", "torch"), number, ("skip", "raise", "compiled"), size=3)
