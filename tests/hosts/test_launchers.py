"""``horovodrun`` and ``mpirun`` start ranks on two hosts, over ssh daemons of our own."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.hosts import Network
from support.ranks import TESTS, wait_for
from support.ssh_hosts import launch, missing_program, open_doors

pytestmark = pytest.mark.slow
SCRIPT = str(TESTS / "support" / "host_script.py")
Hosts = Callable[..., Network]


@pytest.fixture
def network(hosts: Hosts, tmp_path: Path) -> Network:
    """Two hosts with daemons."""
    reason = missing_program("sshd", "ssh", "ssh-keygen", "mpirun")
    if reason:
        pytest.skip(reason)
    network = hosts("hosta", "hostb")
    open_doors(network, tmp_path)
    return network


@pytest.fixture
def secret(tmp_path: Path) -> str:
    """A job's secret in a file, as ``horovodrun`` needs it."""
    path = tmp_path / "secret"
    path.touch(0o600)
    path.write_text(secrets.token_hex(32))
    return f"file:{path}"


def _answers(network: Network, folder: Path, command: list[str], secret: str, **environment: str) -> list[Any]:
    given = {"LEARNER_CORE_SECRET": secret, "OMP_NUM_THREADS": "1", **environment}
    (ended,) = wait_for([launch(network.hosts[0], folder, command, given)], timeout_s=500)
    for host in network:  # the daemons have done their part
        for pid, words in host.processes().items():
            if "sshd" in words:
                host.end(pid)
    assert ended.code == 0, ended.output[-3000:] + ended.errors[-3000:]
    found = [line[line.index("{") :] for line in ended.output.splitlines() if '"weights"' in line]
    return [json.loads(line) for line in found]


def _check(answers: list[Any]) -> None:
    assert len(answers) == 4
    assert sorted(answer["host"] for answer in answers) == ["hosta", "hosta", "hostb", "hostb"]
    assert all(answer["hosts"] == ["hosta", "hosta", "hostb", "hostb"] for answer in answers)
    assert len({answer["weights"] for answer in answers}) == 1


@pytest.mark.parametrize(("backend", "collective"), [("torch", "horovod"), ("torch", "torch"), ("tf", "horovod")])
def test_horovodrun_over_two_hosts(
    network: Network, tmp_path: Path, secret: str, backend: str, collective: str
) -> None:
    where = ["-np", "4", "-H", "hosta:2,hostb:2", "--gloo", "--start-timeout", "300"]
    command = ["horovodrun", *where, sys.executable, SCRIPT, "train", backend, collective, "2"]
    _check(_answers(network, tmp_path, command, secret))


@pytest.mark.parametrize(("backend", "collective"), [("torch", "horovod"), ("torch", "torch"), ("tf", "horovod")])
def test_mpirun_over_two_hosts(network: Network, tmp_path: Path, secret: str, backend: str, collective: str) -> None:
    passed_on = ["LEARNER_CORE_SECRET", "MASTER_ADDR", "MASTER_PORT", "PYTHONPATH", "OMP_NUM_THREADS"]
    where = ["-np", "4", "--host", "hosta:2,hostb:2", "--allow-run-as-root", "--map-by", "slot", "--bind-to", "none"]
    where += ["--mca", "plm_rsh_agent", "ssh", *(word for name in passed_on for word in ("-x", name))]
    command = ["mpirun", *where, sys.executable, SCRIPT, "train", backend, collective, "2"]
    meeting = {"MASTER_ADDR": network.hosts[0].address, "MASTER_PORT": "29400"}
    _check(_answers(network, tmp_path, command, secret, **meeting))
