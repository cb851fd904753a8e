"""What several files of this folder look at, computed once."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.both import Arrays, in_both


@pytest.fixture(scope="session")
def user_networks() -> tuple[Arrays, Arrays]:
    """Every pair of ``support/user_networks.py`` holding the same perturbed weights, on Torch and on Keras."""
    return in_both(str(Path(__file__).with_name("test_user_networks.py")), "program")
