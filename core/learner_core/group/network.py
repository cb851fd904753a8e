"""This machine's place in the network between learners: its interfaces, its address towards the others, its name.

Reads what the kernel knows (Linux, IPv4) and sends nothing. Refuses an interface that is not there, is down or has no
address, before a library that cannot say so is given it.
"""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct

from ..errors import NetworkError

__all__ = ["address_towards", "host_identity", "interface_address", "interface_of", "use_interface"]

#: Linux, netdevice(7): requests for all addresses, and for the flags of an interface; its flag for "is up".
_SIOCGIFCONF, _SIOCGIFFLAGS, _IFF_UP = 0x8912, 0x8913, 1
_ENTRY = 40  # bytes of a struct ifreq on 64 bits
_MOST_ADDRESSES = 1024
#: Interfaces by the variable that names them for a library, as chosen here and not by the user.
_chosen: dict[str, str] = {}


def address_towards(host: str, port: int) -> str:
    """This machine's IPv4 address on the way to another one, or to itself.

    Raises:
        NetworkError: there is no way, or the name is not known.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, port))  # sends nothing
            return str(probe.getsockname()[0])
    except OSError as error:
        if host == "localhost" or host.startswith("127."):
            interface_address("lo")
        raise NetworkError(
            f"there is no way from this machine ({socket.gethostname()}: {_described()}) to {host}:{port} ({error})"
        ) from error


def host_identity(name: str, address: str) -> str:
    """What to call a machine where another that is not it must be called otherwise: by both, in one word.

    The host name alone will not do: machines made from one image often share it.

    Args:
        name: that it calls itself.
        address: of it, on the way to the others.
    """
    return f"{name}-{address}"


def interface_of(address: str) -> str:
    """The network interface of this machine that has an IPv4 address, ``""`` if none has."""
    if address.startswith("127."):
        return "lo"
    return next((name for name, owned in _addresses().items() if address in owned), "")


def interface_address(name: str, *, variable: str = "") -> str:
    """The IPv4 address that a library listens at when it is given this interface.

    Args:
        name: of the interface.
        variable: of the environment, that has the name; for the error.

    Raises:
        NetworkError: it does not exist, is down, or has no IPv4 address.
    """
    where = f"{variable}={name}: " if variable else ""
    here = f"this machine ({socket.gethostname()})"
    known = [known_name for _, known_name in socket.if_nameindex()]
    if name not in known:
        raise NetworkError(
            f"{where}{here} has no network interface {name!r}; it has {_described()}. Name one of these, or leave "
            f"{variable or 'it'} out: then the one that leads to the other learners is taken"
        )
    if not _is_up(name):
        what = "the loopback interface lo, over which the learners of one machine meet," if name == "lo" else name
        raise NetworkError(f"{where}on {here} {what} is down: `ip link set {name} up`")
    owned = _addresses().get(name)
    if not owned:
        raise NetworkError(f"{where}on {here} the network interface {name} has no IPv4 address; it has {_described()}")
    return owned[0]


def use_interface(variable: str, name: str) -> str:
    """Settle which interface a library takes that reads its name from the environment: the user's, else ``name``.

    Args:
        variable: of the environment; set here. A comma separates several interfaces, of which the first counts.
        name: of the interface that leads to the others; "": as settled before, or else the library finds its way.

    Returns:
        The address of the interface; "" where none is settled.

    Raises:
        NetworkError: as :func:`interface_address`.
    """
    named = os.environ.get(variable, "")
    if named and named != _chosen.get(variable):
        addresses = [interface_address(part.strip(), variable=variable) for part in named.split(",")]
        return addresses[0]
    name = name or named
    if not name:
        return ""
    os.environ[variable] = _chosen[variable] = name
    return interface_address(name)


def _described() -> str:
    addresses = _addresses()
    parts = [f"{name} ({', '.join(addresses.get(name, ['no IPv4 address']))})" for _, name in socket.if_nameindex()]
    return ", ".join(parts) or "none"


def _addresses() -> dict[str, list[str]]:
    """IPv4 addresses of every interface, in the kernel's order; labels like ``eth0:1`` count as ``eth0``."""
    space = array.array("B", bytes(_ENTRY * _MOST_ADDRESSES))
    asked = struct.pack("iL", len(space), space.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        (used,) = struct.unpack("i4x8x", fcntl.ioctl(probe, _SIOCGIFCONF, asked))
    found: dict[str, list[str]] = {}
    for start in range(0, used, _ENTRY):
        entry = space[start : start + _ENTRY].tobytes()
        name = entry[:16].partition(b"\0")[0].decode().partition(":")[0]
        found.setdefault(name, []).append(socket.inet_ntoa(entry[20:24]))
    return found


def _is_up(name: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        answer = fcntl.ioctl(probe, _SIOCGIFFLAGS, struct.pack("256s", name.encode()[:15]))
    return bool(struct.unpack_from("H", answer, 16)[0] & _IFF_UP)
