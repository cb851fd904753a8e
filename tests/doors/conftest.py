"""One wheel and one environment outside the repository for all tests as users type them."""

from __future__ import annotations

import os

import pytest

from .start import Door, make_door


@pytest.fixture(scope="session")
def door(tmp_path_factory: pytest.TempPathFactory) -> Door:
    """Programs start here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    return make_door(tmp_path_factory.mktemp("door"))
