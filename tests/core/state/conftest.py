"""Fresh random seeds, printed when a test fails; full counts with --slow or LC_FULL=1."""

from __future__ import annotations

import os
import secrets

import numpy as np
import pytest


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """Whether the whole counts of the reliability plan are asked for, not the subset that takes seconds."""
    return bool(request.config.getoption("--slow")) or os.environ.get("LC_FULL") == "1"


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator seeded afresh; LC_SEED repeats a run."""
    seed = int(os.environ.get("LC_SEED") or secrets.randbits(63))
    print(f"LC_SEED={seed}")  # pytest shows this when the test fails
    return np.random.default_rng(seed)
