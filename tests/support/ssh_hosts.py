"""An ssh daemon on every host of our own, for launchers that start ranks over ssh.

Keys, configuration and logs are in a folder of the test, and ``ssh`` is a program there that knows no other; daemons
listen at the hosts' addresses, which exist in their namespaces only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from .hosts import Host, Network
from .ranks import TESTS

__all__ = ["launch", "missing_program", "open_doors"]

_PACKAGES = {"sshd": "openssh-server", "ssh": "openssh-client", "mpirun": "openmpi-bin", "ssh-keygen": "openssh-client"}
_SYSTEM = "/usr/sbin:/usr/bin:/sbin:/bin"
_INSTALL_S = 300.0


def missing_program(*programs: str) -> str:
    """Why these cannot be had; "" if they are there, or have been installed now from the system's packages."""
    lacking = sorted({_PACKAGES[program] for program in programs if _path_of(program) is None})
    if lacking and shutil.which("apt-get", path=_SYSTEM) and os.geteuid() == 0:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "PATH": _SYSTEM}
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *lacking]
        subprocess.run(command, env=environment, capture_output=True, timeout=_INSTALL_S, check=False)
        lacking = sorted({_PACKAGES[program] for program in programs if _path_of(program) is None})
    return f"needs the system's packages {', '.join(lacking)}" if lacking else ""


def _path_of(program: str) -> str | None:
    return shutil.which(program, path=_SYSTEM)


def open_doors(network: Network, folder: Path) -> None:
    """Start the daemons; from every host, ``ssh NAME`` of ``folder`` leads to every other."""
    for name in ("host_key", "user_key"):
        _do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    (folder / "sshd_config").write_text(
        f"HostKey {folder}/host_key\nAuthorizedKeysFile {folder}/authorized_keys\nPidFile none\nUsePAM no\n"
        "StrictModes no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nMaxStartups 100\n"
    )
    (folder / "ssh_config").write_text(
        f"Host *\n  IdentityFile {folder}/user_key\n  IdentitiesOnly yes\n  UserKnownHostsFile /dev/null\n"
        "  GlobalKnownHostsFile /dev/null\n  StrictHostKeyChecking no\n  LogLevel ERROR\n"
    )
    (folder / "bin").mkdir()
    program = folder / "bin" / "ssh"
    program.write_text(f'#!/bin/sh\nexec {_path_of("ssh")} -F {folder}/ssh_config "$@"\n')
    program.chmod(0o755)
    for host in network:
        # A folder of the daemon's own under /run, in this host's view of the files alone.
        host.run(["sh", "-c", "mount -t tmpfs tmpfs /run && mkdir -m 755 /run/sshd"])
        host.run([str(_path_of("sshd")), "-f", str(folder / "sshd_config"), "-o", f"ListenAddress={host.address}"])
    for host in network:
        _await_door(network.hosts[0], host, program)


def _await_door(here: Host, there: Host, ssh: Path) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            assert here.run([str(ssh), there.address, "hostname"]).strip() == there.name
            return
        except subprocess.SubprocessError:
            if time.monotonic() > until:
                raise
            time.sleep(0.5)


def launch(host: Host, folder: Path, command: list[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start a launcher on a host; it finds our ``ssh``, this Python and the tests' modules."""
    programs = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"], _SYSTEM])
    paths = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH", "")])])
    return host.start(command, {"PATH": programs, "PYTHONPATH": paths, "HOME": str(folder), **environment})


def _do(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60)
