"""The ways between ranks, and the interfaces that libraries are given: what is tried, and what is said of it."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from learner_core import LearnerGroupError, NetworkError
from learner_core.group import network
from learner_core.group.collectives import Collective
from learner_core.group.links import Links, check_reach
from learner_core.group.network import address_towards, host_identity, interface_address, interface_of, use_interface

LOOPBACK = "127.0.0.1"
VARIABLE = "LC_TEST_INTERFACE"
Server = Callable[..., dict[str, str]]


@pytest.fixture
def pair() -> Iterator[tuple[Links, Links]]:
    with Links(LOOPBACK, 2) as one, Links(LOOPBACK, 2) as other:
        yield one, other


@pytest.fixture
def server() -> Iterator[Server]:
    """``server(words, close=False) -> where``: somebody who says this to one who connects, and no more."""
    with contextlib.ExitStack() as kept:

        def start(words: bytes, *, close: bool = False) -> dict[str, str]:
            listener = kept.enter_context(socket.create_server((LOOPBACK, 0)))

            def answer() -> None:
                with contextlib.suppress(OSError):
                    connection = kept.enter_context(listener.accept()[0])
                    connection.sendall(words)
                    if close:
                        connection.close()

            threading.Thread(target=answer, daemon=True).start()
            return {"address": LOOPBACK, "port": str(listener.getsockname()[1]), "word": "a" * 32}

        yield start


def test_ranks_reach_each_other_and_nobody_else(pair: tuple[Links, Links], server: Server) -> None:
    one, other = pair
    assert one.reach({1: other.where}, timeout_s=5.0) == {}
    assert other.reach({0: one.where}, timeout_s=5.0) == {}
    with socket.create_server((LOOPBACK, 0)) as closed:
        port = str(closed.getsockname()[1])
    others = {
        1: other.where,
        2: {**other.where, "port": port},
        3: {**other.where, "word": one.where["word"]},
        4: server(b"HTTP/1.1 400 Bad Request\r\n\r\n", close=True),
        5: server(b""),
    }
    found = one.reach(others, timeout_s=0.5)
    assert sorted(found) == [2, 3, 4, 5]
    assert "refused" in found[2]
    assert found[3] == found[4] == "another process answers there"
    assert "no answer in 0.5 s" in found[5]


def test_a_rank_that_falls_silent_is_told_of_once_and_one_that_ends_is_not(
    pair: tuple[Links, Links], server: Server
) -> None:
    one, other = pair
    told: list[int] = []
    word = b"a" * 32
    assert one.reach({1: other.where, 2: server(word), 3: server(word, close=True)}, timeout_s=5.0) == {}
    one.watch(told.append, silence_s=1.5)
    until = time.monotonic() + 30
    while not told and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(1.0)
    assert told == [2]  # the other one says that it lives; the last has ended, of which others tell


def test_strangers_cost_a_rank_nothing(pair: tuple[Links, Links]) -> None:
    one, other = pair
    strangers = [socket.create_connection((LOOPBACK, int(one.where["port"])), timeout=5) for _ in range(50)]
    for stranger in strangers:
        stranger.setblocking(False)
        with contextlib.suppress(OSError):
            stranger.sendall(b"x" * 10_000)  # nobody reads it
    assert other.reach({0: one.where}, timeout_s=5.0) == {}
    for stranger in strangers:
        stranger.close()


def test_every_pair_that_is_apart_is_named() -> None:
    names = ["rank 0 (on a)", "rank 1 (on b)", "rank 2 (on c)"]
    check_reach(names, [{}, {}, {}], ["10.0.0.1", "10.0.0.2", "10.0.0.3"])
    with pytest.raises(NetworkError) as apart:
        check_reach(names, [{}, {2: "timed out"}, {1: "refused", 0: "refused"}], ["10.0.0.1", "10.0.0.2", "10.0.0.3"])
    assert str(apart.value).startswith(
        "rank 1 (on b) cannot reach rank 2 (on c) at 10.0.0.3 (timed out); "
        "rank 2 (on c) cannot reach rank 0 (on a) at 10.0.0.1 (refused); "
        "rank 2 (on c) cannot reach rank 1 (on b) at 10.0.0.2 (refused). The learners must reach each other at any port"
    )
    assert isinstance(apart.value, LearnerGroupError)


def test_an_interface_is_checked_before_a_library_is_given_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert interface_address("lo") == LOOPBACK
    assert interface_of(LOOPBACK) == "lo" and interface_of("203.0.113.9") == ""
    with pytest.raises(
        NetworkError, match=r"^X=nosuch0: this machine \(.*\) has no network interface 'nosuch0'.*lo \("
    ):
        interface_address("nosuch0", variable="X")
    monkeypatch.setattr(network, "_is_up", lambda name: False)
    with pytest.raises(NetworkError, match=r"the loopback interface lo, over which .* is down: `ip link set lo up`"):
        interface_address("lo")


def test_the_interface_that_the_user_names_is_taken_and_ours_makes_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert use_interface(VARIABLE, "") == ""
    assert use_interface(VARIABLE, "lo") == LOOPBACK and os.environ[VARIABLE] == "lo"
    assert use_interface(VARIABLE, "") == LOOPBACK  # as it was settled
    with pytest.raises(NetworkError, match="'nosuch0'"):
        use_interface(VARIABLE, "nosuch0")  # another group of this process, on another way
    monkeypatch.setenv(VARIABLE, "lo,nosuch1")
    with pytest.raises(NetworkError, match="'nosuch1'"):
        use_interface(VARIABLE, "lo")


def test_a_collective_without_a_variable_of_its_own_listens_at_the_address_that_leads_to_the_others() -> None:
    collective: Any = Collective()
    assert collective.choose_interface("10.1.2.3") == "10.1.2.3"


def test_machines_of_one_name_are_two_and_a_way_that_is_none_is_said_so() -> None:
    assert host_identity("node", "10.0.0.1") != host_identity("node", "10.0.0.2")
    assert address_towards(LOOPBACK, 9) == LOOPBACK
    with pytest.raises(NetworkError, match=r"there is no way from this machine .* to no.such.host.invalid:9"):
        address_towards("no.such.host.invalid", 9)
