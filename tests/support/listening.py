"""Where processes listen: the TCP sockets of a process and of all that it has started, as the kernel knows them."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import sys
from pathlib import Path

__all__ = ["listening_addresses"]

_LISTEN = "0A"


def listening_addresses(pid: int) -> set[str]:
    """The addresses at which the process and its descendants listen; "0.0.0.0" or "::" is every interface."""
    sockets = {name for process in _with_descendants(pid) for name in _sockets_of(process)}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, local, _, state, *_ = fields = line.split()
            if state == _LISTEN and fields[9] in sockets:
                found.add(_address(local.partition(":")[0]))
    return found


def _address(digits: str) -> str:
    """The kernel writes words of four bytes, each as the processor has it."""
    words = [int(digits[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(digits), 8)]
    address = ipaddress.ip_address(b"".join(words))
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def _with_descendants(pid: int) -> set[int]:
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            parents[int(name)] = int(Path("/proc", name, "stat").read_text().rpartition(")")[2].split()[1])
    family, grown = {pid}, True
    while grown:
        more = {child for child, parent in parents.items() if parent in family} - family
        family |= more
        grown = bool(more)
    return family


def _sockets_of(pid: int) -> set[str]:
    found = set()
    with contextlib.suppress(OSError):
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                target = os.readlink(f"/proc/{pid}/fd/{descriptor}")
                if target.startswith("socket:["):
                    found.add(target[8:-1])
    return found
