"""``launcher="spmd"``: ranks of one script compute what one learner computes, sample apart, and end together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from learner_core.state.lock import FolderLock

from support.ranks import TESTS, Ended, start_ranks, wait_for

SCRIPT = str(TESTS / "support" / "rank_script.py")
RUNS = str(TESTS / "support" / "rank_runs.py")


def _run(size: int, *arguments: str, timeout_s: float = 240.0, compile: str = "") -> list[Ended]:
    ranks = start_ranks(size, [SCRIPT, *arguments], environment={"RANKS_COMPILE": compile})
    return wait_for(ranks, timeout_s=timeout_s)


def _said(ended: Ended) -> dict[str, Any]:
    lines = [line for line in ended.output.splitlines() if line.startswith("{")]
    assert lines, f"exit code {ended.code}\n{ended.output}\n{ended.errors}"
    found: dict[str, Any] = json.loads(lines[-1])
    return found


@pytest.mark.parametrize(
    ("backend", "collective", "size", "updates", "compile"),
    [
        ("torch", "horovod", 2, 50, ""),
        pytest.param("torch", "torch", 2, 50, "true", marks=pytest.mark.slow),
        pytest.param("torch", "horovod", 2, 50, "true", marks=pytest.mark.slow),
        pytest.param("torch", "torch", 3, 10, "", marks=pytest.mark.slow),
        pytest.param("tf", "horovod", 2, 3, "", marks=pytest.mark.slow),  # a minute: it compiles every kind
        pytest.param("tf", "horovod", 2, 50, "true", marks=pytest.mark.slow),
        pytest.param("tf", "horovod", 2, 50, "false", marks=pytest.mark.slow),
        pytest.param("tf", "horovod", 3, 10, "", marks=pytest.mark.slow),
    ],
)
def test_ranks_compute_what_one_learner_with_their_shards_computes(
    backend: str, collective: str, size: int, updates: int, compile: str
) -> None:
    """Even and uneven rows, a rank with none, SAC, a module on one rank alone; TensorFlow compiles by itself."""
    ranks = _run(size, "equality", backend, collective, str(updates), timeout_s=3000, compile=compile)
    answers = [_said(ended) for ended in ranks]
    for answer in answers:
        assert "error" not in answer, answer
        assert answer.pop("ppo float32") <= 2e-6
        for name, difference in answer.items():
            assert difference <= 1e-10, name


def test_ranks_are_asked_together_and_refuse_together(tmp_path: Path) -> None:
    answers = [_said(ended) for ended in _run(2, "group_calls", "torch", "torch", str(tmp_path / "state"))]
    first, second = answers
    assert first["pids"] == second["pids"] and len(set(first["pids"])) == 2
    assert first["first"] == second["first"] == first["pids"][0]
    assert first["gathered"] == [0, 10]
    assert first["same"] and second["same"]
    assert first["updates"] == second["updates"] == 2
    assert (tmp_path / "state").is_file()
    bad, sizes, division = zip(first["refused"], second["refused"], strict=True)
    assert "refused on rank 1 of 2, so on all: rank 1: BatchError" in bad[0] and bad[1].startswith("BatchError")
    assert "minibatch_size must be the same on all 2 ranks; rank 0 has 16" in sizes[0] and "has 17" in sizes[1]
    assert division[0].startswith("ZeroDivisionError") and "rank 0: ZeroDivisionError" in division[1]


@pytest.mark.parametrize(("hidden", "collective"), [("01", "torch"), ("1", None)])
def test_ranks_find_out_together_what_sums_their_gradients(hidden: str, collective: str | None) -> None:
    """Horovod is hidden from both ranks, or from one."""
    for answer in [_said(ended) for ended in _run(2, "choice", "torch", hidden)]:
        if collective is not None:
            assert answer == {"collective": collective}
        else:
            expected = "the ranks have come to different collectives: 'horovod' on rank 0; 'torch' on rank 1. Install"
            assert expected in answer["error"]


def test_ranks_that_have_come_to_differ_take_the_first_ones_state() -> None:
    for answer in [_said(ended) for ended in _run(2, "drift", "torch", "torch")]:
        assert answer["same"]
        assert answer["warned"] == ["after update 1 the ranks' parameters differed; all have rank 0's state now"]


def test_a_run_samples_apart_and_goes_on_from_its_checkpoint_as_one(tmp_path: Path) -> None:
    """Counters, episodes and normalisers are those of all ranks; the environments are each rank's own."""
    answers = [_said(ended) for ended in _run(2, "samples", "torch", "torch", str(tmp_path / "checkpoint"))]
    first, second = answers
    assert first["results"]["num_env_steps_sampled_lifetime"] > 200
    assert first["results"] == second["results"]
    assert first["evaluated"] == second["evaluated"]
    assert first["same"] and second["same"]
    words = "ranks/[1]/env_runner/episodes/lengths: expected values of at least 0, got -1"
    for answer in answers:  # rank 0's part was right, and it has not taken it over
        assert words in answer["refusal"] and answer["unchanged"]
    assert len(set(first["counts"])) == 1 and first["counts"] == second["counts"]
    assert first["seed"] != second["seed"]
    assert first["means"] == second["means"]
    assert all(count >= first["counts"][0] for count in first["seen"].values()) and first["seen"]


