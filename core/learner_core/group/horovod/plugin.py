"""Entry point ``learner_core.collectives: horovod``: the collective, and its rendezvous on the loopback interface."""

from __future__ import annotations

import importlib
import importlib.util
import threading
from collections.abc import Sequence
from typing import Any

from learner_core.errors import LearnerGroupError
from learner_core.group.collectives import Collective, CollectivePlugin, Place, Rendezvous
from learner_core.plugins.hookspecs import hookimpl

from .build import BUILD_COMMAND, installed_version
from .tools import find_target

__all__ = ["HorovodPlugin", "HorovodRendezvous", "learner_core_collective"]

PLUGIN_API = 1

_HOST = "localhost"
_MODULES = {"torch": "torch", "tf": "tensorflow"}


class HorovodRendezvous(Rendezvous):
    """Horovod's own key-value server, in a thread of this process, bound to 127.0.0.1.

    Horovod's launcher binds it to every interface without any authentication; its address and the ranks' places are
    all that the launcher tells the ranks, so we do that ourselves.
    """

    def __init__(self, size: int, *, timeout_s: float) -> None:
        _require()
        from horovod.runner.common.util.hosts import get_host_assignments, parse_hosts
        from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer

        self._size = size
        self._timeout_s = timeout_s
        self._server: Any = RendezvousHTTPServer(("127.0.0.1", 0), RendezvousHandler, 0)
        self._server.daemon_threads = True
        self._server.init(get_host_assignments(parse_hosts(f"{_HOST}:{size}"), size))
        # Its end is noticed at the next poll; the default of 0.5 s would be most of a warm start.
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), name="horovod-rendezvous", daemon=True
        )
        self._thread.start()

    def for_rank(self, rank: int) -> dict[str, str]:
        return {
            "HOROVOD_RANK": str(rank),
            "HOROVOD_SIZE": str(self._size),
            "HOROVOD_LOCAL_RANK": str(rank),
            "HOROVOD_LOCAL_SIZE": str(self._size),
            "HOROVOD_CROSS_RANK": "0",
            "HOROVOD_CROSS_SIZE": "1",
            "HOROVOD_HOSTNAME": _HOST,
            "HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1",
            "HOROVOD_GLOO_RENDEZVOUS_PORT": str(self._server.server_address[1]),
            "HOROVOD_GLOO_IFACE": "lo",
            "HOROVOD_GLOO_TIMEOUT_SECONDS": str(max(1, round(self._timeout_s))),
            "HOROVOD_CONTROLLER": "gloo",
            "HOROVOD_CPU_OPERATIONS": "gloo",
        }

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join(timeout=5)
            self._server = None


class HorovodPlugin:
    """``collective="horovod"``: a ring of Torch ranks, TensorFlow ranks, or both."""

    name = "horovod"

    def check(self, backend_name: str) -> None:
        """As :meth:`CollectivePlugin.check`: installed, and built for this version of the framework."""
        _require(backend_name)

    def preload(self, backend_name: str) -> None:
        """As :meth:`CollectivePlugin.preload`."""
        importlib.import_module(f"horovod.{_MODULES[backend_name]}")

    def open_rendezvous(self, size: int, *, timeout_s: float, places: Sequence[Place] | None = None) -> Rendezvous:
        """As :meth:`CollectivePlugin.open_rendezvous`."""
        if places is not None:
            raise LearnerGroupError('collective="horovod": these learners are not all on this host')
        return HorovodRendezvous(size, timeout_s=timeout_s)

    def create(self, backend: Any) -> Collective:
        """As :meth:`CollectivePlugin.create`."""
        collective: Collective | None = backend.make_collective(self.name)
        if collective is None:
            raise LearnerGroupError(f"the backend {backend.name!r} has no make_collective({self.name!r})")
        return collective


def _require(backend_name: str | None = None) -> None:
    hint = f"run `{BUILD_COMMAND}`" + (', or use collective="torch"' if backend_name in (None, "torch") else "")
    if importlib.util.find_spec("horovod") is None:
        raise LearnerGroupError(f'collective="horovod": Horovod is not installed: {hint}')
    if backend_name not in ("torch", "tf"):
        return
    version = installed_version() or ""
    local = version.partition("+")[2]
    if not local.startswith("lc"):
        return  # somebody's own build; importing it will tell
    fits = find_target([backend_name]).version.partition("+")[2].partition(".")[2]
    if fits not in local:
        raise LearnerGroupError(
            f'collective="horovod": the installed Horovod {version} was not built for the {backend_name} that is '
            f"installed ({fits}): {hint}"
        )


@hookimpl
def learner_core_collective() -> CollectivePlugin:
    """The collective over Horovod."""
    return HorovodPlugin()
