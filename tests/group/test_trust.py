"""Neighbours: who does not know a job's secret cannot join it, is not listened to, and does not hold it up."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import socket
import struct
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import learner_core as lc
from learner_core.group.spmd.connection import Connection, ForgedError
from learner_core.group.spmd.handshake import ANSWER_NBYTES, CHALLENGE_NBYTES, PROOF_NBYTES, Answer, Challenge, Keys
from learner_core.group.spmd.joining import FixedPlace, join_ranks
from learner_core.group.spmd.notes import HorovodNote
from learner_core.group.spmd.plain import from_bytes, to_bytes
from learner_core.group.spmd.rendezvous import Arrived, RendezvousServer
from learner_core.group.spmd.seal import Seal
from learner_core.group.spmd.secret import VARIABLE, find_secret
from learner_core.group.spmd.watch import Watch
from learner_core.group.spmd.world import SpmdOptions, World, find_world
from learner_core.learning.meeting import Meeting

from support.ranks import TESTS, free_port, start_ranks, wait_for

SECRET = b"6f1d0c3be7a94f7b8a3f52c0d9e84b17" * 2
OTHER = b"0c3be7a94f7b8a3f52c0d9e84b176f1d" * 2
SAID = {"size": 2, "about": "pid 7 on host b", "host": "b", "address": "127.0.0.1"}
#: Seconds within which ranks meet whatever strangers do; a machine may be slow, the strangers' patience is longer.
SOON_S = 60.0


class Known:
    """A secret that is known."""

    source, fixed, on_this_machine = "the test", True, False

    def __init__(self, secret: bytes = SECRET) -> None:
        self._secret = secret

    def now(self) -> bytes:
        return self._secret

    def close(self) -> None:
        """Nothing is held."""


class Canary:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


class First:
    """Rank 0 of a job, waiting in a thread for the others."""

    def __init__(self, size: int = 2, secret: bytes = SECRET, *, wait_s: float = SOON_S) -> None:
        self.server = RendezvousServer("127.0.0.1", 0, Known(secret), size)
        self.place = ("127.0.0.1", self.server.port)
        self.arrived: dict[int, Arrived] = {}
        self.error: lc.LearnerGroupError | None = None
        self.warned: list[str] = []
        self._closing = False
        self._thread = threading.Thread(target=self._wait, args=(time.monotonic() + wait_s,), daemon=True)
        self._thread.start()

    def _wait(self, deadline: float) -> None:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            try:
                self.arrived = self.server.await_ranks(deadline)
            except lc.LearnerGroupError as error:
                self.error = error
            except (OSError, RuntimeError, ValueError, KeyError):
                if not self._closing:
                    raise
        self.warned = [str(warning.message) for warning in heard]

    def join(self, timeout_s: float = SOON_S) -> None:
        """Wait until it has stopped waiting."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive()

    def close(self) -> None:
        self._closing = True
        self.server.close()
        self.join()
        for one in self.arrived.values():
            one.connection.close()


@pytest.fixture
def first() -> Iterator[First]:
    rank0 = First()
    yield rank0
    rank0.close()


def connect(first: First) -> socket.socket:
    return socket.create_connection(first.place, timeout=SOON_S)


def take(stream: socket.socket, nbytes: int) -> bytes:
    data = b""
    while len(data) < nbytes and (part := stream.recv(nbytes - len(data))):
        data += part
    return data


def join_as(rank: int, first: First, secret: bytes = SECRET, said: dict[str, Any] = SAID) -> list[Exception]:
    """Join in a thread until refused or told the order; the error, if there was one."""
    found: list[Exception] = []
    try:
        joined = join_ranks(
            FixedPlace(*first.place), Known(secret), rank=rank, said=said, deadline=time.monotonic() + SOON_S
        )
        joined.connection.close()
    except lc.LearnerGroupError as error:
        found.append(error)
    return found


def answer_all(first: First) -> None:
    """Rank 0 has waited long enough: tell everybody."""
    first.join()
    for one in first.arrived.values():
        one.connection.send({"order": {"a": "b"}, "about": {0: "x", 1: "y"}, "session": b"z"})


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


def meet(*ranks: Callable[[Meeting], Any], proofs: bool = True) -> list[Any]:
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
            answers[rank] = ranks[rank](Meeting(rank, size, total, seal))
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


# ---- the secret ------------------------------------------------------------------------------------------------------


def world(rank: int = 0, *, one_machine: bool = True, launcher: str = "torchrun", port: int = 29500) -> World:
    job = f"{launcher}|2|127.0.0.1|{port}"
    return World(launcher, rank, 2, rank, 2, "127.0.0.1", port, False, one_machine, job)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment without a secret, with a folder for this user's files."""
    tmp_path.chmod(0o700)
    return {"XDG_RUNTIME_DIR": str(tmp_path)}


