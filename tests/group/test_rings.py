"""Rings through the Collective interface: every rank a process, every wait with a deadline."""

from __future__ import annotations

import time

import pytest

from learner_core.errors import LearnerGroupError, PluginNotFoundError
from learner_core.group import ring_check
from learner_core.group.collectives import load_collective
from learner_core.group.horovod import plugin as horovod_plugin
from learner_core.group.horovod.plugin import HorovodRendezvous

TIMEOUT = 120.0


@pytest.mark.parametrize(
    ("collective", "backends", "precision"),
    [
        pytest.param("horovod", ["torch", "torch"], "float32", marks=pytest.mark.slow),
        pytest.param("horovod", ["tf", "tf"], "float32", marks=pytest.mark.slow),
        ("horovod", ["torch", "tf"], "float64"),
        ("torch", ["torch", "torch"], "float32"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else str(value),
)
def test_a_ring_sums_and_broadcasts_exactly(collective: str, backends: list[str], precision: str) -> None:
    report = ring_check.check_ring(collective, backends, timeout_s=TIMEOUT, precision=precision)
    assert report.allreduce_ms > 0


def test_a_rank_that_fails_ends_the_check_before_its_deadline() -> None:
    start = time.monotonic()
    with pytest.raises(LearnerGroupError, match="rank 0: precision='float7'"):
        ring_check.check_ring("torch", ["torch", "torch"], timeout_s=TIMEOUT, precision="float7")
    assert time.monotonic() - start < TIMEOUT


def test_a_deadline_ends_every_rank() -> None:
    start = time.monotonic()
    with pytest.raises(LearnerGroupError, match=r"rank 0 ended .*within 0\.2 s"):
        ring_check.check_ring("torch", ["torch", "torch"], timeout_s=0.2)
    assert time.monotonic() - start < 60


def test_torch_distributed_reduces_torch_only_and_says_what_does() -> None:
    with pytest.raises(LearnerGroupError, match=r'collective="horovod" \(learner-core horovod build\)'):
        ring_check.check_ring("torch", ["torch", "tf"])


def test_a_collective_that_is_not_installed_is_named_with_the_nearest() -> None:
    with pytest.raises(PluginNotFoundError, match="Did you mean 'horovod'"):
        load_collective("horovot")


def test_without_horovod_the_error_has_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(horovod_plugin.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LearnerGroupError, match=r'run `learner-core horovod build`, or use collective="torch"'):
        load_collective("horovod").check("torch")
    with pytest.raises(LearnerGroupError, match=r"run `learner-core horovod build`$"):
        load_collective("horovod").check("tf")


def test_horovod_built_for_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(horovod_plugin, "installed_version", lambda: "0.28.1+lc1.tf2.20.0.torch2.12.0")
    with pytest.raises(LearnerGroupError, match=r"was not built for the torch that is installed \(torch2\.13\.0"):
        load_collective("horovod").check("torch")


def test_the_rendezvous_listens_on_the_loopback_interface_only() -> None:
    with HorovodRendezvous(2, timeout_s=5) as meeting:
        assert meeting._server.server_address[0] == "127.0.0.1"
        first, second = meeting.for_rank(0), meeting.for_rank(1)
        assert first["HOROVOD_RANK"] == "0" and second["HOROVOD_RANK"] == "1"
        assert first["HOROVOD_GLOO_RENDEZVOUS_PORT"] == second["HOROVOD_GLOO_RENDEZVOUS_PORT"] != "0"
        assert first["HOROVOD_GLOO_IFACE"] == "lo"
    meeting.close()  # twice is fine
