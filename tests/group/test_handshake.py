"""Who does not know a job's secret is not let in, and holds nobody up; who does, proves it both ways."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import learner_core as lc
from learner_core.group.spmd.handshake import ANSWER_NBYTES, CHALLENGE_NBYTES, PROOF_NBYTES, Answer, Challenge
from learner_core.group.spmd.joining import FixedPlace, join_ranks

from support.strangers import OTHER, SAID, SECRET, SOON_S, Canary, First, Known, answer_all, connect, join_as, take


@pytest.fixture
def first() -> Iterator[First]:
    rank0 = First()
    yield rank0
    rank0.close()


# ---- strangers at the meeting point ----------------------------------------------------------------------------------


def silence(first: First, folder: Path) -> bytes:
    return b""


def garbage(first: First, folder: Path) -> bytes:
    return os.urandom(100_000)


def half_a_handshake(first: First, folder: Path) -> bytes:
    return Answer(SECRET, 1, bytes(CHALLENGE_NBYTES)).message[: ANSWER_NBYTES // 2]


def a_pickle(first: First, folder: Path) -> bytes:
    return pickle.dumps(Canary(folder / "canary"))


def a_huge_length(first: First, folder: Path) -> bytes:
    return struct.pack("<I", 0xFFFFFFFF) + b"\xff" * ANSWER_NBYTES


def a_web_request(first: First, folder: Path) -> bytes:
    return b"GET /learner_core/order.1 HTTP/1.1\r\nHost: a\r\n\r\n" + bytes(ANSWER_NBYTES)


def another_secret(first: First, folder: Path) -> bytes:
    raise NotImplementedError  # answers the challenge


def a_recorded_handshake(first: First, folder: Path) -> bytes:
    """What a rank of this job once sent, to this very server."""
    with connect(first) as stream:
        return Answer(SECRET, 1, take(stream, CHALLENGE_NBYTES)).message


def a_reflection(first: First, folder: Path) -> bytes:
    """Rank 0's own proof, made for another conversation, sent back as one's own."""
    with connect(first) as stream:
        challenge = take(stream, CHALLENGE_NBYTES)
        answer = Answer(SECRET, 1, challenge).message
        stream.sendall(answer)
        return answer[:-PROOF_NBYTES] + take(stream, PROOF_NBYTES)


STRANGERS = (
    silence, garbage, half_a_handshake, a_pickle, a_huge_length, a_web_request, another_secret, a_recorded_handshake,
    a_reflection,
)  # fmt: skip


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_stranger_that_comes_first_is_not_let_in_and_holds_nobody_up(
    stranger: Callable[[First, Path], bytes], first: First, tmp_path: Path
) -> None:
    begin = time.monotonic()
    stream = connect(first)
    challenge = take(stream, CHALLENGE_NBYTES)
    said = Answer(OTHER, 1, challenge).message if stranger is another_secret else stranger(first, tmp_path)
    with contextlib.suppress(OSError):
        stream.sendall(said)
    if len(said) >= ANSWER_NBYTES:
        with contextlib.suppress(ConnectionError):  # refused and gone, with what it had not read
            assert take(stream, PROOF_NBYTES) in (b"", bytes(PROOF_NBYTES))
            assert take(stream, 1) == b""
    told = threading.Thread(target=answer_all, args=(first,))
    told.start()
    assert join_as(1, first) == []  # while the stranger's connection may still be open
    told.join()
    assert time.monotonic() - begin < SOON_S
    assert first.error is None and first.arrived[1].said == SAID
    assert len(first.warned) == (len(said) >= ANSWER_NBYTES)
    assert all("do not know this job's secret" in text for text in first.warned)
    assert not (tmp_path / "canary").exists()
    stream.close()


def test_hundreds_of_silent_connections_hold_nobody_up(first: First) -> None:
    with contextlib.ExitStack() as streams:
        for _ in range(300):
            streams.enter_context(connect(first))
        told = threading.Thread(target=answer_all, args=(first,))
        told.start()
        assert join_as(1, first) == []
        told.join()
    assert first.error is None and len(first.warned) == 1


def test_a_challenge_is_never_the_same_and_binds_rank_role_and_both_sides() -> None:
    challenge = Challenge(SECRET)
    assert challenge.message != Challenge(SECRET).message
    answer = Answer(SECRET, 1, challenge.message)
    reply, keys = challenge.check(answer.message)
    found = answer.check(reply)
    assert keys is not None and found == keys
    assert keys.to_first != keys.from_first
    for position in range(ANSWER_NBYTES):  # no bit of it may change
        changed = bytearray(answer.message)
        changed[position] ^= 1
        assert challenge.check(bytes(changed)) == (bytes(PROOF_NBYTES), None)
    assert answer.check(bytes(PROOF_NBYTES)) is None
    assert answer.check(answer.message[-PROOF_NBYTES:]) is None
    assert Challenge(SECRET).check(answer.message)[1] is None
    assert Answer(SECRET, 1, challenge.message).check(reply) is None


def test_rank_0_proves_itself_as_well() -> None:
    """Somebody else listens where rank 0 should, and takes every proof."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def pretend() -> None:
            while True:
                try:
                    stream, _ = listener.accept()
                except OSError:
                    return
                with stream, contextlib.suppress(OSError):
                    stream.sendall(Challenge(OTHER).message)
                    take(stream, ANSWER_NBYTES)
                    stream.sendall(os.urandom(PROOF_NBYTES) + pickle.dumps(1))

        threading.Thread(target=pretend, daemon=True).start()
        with pytest.raises(lc.LearnerGroupError, match="it does not know the job's secret"):
            join_ranks(FixedPlace(*listener.getsockname()), Known(), rank=1, said=SAID, deadline=time.monotonic() + 1.0)
        listener.shutdown(socket.SHUT_RDWR)