def test_on_one_machine_the_first_rank_makes_a_file_that_the_others_find(
    environment: dict[str, str], tmp_path: Path
) -> None:
    waiting = find_secret(environment, world(1))
    assert waiting.now() is None
    made = find_secret(environment, world(0))
    try:
        (path,) = (tmp_path / "learner-core").iterdir()
        assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
        assert made.now() == waiting.now() and len(made.now() or b"") == 64
        assert find_secret(environment, world(1, port=29501)).now() is None
        with pytest.raises(lc.LearnerGroupError, match=r"another job of yours meets at 127.0.0.1:29500 right now"):
            find_secret(environment, world(0))
        assert made.now() == waiting.now()
    finally:
        made.close()
        made.close()
    assert not path.exists() and waiting.now() is None
    again = find_secret(environment, world(0))
    assert again.now() == waiting.now() != made.now()
    again.close()
    waiting.close()


def test_what_a_killed_job_has_left_behind_is_written_anew_and_removed_in_time(
    environment: dict[str, str], tmp_path: Path
) -> None:
    made = find_secret(environment, world(0))
    (path,) = (tmp_path / "learner-core").iterdir()
    made.close()
    for name, age in ((path.name, 0), ("secret-old", 7200), ("secret-young", 0)):
        left = path.with_name(name)
        left.write_text("0" * 64 + "\n")
        left.chmod(0o600)
        os.utime(left, (time.time() - age, time.time() - age))
    made, waiting = find_secret(environment, world(0)), find_secret(environment, world(1))
    assert made.now() == waiting.now() != b"0" * 64
    assert sorted(file.name for file in path.parent.iterdir()) == sorted([path.name, "secret-young"])
    made.close()
    waiting.close()


@pytest.mark.parametrize("what", ["open folder", "open file", "symbolic link", "folder elsewhere", "not a file"])
def test_a_secret_that_others_may_reach_is_refused(environment: dict[str, str], tmp_path: Path, what: str) -> None:
    made = find_secret(environment, world(0))
    folder = tmp_path / "learner-core"
    (path,) = folder.iterdir()
    made.close()
    if what == "open folder":
        folder.chmod(0o711)
    elif what == "folder elsewhere":
        folder.rename(tmp_path / "elsewhere")
        folder.symlink_to(tmp_path / "elsewhere")
    elif what == "symbolic link":
        (tmp_path / "target").write_text("0" * 64 + "\n")
        path.symlink_to(tmp_path / "target")
    elif what == "not a file":
        path.mkdir(mode=0o700)
    else:
        path.write_text("0" * 64 + "\n")
        path.chmod(0o640)
    for rank in (0, 1):
        with pytest.raises(lc.LearnerGroupError, match=r"secret"):
            find_secret(environment, world(rank)).now()
    if what == "symbolic link":
        assert (tmp_path / "target").read_text() == "0" * 64 + "\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_another_user_can_neither_read_the_secret_nor_put_one_in_its_place(
    environment: dict[str, str], tmp_path: Path, first: First
) -> None:
    made = find_secret(environment, world(0))
    (path,) = (tmp_path / "learner-core").iterdir()
    for above in list(tmp_path.parents)[:-1]:
        if above.stat().st_uid == os.geteuid() and above != Path("/tmp"):
            above.chmod(above.stat().st_mode | 0o055)
    tmp_path.chmod(0o755)  # even where the folder above is open

    def attempts() -> int:
        done = 0
        for attempt in (
            lambda: path.read_bytes(),
            lambda: path.unlink(),
            lambda: os.listdir(path.parent),
            lambda: (path.parent / "secret-x").touch(),
            lambda: path.parent.rename(tmp_path / "other"),
        ):
            with contextlib.suppress(PermissionError):
                attempt()
                done += 1
        with contextlib.suppress(OSError):
            stream = connect(first)
            stream.sendall(Answer(OTHER, 1, take(stream, CHALLENGE_NBYTES)).message)
            done += any(take(stream, PROOF_NBYTES))
        return done

    assert as_nobody(attempts) == 0
    assert path.exists()
    made.close()
    # A folder that another user has made first is not used.
    os.chown(path.parent, 65534, 65534)
    for rank in (0, 1):
        with pytest.raises(lc.LearnerGroupError, match="belongs to user 65534"):
            find_secret(environment, world(rank)).now()


