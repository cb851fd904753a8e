"""``launcher="spmd"`` over several hosts: one run, whatever they are called; faults are named in bounded time."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from support.hosts import Host, Network, start_on
from support.ranks import TESTS, Ended, wait_for

SCRIPT = str(TESTS / "support" / "host_script.py")
EQUALITY = str(TESTS / "support" / "rank_script.py")
RUNS = str(TESTS / "support" / "rank_runs.py")
TIMEOUT_S = 4.0
#: From a fault to the end of every rank that lives: the silence, a grace for the ring, and a busy machine.
NOTICED_S = TIMEOUT_S + 4.0 + 20.0
BACKENDS = [("torch", "torch"), ("torch", "horovod"), ("tf", "horovod")]
Hosts = Callable[..., Network]


def _said(ended: Ended) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in ended.output.splitlines() if line.startswith("{")]
    assert lines, f"exit code {ended.code}\n{ended.output}\n{ended.errors}"
    return lines


def _run(where: Sequence[Host], *arguments: str, timeout_s: float = 240.0) -> list[Ended]:
    command = [sys.executable, *(arguments if arguments[0].endswith(".py") else (SCRIPT, *arguments))]
    return wait_for(start_on(where, command), timeout_s=timeout_s)


def _within(timeout_s: float, size: int) -> dict[int, dict[str, str]]:
    """``timeout_s`` of all ranks, for ``start_on``."""
    return {rank: {"LC_TIMEOUT_S": f"{timeout_s:g}"} for rank in range(size)}


def _errors(ranks: Sequence[Ended]) -> list[str]:
    """What every rank ended with: an error that it raised, or its last words where it hung in a library."""
    assert all(ended.code in (1, 2) for ended in ranks), [(e.code, e.output[-2000:], e.errors[-2000:]) for e in ranks]
    return [ended.output + ended.errors for ended in ranks]


# ---------------------------------------------------------------------------------------------------- what they compute


@pytest.mark.parametrize(
    ("backend", "collective", "names"),
    [
        pytest.param("torch", "torch", ("same", "same"), marks=pytest.mark.slow),
        ("torch", "horovod", ("same", "same")),
        ("tf", "horovod", ("hosta", "hostb")),
        pytest.param("torch", "horovod", ("same", "same", "other", "same"), marks=pytest.mark.slow),
        pytest.param("torch", "torch", ("hosta", "hostb", "hostc"), marks=pytest.mark.slow),
        pytest.param("tf", "horovod", ("same", "same"), marks=pytest.mark.slow),
    ],
)
def test_a_run_with_default_settings_is_one_run_on_all_hosts(
    hosts: Hosts, backend: str, collective: str, names: Sequence[str]
) -> None:
    """Machines made from one image have one name: Horovod takes them for one machine, unless it is told better."""
    said = [_said(ended)[-1] for ended in _run(hosts(*names).hosts, "train", backend, collective, "2")]
    assert [answer.get("hosts") for answer in said] == [list(names)] * len(names), said
    assert [answer["host"] for answer in said] == list(names)
    assert len({answer["weights"] for answer in said}) == 1
    assert len({answer["steps"] for answer in said}) == 1 and said[0]["steps"] > 256


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "collective"), BACKENDS)
def test_hosts_compute_what_one_learner_computes(hosts: Hosts, backend: str, collective: str) -> None:
    """PPO and SAC, even and uneven rows, a module on one rank alone."""
    for ended in _run(hosts("hosta", "hostb").hosts, EQUALITY, "equality", backend, collective, "5", timeout_s=500):
        (answer,) = _said(ended)
        assert "error" not in answer, answer
        assert answer.pop("ppo float32") <= 2e-6
        for name, difference in answer.items():
            assert difference <= 1e-10, name


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "collective"), BACKENDS)
def test_every_kind_of_algorithm_runs_on_two_hosts(hosts: Hosts, tmp_path: Any, backend: str, collective: str) -> None:
    ranks = _run(hosts("hosta", "hostb").hosts, RUNS, "train", backend, collective, str(tmp_path), timeout_s=580)
    for answer in [_said(ended)[-1] for ended in ranks]:
        for kind, found in answer.items():
            assert found["updates"] > 1, kind
            assert found["alone"] <= 1e-10, f"{kind}: not what one learner makes of the same rows"
            assert found["ranks"] == found["again"] == 0.0 and found["results"], kind


# --------------------------------------------------------------------------------------------------- before they meet


@pytest.mark.parametrize(
    ("backend", "collective", "variable"),
    [
        ("torch", "torch", "GLOO_SOCKET_IFNAME"),
        pytest.param("torch", "horovod", "HOROVOD_GLOO_IFACE", marks=pytest.mark.slow),
        pytest.param("tf", "horovod", "HOROVOD_GLOO_IFACE", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("fault", ["missing", pytest.param("loopback", marks=pytest.mark.slow)])
def test_a_wrong_interface_is_named_on_every_rank(
    hosts: Hosts, backend: str, collective: str, variable: str, fault: str
) -> None:
    named = {"missing": "nosuch0", "loopback": "lo"}[fault]
    # The second rank's alone: the first one hears of it.
    command = [sys.executable, SCRIPT, "updates", backend, collective, "3"]
    ranks = start_on(hosts("hosta", "hostb").hosts, command, {1: {variable: named}})
    for said in _errors(wait_for(ranks, timeout_s=120)):
        assert '"error": "NetworkError: rank ' in said
        if fault == "missing":
            assert f"10.77.0.2): {variable}=nosuch0: this machine (hostb) has no network interface 'nosuch0'" in said
            assert "it has lo (127.0.0.1), eth0 (10.77.0.2)" in said
        else:
            assert "rank 0 of 2 (pid " in said and "cannot reach rank 1 of 2 (pid " in said
            assert "on hostb, 10.77.0.2) at 127.0.0.1 (" in said


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "collective"), BACKENDS)
def test_hosts_that_do_not_reach_each_other_are_named_before_they_join(
    hosts: Hosts, backend: str, collective: str
) -> None:
    """Both of them reach the first host, where all meet."""
    network = hosts("hosta", "hostb", "hostc")
    network["hostb"].drop(network["hostc"])
    begin = time.monotonic()
    command = [sys.executable, SCRIPT, "updates", backend, collective, "3"]
    for said in _errors(wait_for(start_on(network.hosts, command, _within(TIMEOUT_S, 3)), timeout_s=240)):
        assert '"error": "NetworkError: rank 1 of 3 (pid ' in said
        assert "on hostb, 10.77.0.2) cannot reach rank 2 of 3 (pid " in said
        assert f"on hostc, 10.77.0.3) at 10.77.0.3 (no answer in {TIMEOUT_S:g} s" in said
        assert "terminate" not in said
    print(f"{backend} {collective}: {time.monotonic() - begin:.1f} s from the start of Python")


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "collective"), BACKENDS)
def test_a_host_without_loopback_takes_part(hosts: Hosts, backend: str, collective: str) -> None:
    network = hosts("hosta", "hostb")
    network["hostb"].in_network("ip", "link", "set", "lo", "down")
    assert len({_said(ended)[-1]["weights"] for ended in _run(network.hosts, "updates", backend, collective, "3")}) == 1


@pytest.mark.parametrize(
    ("backend", "collective", "variable"),
    [
        ("torch", "torch", "GLOO_SOCKET_IFNAME"),
        pytest.param("torch", "horovod", "HOROVOD_GLOO_IFACE", marks=pytest.mark.slow),
        pytest.param("tf", "horovod", "HOROVOD_GLOO_IFACE", marks=pytest.mark.slow),
    ],
)
def test_learners_of_one_host_say_what_is_wrong_with_its_interfaces(
    hosts: Hosts, backend: str, collective: str, variable: str
) -> None:
    """A group in a driver: the loopback interface is down, or another one is named that is not there."""
    (host,) = network = hosts("hosta")
    command = [sys.executable, SCRIPT, "local", backend, collective, "2"]
    (wrong,) = _errors(wait_for([host.start(command, {variable: "nosuch0"})], timeout_s=240))
    host.in_network("ip", "link", "set", "lo", "down")
    (down,) = _errors(wait_for([host.start(command)], timeout_s=240))
    assert f'"error": "NetworkError: {variable}=nosuch0: this machine (hosta) has no network interface' in wrong
    assert '"error": "NetworkError: on this machine (hosta) the loopback interface lo, over which' in down
    assert "is down: `ip link set lo up`" in down
    assert not network.left()


# ---------------------------------------------------------------------------------------------------------- in mid-run


def _await_updates(rank: subprocess.Popen[str], count: int) -> None:
    assert rank.stdout is not None
    for line in rank.stdout:
        count -= line.startswith('{"update"')
        if not count:
            return
    _, errors = rank.communicate()
    raise AssertionError(f"a rank has ended before the fault: {errors}")


#: What happens, between how many hosts, and for each rank which it names in the end; ``None``: its host is no more.
FAULTS: dict[str, tuple[int, Callable[[Network], object], list[int | None]]] = {
    "the last host is killed": (2, lambda network: network.hosts[1].kill(), [1, None]),
    "the first host is killed": (3, lambda network: network.hosts[0].kill(), [None, 0, 0]),
    "a link goes down": (2, lambda network: network.hosts[1].set_link(False), [1, 0]),
    "the first host is not heard": (2, lambda network: network.hosts[0].drop(network.hosts[1]), [1, 0]),
    "the last host is not heard": (2, lambda network: network.hosts[1].drop(network.hosts[0]), [1, 0]),
    "one of two others is not heard": (3, lambda network: network.hosts[1].drop(network.hosts[2]), [1, 1, 1]),
}
_FAST = ("the last host is killed", "torch", "horovod")


@pytest.mark.parametrize(
    ("fault", "backend", "collective"),
    [
        pytest.param(fault, *kind, marks=[] if (fault, *kind) == _FAST else pytest.mark.slow)
        for fault in FAULTS
        for kind in BACKENDS
    ],
)
def test_a_fault_in_mid_run_ends_every_rank_that_lives_and_names_rank_and_host(
    hosts: Hosts, fault: str, backend: str, collective: str
) -> None:
    size, strike, lost = FAULTS[fault]
    network = hosts(*["hosta", "hostb", "hostc"][:size])
    command = [sys.executable, SCRIPT, "updates", backend, collective, "1000000"]
    ranks = start_on(network.hosts, command, _within(TIMEOUT_S, size))
    _await_updates(ranks[0], 3)
    strike(network)
    ends = wait_for(ranks, timeout_s=120)
    for ended, named in zip(ends, lost, strict=True):
        if named is None:
            continue
        said = ended.output + ended.errors
        assert ended.code in (1, 2), (ended.code, said[-2000:])
        host = network.hosts[named]
        assert f"rank {named} of {size} (pid " in said and f"on {host.name}, {host.address})" in said, said[-2000:]
        assert ended.seconds < NOTICED_S
    living = [ended.seconds for ended, named in zip(ends, lost, strict=True) if named is not None]
    print(f"{fault}, {backend} {collective}: all ended after {max(living):.1f} s, timeout_s={TIMEOUT_S:g}")


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "collective"), BACKENDS)
def test_a_link_that_comes_back_in_time_changes_nothing(hosts: Hosts, backend: str, collective: str) -> None:
    network = hosts("hosta", "hostb")
    command = [sys.executable, SCRIPT, "updates", backend, collective, "30"]
    calm = {_said(ended)[-1]["weights"] for ended in wait_for(start_on(network.hosts, command), timeout_s=240)}
    ranks = start_on(network.hosts, command, _within(20.0, 2))
    _await_updates(ranks[0], 3)
    network["hostb"].set_link(False)
    time.sleep(6)  # what is sent meanwhile is sent again, after pauses that double: all is there after twelve seconds
    network["hostb"].set_link(True)
    ended = wait_for(ranks, timeout_s=240)
    assert {_said(end)[-1].get("weights") for end in ended} == calm and len(calm) == 1, ended


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "collective"), BACKENDS)
def test_a_slow_and_lossy_link_is_waited_for(hosts: Hosts, backend: str, collective: str) -> None:
    network = hosts("hosta", "hostb")
    command = [sys.executable, SCRIPT, "updates", backend, collective, "6"]
    calm = {_said(ended)[-1]["weights"] for ended in wait_for(start_on(network.hosts, command), timeout_s=240)}
    how = network.impair(network["hostb"], delay_s=0.2, loss=0.05)
    # By default: three packets lost in a row are no loss of a rank.
    ended = wait_for(start_on(network.hosts, command, _within(10.0, 2)), timeout_s=400)
    assert {_said(end)[-1].get("weights") for end in ended} == calm and len(calm) == 1, ended
    times = [line["time"] for line in _said(ended[0]) if "update" in line]
    print(f"{backend} {collective} over {how}: {(times[-1] - times[0]) / (len(times) - 1):.1f} s an update")