@pytest.mark.parametrize(
    ("backend", "collective", "compile"),
    [
        ("torch", "torch", ""),
        pytest.param("torch", "horovod", "true", marks=pytest.mark.slow),
        pytest.param("tf", "horovod", "", marks=pytest.mark.slow),
        pytest.param("tf", "horovod", "false", marks=pytest.mark.slow),
    ],
)
def test_every_kind_of_algorithm_is_one_run_and_goes_on_with_another_number_of_ranks(
    tmp_path: Path, backend: str, collective: str, compile: str
) -> None:
    """PPO of two agents, SAC, BC, IMPALA, APPO of two agents: each rank samples apart, and nothing is lost."""
    folder = str(tmp_path)
    environment = {"RANKS_COMPILE": compile}
    timeout_s = 3000 if compile == "true" or backend == "tf" else 500
    ranks = start_ranks(2, [RUNS, "train", backend, collective, folder], environment=environment)
    ranks = wait_for(ranks, timeout_s=timeout_s)
    for answer in [_said(ended) for ended in ranks]:
        for kind, found in answer.items():
            assert found["updates"] > 1, kind
            assert found["alone"] <= 1e-10, f"{kind}: not what one learner makes of the same rows"
            assert found["ranks"] == found["again"] == 0.0 and found["results"], kind
            assert found.get("unaccounted", 0) == 0 and len(set(found.get("lag", [0]))) == 1, kind
    for size, launcher in ((3, "spmd"), (1, "local")):
        ranks = start_ranks(size, [RUNS, "go_on", backend, collective, folder, launcher], environment=environment)
        ranks = wait_for(ranks, timeout_s=timeout_s)
        for answer in [_said(ended) for ended in ranks]:
            for kind, found in answer.items():
                assert found["difference"] == found["ranks"] == 0.0 and found["size"] == size, kind
                assert found["updates"] > 0, kind
                assert kind == "bc" or found["steps"][1] > found["steps"][0] > 0, kind
                assert found.get("unaccounted", 0) == 0, kind


@pytest.mark.parametrize(
    ("backend", "collective", "size", "kind", "text"),
    [
        ("torch", "horovod", 3, "kill", "rank 1 of 3 (pid "),
        ("torch", "torch", 2, "stop", "gave no sign of life for 4 s"),
        pytest.param("torch", "torch", 3, "kill", "ended", marks=pytest.mark.slow),
        pytest.param("torch", "horovod", 2, "stop", "gave no sign of life for 4 s", marks=pytest.mark.slow),
        pytest.param("tf", "horovod", 2, "kill", "rank 1 of 2 (pid ", marks=pytest.mark.slow),
        pytest.param("torch", "torch", 2, "raise", "a hook of rank 1 failed", marks=pytest.mark.slow),
    ],
)
def test_when_a_rank_is_lost_the_others_name_it_and_end(
    backend: str, collective: str, size: int, kind: str, text: str
) -> None:
    ranks = start_ranks(size, [SCRIPT, "fault", backend, collective, kind])
    assert ranks[0].stdout is not None
    assert any(line.startswith("second") for line in ranks[0].stdout)
    others = wait_for([ranks[0], *ranks[2:]], timeout_s=120)
    ranks[1].kill()  # the one that is stopped
    ranks[1].communicate()
    for ended in others:
        assert ended.code in (1, 2), ended.errors
        assert text in ended.output + ended.errors
        assert "rank 1 of" in ended.output + ended.errors


@pytest.mark.slow
def test_a_rank_that_ends_between_updates_is_named() -> None:
    first, second = _run(2, "exits", "torch", "torch")
    assert second.code == 3
    assert "WorkerLostError: rank 1 of 2" in _said(first)["error"]


@pytest.mark.parametrize("backend", ["torch", pytest.param("tf", marks=pytest.mark.slow)])
def test_environments_of_ranks(backend: str) -> None:
    """Two ranks with a vector of three each, with an object each, and with one that only rank 1 cannot make."""
    collective = "torch" if backend == "torch" else "horovod"
    script = str(TESTS / "support" / "rank_environments.py")
    for answer in map(_said, wait_for(start_ranks(2, [script, backend, collective]), timeout_s=240)):
        assert answer["vector"] == [3, 24, 3] and answer["object"] == [1, 24, 3]
        assert "EnvError: The environment callable _broken_on_one" in answer["broken"]
        assert "raised ValueError: only here" in answer["broken"]


def test_a_rank_that_never_comes_is_named() -> None:
    (ended,) = wait_for(start_ranks(2, [SCRIPT, "alone", "torch", "torch"], only=[0]), timeout_s=120)
    assert "rank 0 of 2 waited for rank 1 for" in _said(ended)["error"]


