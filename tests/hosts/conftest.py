"""Several hosts on one machine (``support.hosts``); skipped with the reason where that is not permitted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from support.hosts import Network, missing


@pytest.fixture
def hosts() -> Iterator[Callable[..., Network]]:
    """``hosts("a", "b") -> Network``; afterwards no process is left on any of them."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    with contextlib.ExitStack() as everything:
        made: list[Network] = []

        def make(*names: str) -> Network:
            network = everything.enter_context(Network(names))
            made.append(network)
            return network

        yield make
        for network in made:
            assert not network.left(), "processes are left on a host"