def as_nobody(function: Callable[[], int]) -> int:
    """The function's answer (0 to 99) in a process of another user."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            code = function()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("launcher", ["horovodrun", "torchrun", "Open MPI", "MPICH or Intel MPI", "SLURM"])
def test_several_machines_without_a_secret_are_refused_with_the_command(
    environment: dict[str, str], launcher: str
) -> None:
    for rank in (0, 1):
        with pytest.raises(lc.LearnerGroupError, match=r"secrets\.token_hex") as refused:
            find_secret(environment, world(rank, one_machine=False, launcher=launcher))
        assert launcher in str(refused.value) and VARIABLE in str(refused.value)
        given = find_secret({**environment, VARIABLE: SECRET.decode()}, world(rank, one_machine=False))
        assert given.now() == SECRET


@pytest.mark.parametrize("secret", ["short", "a" * 64, "ab" * 32, "0123456789abcdef" + "0" * 15])
def test_a_weak_secret_is_refused_and_not_shown(environment: dict[str, str], secret: str) -> None:
    with pytest.raises(lc.LearnerGroupError, match="at least 32 characters, 8 of them different") as refused:
        find_secret({**environment, VARIABLE: secret}, world())
    assert secret not in str(refused.value)


def test_a_secret_in_a_file_of_the_users_own(environment: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "mine"
    there = {**environment, VARIABLE: f"file:{path}"}
    with pytest.raises(lc.LearnerGroupError, match="umask 077"):
        find_secret(there, world())
    path.write_bytes(SECRET + b"\n")
    path.chmod(0o644)
    with pytest.raises(lc.LearnerGroupError, match=r"is open to others \(mode 644\)"):
        find_secret(there, world())
    path.chmod(0o600)
    assert find_secret(there, world(one_machine=False)).now() == SECRET
    path.write_text("too short")
    with pytest.raises(lc.LearnerGroupError, match="at least 32 characters"):
        find_secret(there, world())


def test_horovodrun_shows_what_is_in_the_environment(environment: dict[str, str], tmp_path: Path) -> None:
    given = {**environment, VARIABLE: SECRET.decode()}
    with pytest.warns(RuntimeWarning, match="writes LEARNER_CORE_SECRET into a command line.*file:"):
        assert find_secret(given, world(0, launcher="horovodrun")).now() == SECRET
    assert find_secret(given, world(1, launcher="horovodrun")).now() == SECRET  # said once, by rank 0
    path = tmp_path / "mine"
    path.write_bytes(SECRET)
    path.chmod(0o600)
    assert find_secret({VARIABLE: f"file:{path}"}, world(0, launcher="horovodrun")).now() == SECRET


BY_HAND = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "one_machine"),
    [
        ({**BY_HAND, "MASTER_ADDR": "127.0.0.1"}, True),
        ({**BY_HAND, "MASTER_ADDR": "localhost"}, True),
        ({**BY_HAND, "MASTER_ADDR": "10.0.0.1"}, False),
        ({**BY_HAND, "MASTER_ADDR": "127.evil.example"}, False),
        ({**BY_HAND, "MASTER_ADDR": "10.0.0.1", "LOCAL_WORLD_SIZE": "2"}, True),
        ({**BY_HAND, "MASTER_ADDR": "10.0.0.1", "LOCAL_WORLD_SIZE": "1"}, False),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_NNODES": "1", **BY_HAND, "MASTER_ADDR": "10.0.0.1"}, False),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_NNODES": "1"}, True),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_NNODES": "2", "SLURM_STEP_NUM_NODES": "1"}, True),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_NNODES": "2"}, False),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, False),
    ],
)
def test_whether_all_ranks_are_on_one_machine(environment: dict[str, str], one_machine: bool) -> None:
    options = SpmdOptions(rendezvous="" if "MASTER_ADDR" in environment else "10.0.0.1:5")
    assert find_world(environment, options).one_machine == one_machine


# ---- horovodrun's server ---------------------------------------------------------------------------------------------


def test_a_note_on_horovodruns_server_counts_only_if_rank_0_has_written_it() -> None:
    http_server = pytest.importorskip("horovod.runner.http.http_server")
    server = http_server.RendezvousHTTPServer(("127.0.0.1", 0), http_server.RendezvousHandler, 0)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        place = server.server_address[:2]
        note = HorovodNote(*place)
        with pytest.raises(LookupError):
            note.find(SECRET)
        HorovodNote(*place).write(OTHER, "10.6.6.6", 666)
        with pytest.raises(LookupError, match="with this job's secret"):
            note.find(SECRET)
        note.write(SECRET, "127.0.0.1", 77)
        assert note.find(SECRET) == ("127.0.0.1", 77)
        note.erase()
        with pytest.raises(LookupError):
            note.find(SECRET)
    finally:
        server.shutdown()
        server.server_close()


def test_our_horovod_rendezvous_answers_only_who_knows_its_token() -> None:
    pytest.importorskip("horovod")
    import http.client

    from learner_core.group.horovod.plugin import HorovodRendezvous

    def ask(method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(host, int(port), timeout=SOON_S)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    with HorovodRendezvous(2, timeout_s=10) as rendezvous:
        said = rendezvous.for_rank(1)
        (host, _, rest), port = (
            said["HOROVOD_GLOO_RENDEZVOUS_ADDR"].partition(":"),
            said["HOROVOD_GLOO_RENDEZVOUS_PORT"],
        )
        prefix = "/" + rest.partition("/")[2] + f":{port}"
        assert ask("PUT", f"{prefix}/global/0", b"here")[0] == 200
        assert ask("GET", f"{prefix}/global/0") == (200, b"here")
        for path in ("/global/0", f"/{'0' * 32}:{port}/global/0", "/", "//global/0"):
            assert ask("GET", path)[0] == ask("PUT", path, b"forged")[0] == 404
            assert ask("HEAD", path)[0] == ask("DELETE", path)[0] == 404
        assert ask("GET", f"{prefix}/global/0") == (200, b"here")


# ---- whole ranks, as users start them --------------------------------------------------------------------------------

SCRIPT = str(TESTS / "support" / "rank_script.py")


def attack(port: int, folder: Path) -> list[socket.socket]:
    """Wait for rank 0 to listen, and come before anybody else: with a pickle, another secret, half a word, nothing."""
    deadline = time.monotonic() + 120
    while True:
        try:
            streams = [socket.create_connection(("127.0.0.1", port), timeout=SOON_S)]
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    streams += [socket.create_connection(("127.0.0.1", port), timeout=SOON_S) for _ in range(3)]
    challenges = [take(stream, CHALLENGE_NBYTES) for stream in streams]
    streams[0].sendall(pickle.dumps(Canary(folder / "canary")) + bytes(ANSWER_NBYTES))
    streams[1].sendall(Answer(OTHER, 1, challenges[1]).message)
    assert take(streams[1], PROOF_NBYTES) == bytes(PROOF_NBYTES)
    streams[2].sendall(b"learner")
    return streams


@pytest.mark.parametrize(
    ("backend", "collective", "train"),
    [
        ("torch", "default", True),
        ("tf", "default", False),
        pytest.param("torch", "torch", True, marks=pytest.mark.slow),
    ],
)
def test_ranks_with_default_settings_meet_among_strangers(
    tmp_path: Path, backend: str, collective: str, train: bool
) -> None:
    """Nothing is set but the launcher; strangers come first. All ports are on the loopback interface."""
    port = free_port()
    command = [SCRIPT, "as_typed", backend, collective, *(["train"] if train else [])]
    there = {"MASTER_PORT": str(port)}
    first = start_ranks(2, command, environment=there, only=[0])
    streams = attack(port, tmp_path)
    ranks = wait_for([*first, *start_ranks(2, command, environment=there, only=[1])], timeout_s=240)
    for stream in streams:
        stream.close()
    answers = [json.loads(rank.output.splitlines()[-1]) for rank in ranks if rank.output]
    assert len(answers) == 2, [rank.errors for rank in ranks]
    assert answers[0]["pids"] == answers[1]["pids"] and len(set(answers[0]["pids"])) == 2
    assert answers[0]["gathered"] == [0.0, 1.0]
    assert "do not know this job's secret" in answers[0]["warned"][0] and answers[1]["warned"] == []
    assert all(address.startswith("127.") for answer in answers for address in answer["listening"])
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("backend", "collective"), [("torch", "horovod"), pytest.param("torch", "torch", marks=pytest.mark.slow)]
)
def test_one_group_after_the_other_meets_at_the_same_place(backend: str, collective: str) -> None:
    for rank in wait_for(start_ranks(2, [SCRIPT, "twice", backend, collective]), timeout_s=240):
        pids = json.loads(rank.output.splitlines()[-1]).get("pids", rank.output + rank.errors)
        assert len(pids) == 4 and pids[:2] == pids[2:] and len(set(pids)) == 2, pids


@pytest.mark.slow
def test_ranks_with_different_secrets_and_ranks_on_several_machines_end_in_words() -> None:
    command = [SCRIPT, "as_typed", "torch", "torch"]
    port = {"MASTER_PORT": str(free_port())}
    ranks = [
        *start_ranks(2, command, environment={**port, VARIABLE: SECRET.decode()}, only=[0]),
        *start_ranks(2, command, environment={**port, VARIABLE: OTHER.decode()}, only=[1]),
    ]
    (second,) = wait_for(ranks[1:], timeout_s=120)
    ranks[0].kill()
    wait_for(ranks[:1], timeout_s=60)
    assert "rank 0 has another secret" in second.output
    (alone,) = wait_for(start_ranks(2, command, environment={"MASTER_ADDR": "192.0.2.1"}, only=[1]), timeout_s=120)
    assert "may be on several machines, and need a secret in common" in alone.output