def _horovodrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    programs = Path(sys.executable).parent
    command = [programs / "horovodrun", "-np", "2", "--gloo", "--network-interfaces", "lo", programs / "learner-core"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment["PATH"] = f"{programs}{os.pathsep}{environment['PATH']}"
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=300, env=environment, check=False
    )


@pytest.mark.slow  # half a minute; tests/doors has horovodrun in the fast tier
def test_the_command_line_trains_under_horovodrun_and_resumes_on_the_other_framework(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    small = [f"--set={name}" for name in ("train_batch_size=128", "minibatch_size=64", "model.hidden=[16]")]
    how = ["--set", "num_epochs=1", "--set", "compile=false", *small]
    trained = _horovodrun(
        "train", "ppo", "--env", "CartPole-v1", "--backend", "torch", "--launcher", "spmd", "--out", run,
        "--stop-iterations", "2", *how,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert "[0]<stdout>:stopped" in trained.stdout
    assert "[1]<stdout>" not in trained.stdout
    with FolderLock(tmp_path / "run" / "run.lock"):  # rank 0 finds it held, and all end
        refused = _horovodrun("train", "--resume", run, "--stop-iterations", "3")
    assert refused.returncode != 0
    assert f"{run} is in use: process {os.getpid()} on " in " ".join(refused.stderr.split())
    assert ">:Traceback" not in refused.stderr  # of a rank; horovodrun has one of its own
    resumed = _horovodrun("train", "--resume", run, "--backend", "tf", "--stop-iterations", "3")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["training_iteration"] for row in rows] == [1, 2, 3]
    assert [row["backend"] for row in rows] == ["torch", "torch", "tf"]
    steps = [row["num_env_steps_sampled_lifetime"] for row in rows]
    assert steps[0] > 100 and steps[2] - steps[1] > 100
    checkpoints = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert checkpoints == ["checkpoint-00000002.lcstate", "checkpoint-00000003.lcstate"]


def test_groups_of_one_job_meet_each_at_its_own_server_and_not_at_horovodruns() -> None:
    """What horovodrun's server keeps of an earlier group would send the next one to addresses that are gone."""
    http_server = pytest.importorskip("horovod.runner.http.http_server")
    asked: list[str] = []

    class Handler(http_server.RendezvousHandler):  # type: ignore[misc, name-defined]
        def parse_request(self) -> bool:
            understood = bool(super().parse_request())
            asked.append(self.path)
            return understood

    server = http_server.RendezvousHTTPServer(("127.0.0.1", 0), Handler, 0)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        place = {"HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1", "HOROVOD_GLOO_RENDEZVOUS_PORT": str(server.server_port)}
        ranks = []
        for rank in range(2):
            who = {"HOROVOD_RANK": str(rank), "HOROVOD_SIZE": "2", "HOROVOD_LOCAL_RANK": str(rank)}
            environment = {**place, **who, "HOROVOD_LOCAL_SIZE": "2"}
            ranks += start_ranks(2, [SCRIPT, "twice", "torch", "horovod"], environment=environment, only=[rank])
        answers = [_said(ended) for ended in wait_for(ranks, timeout_s=240.0)]
    finally:
        server.shutdown()
        server.server_close()
    assert answers[0] == answers[1] and len(set(answers[0]["pids"])) == 2
    assert asked and all(path.startswith("/learner_core/") for path in asked), asked


@pytest.mark.parametrize(
    ("backend", "collective"), [("torch", "torch"), pytest.param("tf", "horovod", marks=pytest.mark.slow)]
)
def test_settings_and_weights_change_on_all_ranks_alike_or_on_none(
    tmp_path: Path, backend: str, collective: str
) -> None:
    """By set_config and its siblings, through an Algorithm and its group; ranks given different things say which."""
    ranks = wait_for(start_ranks(2, [RUNS, "settings", backend, collective, str(tmp_path)]), timeout_s=240.0)
    for answer in [_said(ended) for ended in ranks]:
        assert answer["targets"] == [[1.0, 1.5, 1.75, 1.875, 1.9375], [1.0, 1.25, 1.3125, 1.328125, 1.33203125]]
        assert answer["settings"] == [0.25, 0.25, 0.0] and answer["stored"] == 0.25
        assert answer["unchanged"]
        same = "LearnerGroupError: {}: every rank must be given the same; {}"
        for said, (call, expected) in zip(
            answer["refused"],
            [
                ("set_config", "gamma: 0.5 on rank 0, 0.75 on rank 1"),
                ("set_config", "evaluation_interval: nothing on rank 0, 1 on rank 1"),
                ("set_config", "gama: nothing on rank 0, 0.5 on rank 1"),
                ("set_config", "lr: 0.25 on rank 0, 0.5 on rank 1"),
                ("set_weights", "default_policy/pi.1.bias: float32[2] "),
                ("set_state", "noise/seed: 0 on rank 0, 1 on rank 1"),
                ("", ""),
                ("add_module", "module_id: 'b' on rank 0, 'a' on rank 1"),
            ],
            strict=True,
        ):
            assert said.startswith(same.format(call, expected)) or not call, said
        assert "state1" in answer["refused"][6]
