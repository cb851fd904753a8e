"""Hosts of our own on one machine: each with its own network, name, processes and shared memory, and a switch between.

A host is a set of Linux namespaces that lives as long as its first process, and that process lives as long as a pipe
from this one is open: whatever becomes of a test, the kernel ends every process of its hosts and takes the links and
addresses with them. Nothing is written outside the namespaces, and they have no way out of their own network.

Needs root, ``unshare`` and ``nsenter`` (util-linux), ``ip`` and ``tc`` (iproute2); :func:`missing` says what is not
there.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from .ranks import TESTS, wait_for

__all__ = ["Host", "Network", "missing", "start_on"]

#: Exists inside the namespaces only.
_NETWORK = "10.77.0"
_TOOLS = {"unshare": "util-linux", "nsenter": "util-linux", "ip": "iproute2", "tc": "iproute2"}
_DEVICE = "eth0"
_START_S = 60.0
#: A host's first process: ends it when the pipe from the test is closed, and buries what is orphaned.
_FIRST = """
import os, signal, socket, sys
def bury(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
signal.signal(signal.SIGCHLD, bury)
socket.sethostname(sys.argv[1])
os.write(1, b"ready\\n")
os.read(0, 1)
os._exit(0)
"""
_MOUNTS = 'mount -t tmpfs tmpfs /dev/shm && mount --bind "$1" /etc/hosts && ip link set lo up && shift && exec "$@"'


def missing() -> str:
    """Why there can be no hosts here; "" if there can."""
    lacking = sorted({package for tool, package in _TOOLS.items() if shutil.which(tool) is None})
    if lacking:
        return f"hosts of our own need the system's packages {', '.join(lacking)}"
    return _refusal()


@functools.cache
def _refusal() -> str:
    try:
        with Network(["probe"]) as network:
            network["probe"].run(["true"])
    except (OSError, subprocess.SubprocessError) as error:
        return f"hosts of our own are not permitted here: {error}"
    return ""


class Host:
    """One host of a :class:`Network`, which makes it.

    Attributes:
        name: what it calls itself.
        address: IPv4 address on its only interface, ``eth0``.
    """

    def __init__(self, number: int, name: str, names: Path, switch: _Switch) -> None:
        self.name = name
        self.address = f"{_NETWORK}.{number}"
        command = ["unshare", "--net", "--uts", "--ipc", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child"]
        command += ["sh", "-c", _MOUNTS, "sh", str(names), sys.executable, "-I", "-S", "-c", _FIRST, name]
        self._process = _started(command)
        self._first = _only_child(self._process.pid)
        self._pid_namespace = os.readlink(f"/proc/{self._first}/ns/pid")
        self._plug = functools.partial(switch.plug, number)
        switch.connect(number, self._first)
        self.in_network("ip", "addr", "add", f"{self.address}/24", "dev", _DEVICE)
        self.in_network("ip", "link", "set", _DEVICE, "up")

    # ------------------------------------------------------------------ processes

    def start(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start a command on this host; with the test's environment, and these variables."""
        return subprocess.Popen(
            [*self._entering("--net", "--uts", "--ipc", "--pid", "--mount"), *command],
            env={**os.environ, "PYTHONPATH": _python_path(), **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None, *, timeout_s: float = 60.0
    ) -> str:
        """Run a command to its end; returns what it printed.

        Raises:
            subprocess.SubprocessError: it failed or was not done in time; with what it said.
        """
        (ended,) = wait_for([self.start(command, environment)], timeout_s=timeout_s)
        if ended.code:
            raise subprocess.SubprocessError(
                f"{self.name}: {list(command)}: {ended.code}\n{ended.output}{ended.errors}"
            )
        return ended.output

    def processes(self) -> dict[int, str]:
        """What runs here besides the first process: process id, as this machine counts, to command line."""
        found = {}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit() or int(folder.name) == self._first:
                continue
            with contextlib.suppress(OSError):
                if os.readlink(folder / "ns/pid") == self._pid_namespace:
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        return {pid: words for pid, words in found.items() if words}  # a zombie has none

    def end(self, pid: int) -> None:
        """Kill one of its ``processes``."""
        if pid in self.processes():
            os.kill(pid, signal.SIGKILL)

    def kill(self) -> None:
        """The power fails: the link goes down first, so no process says goodbye; then all of them end."""
        with contextlib.suppress(subprocess.SubprocessError):
            self.set_link(False)
        self.close()

    def close(self) -> None:
        """End it with all its processes; may be called twice."""
        _end(self._process)

    # ------------------------------------------------------------------ its link

    def set_link(self, up: bool) -> None:
        """Pull its cable out, or put it back."""
        self._plug(up)

    def drop(self, other: Host) -> None:
        """From now on what this host sends to the other one is lost without a word; not what comes from there."""
        self.in_network("tc", "qdisc", "replace", "dev", _DEVICE, "clsact")
        (address,) = struct.unpack("!I", socket.inet_aton(other.address))
        # Classic BPF: is it IPv4 (half word at 12) and to this address (word at 30)? 2 means drop, 0 pass.
        program = f"6,40 0 0 12,21 0 3 2048,32 0 0 30,21 0 1 {address},6 0 0 2,6 0 0 0"
        self.in_network("tc", "filter", "add", "dev", _DEVICE, "egress", "bpf", "da", "bytecode", program)

    def in_network(self, *command: str) -> str:
        """Run a tool in this host's network alone, as ``ip`` needs it."""
        return _checked([*self._entering("--net"), *command])

    def _entering(self, *namespaces: str) -> list[str]:
        return ["nsenter", "--target", str(self._first), *namespaces, "--"]


class Network:
    """Hosts and the switch between them; a context manager.

    Args:
        names: of the hosts, in the order of their addresses, 10.77.0.1 and so on. Several may have one name.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._open = contextlib.ExitStack()
        self.hosts: list[Host] = []
        with self._open:  # closes what there is if something cannot be made
            folder = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="learner-core-hosts-")))
            table = folder / "hosts"
            lines = [f"{_NETWORK}.{number} {name}\n" for number, name in enumerate(names, 1)]
            table.write_text("127.0.0.1 localhost\n" + "".join(lines))
            self._switch = self._open.enter_context(_Switch())
            for number, name in enumerate(names, 1):
                host = Host(number, name, table, self._switch)
                self._open.callback(host.close)
                self.hosts.append(host)
            self._open = self._open.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Host]:
        return iter(self.hosts)

    def __getitem__(self, name: str) -> Host:
        return next(host for host in self.hosts if host.name == name)

    def close(self) -> None:
        """End all hosts; may be called twice."""
        self._open.close()

    def impair(self, host: Host, *, delay_s: float, loss: float) -> str:
        """Make a host's link slow and lossy, in each direction: by netem, or by a relay where the kernel has none.

        Returns:
            Which of the two.
        """
        return self._switch.impair(self.hosts.index(host) + 1, delay_s, loss)

    def left(self, *, timeout_s: float = 10.0) -> dict[str, str]:
        """Processes that still run on any host after a while: "host: pid" to command line."""
        until = time.monotonic() + timeout_s
        while True:
            found = {f"{h.name}: {pid}": words for h in self.hosts for pid, words in h.processes().items()}
            if not found or time.monotonic() > until:
                return found
            time.sleep(0.1)


class _Switch:
    """A network namespace with a bridge, of which ``p1`` is the port of the first host, and so on."""

    def __init__(self) -> None:
        self._process = _started(["unshare", "--net", "--fork", "--kill-child", "sh", "-c", "echo ready; read line"])
        self._pid = _only_child(self._process.pid)
        self._relays: list[subprocess.Popen[str]] = []
        self._do("ip", "link", "add", "sw", "type", "bridge")
        self._do("ip", "link", "set", "sw", "up")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for relay in self._relays:
            _end(relay)
        _end(self._process)

    def _do(self, *command: str) -> str:
        return _checked(["nsenter", "--target", str(self._pid), "--net", "--", *command])

    def connect(self, number: int, first: int) -> None:
        """Lay a cable to the host whose first process this is."""
        port = f"p{number}"
        self._do("ip", "link", "add", port, "type", "veth", "peer", "name", _DEVICE, "netns", str(first))
        self._do("ip", "link", "set", port, "master", "sw", "up")

    def plug(self, number: int, up: bool) -> None:
        """As :meth:`Host.set_link`."""
        self._do("ip", "link", "set", f"p{number}", "up" if up else "down")

    def impair(self, number: int, delay_s: float, loss: float) -> str:
        port, milliseconds, percent = f"p{number}", f"{1e3 * delay_s:g}ms", f"{100 * loss:g}%"
        with contextlib.suppress(subprocess.SubprocessError):
            self._do("tc", "qdisc", "add", "dev", port, "root", "netem", "delay", milliseconds, "loss", percent)
            return "netem"  # of what goes to the host; its answers wait as long as their questions did
        # A bridge for this port alone, and a relay between it and the switch. Taps get finished frames from the kernel.
        self._do("ip", "link", "add", f"b{number}", "type", "bridge")
        self._do("ip", "link", "set", f"b{number}", "up")
        command = ["nsenter", "--target", str(self._pid), "--net", "--", sys.executable, "-I", "-S"]
        command += [str(TESTS / "support" / "slow_wire.py"), f"near{number}", f"far{number}", str(delay_s), str(loss)]
        relay = _started(command)
        self._relays.append(relay)
        for device, bridge in ((f"near{number}", f"b{number}"), (f"far{number}", "sw"), (port, f"b{number}")):
            self._do("ip", "link", "set", device, "master", bridge, "up")
        return "relay"


def _started(command: Sequence[str]) -> subprocess.Popen[str]:
    """A process that has said that it is ready, and that ends when its standard input does."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        process.kill()
        _, errors = process.communicate()
        raise subprocess.SubprocessError(f"{command[0]}: {errors.strip()}")
    return process


def _end(process: subprocess.Popen[str]) -> None:
    """Close the standard input of what was started so, and wait for it."""
    if process.returncode is None:
        process.communicate(timeout=_START_S)


def _only_child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


def _checked(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_START_S, check=False)
    if done.returncode:
        raise subprocess.SubprocessError(f"{' '.join(command[5:])}: {done.stderr.strip()}")
    return done.stdout


def _python_path() -> str:
    return os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH", "")])])


def start_on(
    hosts: Sequence[Host], command: Sequence[str], own: Mapping[int, Mapping[str, str]] | None = None
) -> list[subprocess.Popen[str]]:
    """Start ranks 0, 1, ... of ``launcher="spmd"``, one per entry of ``hosts``, by torchrun's variables.

    Args:
        own: rank -> variables that it has besides.
    """
    common = {
        "WORLD_SIZE": str(len(hosts)),
        "LOCAL_RANK": "0",
        "MASTER_ADDR": hosts[0].address,
        "MASTER_PORT": "29400",
        "LEARNER_CORE_SECRET": os.urandom(16).hex(),
    }
    return [
        host.start(command, {**common, "RANK": str(rank), **(own or {}).get(rank, {})})
        for rank, host in enumerate(hosts)
    ]
