"""A handful of the campaign's faults (`tests/long/test_fault_campaign.py` runs them all), drawn afresh in each run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.campaign import Campaign
from support.faults import draw

#: A failure prints the command that repeats it.
SEED = int(os.environ.get("LC_SEED") or int.from_bytes(os.urandom(3), "little"))


@pytest.fixture(scope="module")
def campaigns(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Campaign]]:
    yield {name: Campaign(name, Path(tmp_path_factory.mktemp(name))) for name in ("torch", "tf")}


@pytest.mark.parametrize(
    ("backend", "numbers"),
    [
        ("torch", (0, 1, 2, 3, 5, 8)),  # building, a batch read, a gradient, after an update, on its way, before one
        # NaN, Inf, waiting, the sum, the state, starting
        pytest.param("torch", (19, 32, 12, 15, 23, 24), marks=pytest.mark.slow),
        pytest.param("tf", (1, 19, 29), marks=pytest.mark.slow),  # a batch read, NaN, after an update
    ],
)
def test_nothing_is_lost_without_a_word(campaigns: dict[str, Campaign], backend: str, numbers: tuple[int, ...]) -> None:
    for number in numbers:
        outcome = campaigns[backend].run(draw(SEED, number, backend))
        assert outcome.result in ("repaired", "reported", "skipped", "unnoticed")
