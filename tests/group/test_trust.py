"""Neighbours of a job as users start it: strangers come first, and learn and change nothing."""

from __future__ import annotations

import json
import pickle
import socket
import threading
import time
from pathlib import Path

import pytest

from learner_core.group.spmd.handshake import ANSWER_NBYTES, CHALLENGE_NBYTES, PROOF_NBYTES, Answer
from learner_core.group.spmd.notes import HorovodNote
from learner_core.group.spmd.secret import VARIABLE

from support.ranks import TESTS, free_port, start_ranks, wait_for
from support.strangers import OTHER, SECRET, SOON_S, Canary, take

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
        pytest.param("tf", "default", True, marks=pytest.mark.slow),
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
