"""After the handshake: a message, or bytes over the ring, that no rank has sent like this is not read."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import learner_core as lc
from learner_core.group.spmd.connection import Connection, ForgedError
from learner_core.group.spmd.handshake import PROOF_NBYTES, Answer, Challenge, Keys
from learner_core.group.spmd.plain import from_bytes, to_bytes
from learner_core.group.spmd.seal import Seal
from learner_core.group.spmd.watch import Watch
from learner_core.learning.rank_exchange import RankExchange

from support.strangers import OTHER, SECRET, SOON_S, Canary

# ---- after the handshake ---------------------------------------------------------------------------------------------


@pytest.fixture
def way() -> Iterator[tuple[Connection, socket.socket]]:
    """(Rank 0's end, the bytes' way to it)."""
    inside, outside = socket.socketpair()
    first = Connection(inside, KEYS, first=True)
    yield first, outside
    first.close()
    outside.close()


def keys() -> Keys:
    challenge = Challenge(SECRET)
    answer = Answer(SECRET, 1, challenge.message)
    reply, found = challenge.check(answer.message)
    assert found is not None and answer.check(reply) == found
    return found


KEYS = keys()


def sent(*messages: dict[str, Any] | None, first: bool = False, keys: Keys = KEYS) -> list[bytes]:
    """What an end sends for these messages, one after the other."""
    inside, outside = socket.socketpair()
    connection, parts = Connection(inside, keys, first=first), []
    with outside, contextlib.closing(connection):
        for message in messages:
            connection.send(message)
            parts.append(outside.recv(1 << 16))
    return parts


def test_messages_come_as_they_were_sent(way: tuple[Connection, socket.socket]) -> None:
    first, stream = way
    messages = [{"a": [1, None, "x", b"y"], "b": {2: np.arange(3)}}, None, {"c": True}]
    received: list[Any] = []
    for byte in b"".join(sent(*messages)):
        stream.sendall(bytes([byte]))
        received += first.receive()
    assert len(received) == 3
    assert received[0]["a"] == [1, None, "x", b"y"] and received[0]["b"][2].tolist() == [0, 1, 2]
    assert received[1:] == [None, {"c": True}]
    stream.close()
    with pytest.raises(ConnectionError, match="closed"):
        first.receive()


ATTACKS = ("changed", "again", "out of order", "sent back", "another conversation", "long", "a pickle")


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_message_that_was_not_sent_like_this_is_not_read(
    way: tuple[Connection, socket.socket], attack: str, tmp_path: Path
) -> None:
    first, stream = way
    one, two = sent({"a": 1}, {"b": 2})
    canary = pickle.dumps(Canary(tmp_path / "canary"))
    stream.sendall(
        {
            "changed": one[:20] + bytes([one[20] ^ 1]) + one[21:],
            "again": one + one,
            "out of order": two + one,
            "sent back": sent({"a": 1}, first=True)[0],
            "another conversation": sent({"a": 1}, keys=keys())[0],
            "long": struct.pack("<I", 1 << 30) + bytes(100),
            "a pickle": struct.pack("<I", len(canary)) + canary + bytes(PROOF_NBYTES),
        }[attack]
    )
    with pytest.raises(ForgedError):
        first.receive()
    assert not (tmp_path / "canary").exists()


def test_what_is_not_read_waits_and_nobody_is_held_up(way: tuple[Connection, socket.socket]) -> None:
    """The other rank reads nothing for a while: some megabytes wait, what is more is left out, and no call blocks."""
    first, stream = way
    for _ in range(200):
        first.send({"text": "x" * 100_000})
    stream.settimeout(SOON_S)
    read = len(stream.recv(1 << 20))
    while read < 4 << 20:
        first.send()
        read += len(stream.recv(1 << 20))
    assert read < 8 << 20


def test_a_forged_sign_of_life_is_a_loss_that_says_so(way: tuple[Connection, socket.socket]) -> None:
    first, stream = way
    watch = Watch(0, 2, timeout_s=SOON_S, about="pid 1 on host a")
    watch.begin({1: first}, {0: "pid 1 on host a", 1: "pid 7 on host b"})
    try:
        stream.sendall(b"".join(sent(None, None)))
        with watch.during("update_from_batch", lambda error: False):
            pass
        stream.sendall(sent({"what": "lost", "rank": 0, "text": "made up"})[0])  # it is number 0, and 2 is due
        assert watch._known.wait(SOON_S)
        with (
            pytest.raises(lc.WorkerLostError, match=r"as from rank 1 of 2 \(pid 7 on host b\) is not what it sent"),
            watch.during("update_from_batch", lambda error: False),
        ):
            pass
    finally:
        watch.close()


# ---- what travels over the ring --------------------------------------------------------------------------------------


def meet(*ranks: Callable[[RankExchange], Any], proofs: bool = True) -> list[Any]:
    """Each rank's function in a thread of its own, over a ring that anybody may be in."""
    size = len(ranks)
    barrier, vectors = threading.Barrier(size), [np.zeros(0)] * size
    answers: list[Any] = [None] * size

    def run(rank: int) -> None:
        def total(vector: np.ndarray, name: str) -> np.ndarray:
            vectors[rank] = vector
            barrier.wait(SOON_S)
            found: np.ndarray = np.sum(vectors, axis=0)
            barrier.wait(SOON_S)
            return found

        # The last one is a stranger: it is in the ring, and has no key.
        seal = Seal(SECRET[:32] if rank < size - 1 or not proofs else OTHER[:32], rank)
        try:
            answers[rank] = ranks[rank](RankExchange(rank, size, total, seal))
        except Exception as error:
            answers[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_ranks_gather_bytes_as_they_were_sent() -> None:
    said = [b"", b"a" * 1000, os.urandom(70)]
    for _ in range(2):
        answers = meet(*[lambda m, own=own: m.gather_bytes("gather", own) for own in said], proofs=False)
        assert answers == [said] * 3


def test_a_stranger_in_the_ring_is_found_before_its_bytes_are_looked_at() -> None:
    answers = meet(
        lambda m: m.gather_bytes("foreach_learner", b"a"),
        lambda m: m.gather_bytes("foreach_learner", b"b"),
        lambda m: m.gather_bytes("foreach_learner", pickle.dumps(1)),
    )
    for error in answers[:2]:
        assert isinstance(error, lc.LearnerGroupError) and "as rank 2's is not what rank 2 of this job" in str(error)


@pytest.mark.parametrize("words", [np.full(9, np.nan), np.array([1e300]), np.array([-1.0, 3.0]), np.zeros(0)])
def test_words_that_no_rank_says_end_in_an_error(words: np.ndarray) -> None:
    first, _ = meet(lambda m: m.gather_bytes("join", b""), lambda m: m.gather("join", words))
    assert isinstance(first, lc.LearnerGroupError)


def test_a_proof_holds_for_its_rank_its_round_and_its_operation_alone() -> None:
    one, other = Seal(SECRET[:32], 0), Seal(SECRET[:32], 1)
    sealed = one.wrap("gather", 3, b"data")
    assert other.unwrap("gather", 3, 0, sealed) == b"data"
    for operation, number, rank, data in (
        ("on_first", 3, 0, sealed),
        ("gather", 4, 0, sealed),
        ("gather", 3, 1, sealed),
        ("gather", 3, 0, b"x" + sealed[1:]),
        ("gather", 3, 0, sealed[:-1]),
        ("gather", 3, 0, b""),
    ):
        with pytest.raises(lc.LearnerGroupError, match="is not what rank"):
            other.unwrap(operation, number, rank, data)


def test_values_between_ranks_are_plain() -> None:
    value = {"a": (1, (2.5, "x"), [None, (True,)]), "b": np.float32(3), 4: b"y", "c": {"d": ()}}
    back = from_bytes(to_bytes(value, "gather"))
    assert back == value and type(back["b"]) is np.float32
    for bad in (object(), {1, 2}, lambda: 0, np.array([object()]), {"\0tuple": [1]}):
        with pytest.raises(lc.LearnerGroupError, match="gather: ranks tell each other plain values"):
            to_bytes(bad, "gather")
