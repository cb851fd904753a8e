"""``launcher="ray"`` with a raylet on every host: learners and environment runners apart, and hosts that fail."""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.hosts import Network
from support.ray_hosts import TIMEOUT_S, join, start_driver

pytestmark = pytest.mark.slow
Hosts = Callable[..., Network]
BACKENDS = [("torch", "torch"), ("torch", "horovod"), ("tf", "horovod")]
#: For a busy machine: a driver that says nothing for so long hangs.
HANGS_S = 500.0


class Driver:
    """A driver on the first of several hosts, of which the others have learners or runners."""

    def __init__(self, network: Network, folder: Path, *arguments: str) -> None:
        self.network = network
        self.enough = folder / "enough"
        self.lines: list[dict[str, Any]] = []
        join(network, folder)
        self._process = start_driver(network.hosts[0], *(str(self.enough) if a == "ENOUGH" else a for a in arguments))
        self._deadline = threading.Timer(2 * HANGS_S, network.hosts[0].close)  # ends the waits below
        self._deadline.daemon = True
        self._deadline.start()

    def wait_for(self, what: str, count: int) -> None:
        """Until it has said so many times what has this key, or has ended."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                self.lines.append(json.loads(line))
                count -= what in self.lines[-1]
                if not count:
                    return
        raise AssertionError(f"the driver has ended: {self.lines}\n{self.end()}")

    def end(self) -> str:
        """Let it come to its end; returns what it said to standard error."""
        self.enough.touch()
        try:
            output, errors = self._process.communicate(timeout=HANGS_S)
        except subprocess.TimeoutExpired:
            self.network.hosts[0].close()
            output, errors = self._process.communicate()
            errors += f"\nno end within {HANGS_S:g} s"
        self._deadline.cancel()
        self.lines += [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        return errors


@pytest.fixture
def drivers(hosts: Hosts) -> Iterator[Callable[..., Driver]]:
    """``drivers(3, *arguments)``: on three hosts; afterwards Ray, too, is ended with them."""
    networks = []
    # Ray's sockets are files whose paths are short.
    with tempfile.TemporaryDirectory(prefix="lc-ray-") as folder:

        def make(size: int, *arguments: str) -> Driver:
            network = hosts(*["hosta", "hostb", "hostc", "hostd"][:size])
            networks.append(network)
            return Driver(network, Path(folder), *arguments)

        yield make
        for network in networks:
            for host in network:
                host.close()


@pytest.mark.parametrize(("backend", "collective"), BACKENDS)
def test_learners_on_two_hosts_compute_what_one_computes(
    drivers: Callable[..., Driver], backend: str, collective: str
) -> None:
    driver = drivers(3, "updates", backend, collective, "ENOUGH", "no")
    driver.wait_for("update", 4)
    errors = driver.end()
    last = driver.lines[-1]
    assert last.get("difference", 1.0) <= 2e-6, (last, errors[-3000:])
    assert sorted(last["places"]) == ["10.77.0.2", "10.77.0.3"]


#: What happens to the last of three hosts, and what is said of it.
FAULTS: dict[str, Callable[[Network], object]] = {
    "killed": lambda network: network.hosts[-1].close(),
    "without power": lambda network: network.hosts[-1].kill(),
    "off the network": lambda network: network.hosts[-1].set_link(False),
    "not heard by the driver": lambda network: network.hosts[-1].drop(network.hosts[0]),
}


@pytest.mark.parametrize(
    ("fault", "backend", "collective"),
    [
        *((fault, "torch", "torch") for fault in FAULTS),
        ("without power", "torch", "horovod"),
        ("without power", "tf", "horovod"),
    ],
)
def test_where_losses_are_repaired_a_run_goes_on_without_a_host(
    drivers: Callable[..., Driver], fault: str, backend: str, collective: str
) -> None:
    driver = drivers(3, "updates", backend, collective, "ENOUGH", "restart")
    driver.wait_for("update", 3)
    FAULTS[fault](driver.network)
    struck = time.monotonic()
    driver.wait_for("restarted", 1)
    repaired_s = time.monotonic() - struck
    driver.wait_for("update", 3)
    errors = driver.end()
    last, lost = driver.lines[-1], [line for line in driver.lines if "lost" in line]
    assert last.get("difference", 1.0) <= 2e-6, (last, errors[-3000:])
    assert last["places"] == ["10.77.0.2", "10.77.0.2"]
    assert "of 2" in lost[0]["reason"] and "on 10.77.0.3" in lost[0]["reason"], lost
    print(f"Ray, a host {fault}, {backend} {collective}: repaired in {repaired_s:.1f} s, timeout_s={TIMEOUT_S:g}")


def test_without_repair_a_host_without_power_is_named(drivers: Callable[..., Driver]) -> None:
    driver = drivers(3, "updates", "torch", "torch", "ENOUGH", "no")
    driver.wait_for("update", 3)
    driver.network.hosts[-1].kill()
    struck = time.monotonic()
    driver.wait_for("error", 1)
    seconds = time.monotonic() - struck
    driver.end()
    (error,) = [line["error"] for line in driver.lines if "error" in line]
    assert f"of 2 gave no sign of life for {TIMEOUT_S:g} s during update, on 10.77.0.3" in error
    assert seconds < TIMEOUT_S + 60
    print(f"Ray, a host without power: named after {seconds:.1f} s")


def test_learners_that_do_not_reach_each_other_are_named_before_they_join(drivers: Callable[..., Driver]) -> None:
    """Where Horovod would end the process, and the driver reaches both."""
    driver = drivers(3, "updates", "torch", "horovod", "ENOUGH", "no")
    driver.network.hosts[1].drop(driver.network.hosts[2])
    driver.wait_for("error", 1)
    driver.end()
    (error,) = [line["error"] for line in driver.lines if "error" in line]
    assert "NetworkError: learner " in error and "(10.77.0.2) cannot reach learner " in error
    assert f"at 10.77.0.3 (no answer in {TIMEOUT_S:g} s" in error


def test_two_learners_that_lose_each_other_are_named_though_the_driver_reaches_both(
    drivers: Callable[..., Driver],
) -> None:
    driver = drivers(3, "updates", "torch", "torch", "ENOUGH", "no")
    driver.wait_for("update", 3)
    driver.network.hosts[1].drop(driver.network.hosts[2])
    struck = time.monotonic()
    driver.wait_for("error", 1)
    seconds = time.monotonic() - struck
    driver.end()
    (error,) = [line["error"] for line in driver.lines if "error" in line]
    assert "is no longer heard by learner" in error and "on 10.77.0.2" in error
    print(f"Ray, two learners apart: named after {seconds:.1f} s")


@pytest.mark.parametrize(("backend", "algorithm"), [("torch", "ppo"), ("tf", "ppo"), ("torch", "impala")])
@pytest.mark.parametrize("fault", ["none", "without power"])
def test_a_learner_in_the_driver_has_runners_on_other_hosts(
    drivers: Callable[..., Driver], backend: str, algorithm: str, fault: str
) -> None:
    driver = drivers(3, "runners", backend, algorithm, "ENOUGH")
    driver.wait_for("iteration", 3)
    struck = time.monotonic()
    if fault != "none":
        driver.network.hosts[-1].kill()
        driver.wait_for("replaced", 1)
    driver.wait_for("iteration", 3)
    seconds = time.monotonic() - struck
    errors = driver.end()
    places = driver.lines[-1].get("places", [])
    # Of two that were lost, one may still be on its way.
    assert len(places) >= (3 if fault == "none" else 2), (driver.lines[-1], errors[-3000:])
    assert set(places) <= {"10.77.0.2", "10.77.0.3"}
    steps = [line["steps"] for line in driver.lines if "steps" in line]
    assert steps == sorted(set(steps))
    if fault != "none":
        print(f"Ray, {algorithm} {backend}, a runners' host {fault}: a runner replaced after {seconds:.1f} s")
