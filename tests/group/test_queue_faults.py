"""Asynchronous updates under faults: a dozen scripts, a thousand over both backends in the long tier."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from support.outcomes import LostError
from support.queue_faults import draw, play


def _played(backend: str, seed: int, numbers: range, folder: Path) -> None:
    lost, table = [], Counter[str]()
    for number in numbers:
        try:
            table += play(draw(seed, number, backend), folder)
        except LostError as error:
            lost.append(f"{number}: {error}")
            print(f"LOST {lost[-1]}", flush=True)
        if number % 50 == 49:
            print(f"{number + 1} scripts, {len(lost)} lost", flush=True)
    print(f"seed {seed}, {len(numbers)} scripts, {len(lost)} lost something: {dict(table)}")
    assert not lost, "\n".join(lost)


def _seed() -> int:
    return int(os.environ.get("LC_SEED") or int.from_bytes(os.urandom(3), "little"))


@pytest.mark.parametrize(("backend", "number"), [("torch", 10), ("tf", 2)])
def test_every_queued_update_is_accounted_for(backend: str, number: int, tmp_path: Path) -> None:
    """In processes of their own, so that both frameworks may take part: those with a learner here are the others'."""
    seed = _seed()
    print(f"seed {seed}")
    numbers = [n for n in range(10 * number) if draw(seed, n, backend).num_learners][:number]
    lost = []
    for at in numbers:
        try:
            play(draw(seed, at, backend), tmp_path)
        except LostError as error:
            lost.append(str(error))
    assert not lost, "\n".join(lost)


@pytest.mark.slow
def test_five_hundred_scripts_of_one_backend(tmp_path: Path) -> None:
    """``LC_BACKEND`` says which, Torch by default; ``LC_SEED`` repeats a draw, ``LC_FAULTS`` says how many."""
    _played(os.environ.get("LC_BACKEND", "torch"), _seed(), range(int(os.environ.get("LC_FAULTS", "500"))), tmp_path)
