"""Fixtures of the command line's suite."""

from __future__ import annotations

import pytest

from support.outside import Outside, make_outside


@pytest.fixture(scope="session")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Outside:
    """A fresh environment with the built wheel, where the checkout is not importable."""
    return make_outside(tmp_path_factory.mktemp("outside"))