def test_another_program_at_the_meeting_point_is_said_to_be_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        streams = []

        def greet() -> None:
            with contextlib.suppress(OSError):
                while True:
                    streams.append(listener.accept()[0])
                    streams[-1].sendall(b"SSH-2.0-OpenSSH_9.6" + bytes(CHALLENGE_NBYTES))

        threading.Thread(target=greet, daemon=True).start()
        with pytest.raises(lc.LearnerGroupError, match="another program listens there"):
            join_ranks(FixedPlace(*listener.getsockname()), Known(), rank=1, said=SAID, deadline=time.monotonic() + 0.5)
        listener.shutdown(socket.SHUT_RDWR)
        for stream in streams:
            stream.close()


# ---- ranks that are ranks, but not these -----------------------------------------------------------------------------


def test_a_rank_with_another_secret_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learner_core.group.spmd.joining._REFUSED_S", 0.3)
    first = First(wait_s=2.0)
    (error,) = join_as(1, first, OTHER)
    assert "rank 0 has another secret" in str(error) and "secrets.token_hex" in str(error)
    first.join()
    assert "waited for rank 1 for" in str(first.error) and "do not know this job's secret" in str(first.error)
    first.close()


def test_a_second_process_with_the_same_rank_is_refused_and_the_first_one_stays() -> None:
    first = First(size=3)
    one = threading.Thread(target=join_as, args=(1, first), kwargs={"said": {**SAID, "size": 3}})
    one.start()
    deadline = time.monotonic() + SOON_S
    while not any(known.said for known in list(first.server._known)) and time.monotonic() < deadline:
        time.sleep(0.01)
    (error,) = join_as(1, first, said={**SAID, "size": 3, "about": "pid 8 on host c"})
    assert "rank 1 of 3 has come already (pid 7 on host b), and once more (pid 8 on host c)" in str(error)
    told = threading.Thread(target=answer_all, args=(first,))
    told.start()
    assert join_as(2, first, said={**SAID, "size": 3}) == []
    told.join()
    one.join()
    assert first.arrived[1].said is not None and first.arrived[1].said["about"] == "pid 7 on host b"
    first.close()


@pytest.mark.parametrize(
    ("rank", "size", "text"),
    [(1, 3, "was told that there are 3 ranks, and rank 0 that there are 2"), (2, 2, "there is no rank 2 of 2")],
)
def test_a_rank_that_there_is_not(rank: int, size: int, text: str) -> None:
    first = First(wait_s=0.5)
    (error,) = join_as(rank, first, said={**SAID, "size": size})
    assert text in str(error)
    first.join()
    first.close()
