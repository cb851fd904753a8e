"""Entry point ``learner_core.collectives: horovod``: the collective, and its rendezvous."""

from __future__ import annotations

import importlib
import importlib.util
import secrets
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from learner_core.backend import Backend
from learner_core.errors import LearnerGroupError
from learner_core.group.collectives import Collective, CollectivePlugin, Place, Rendezvous
from learner_core.group.network import address_towards
from learner_core.plugins import discovery
from learner_core.plugins.hookspecs import hookimpl

from .build import BUILD_COMMAND, installed_version
from .tools import find_target, framework_of

__all__ = ["HorovodPlugin", "HorovodRendezvous", "learner_core_collective"]

PLUGIN_API = 1
#: Read without importing this: `learner-core plugins list` says what is not installed.
REQUIRES = ("horovod",)

_HOST = "localhost"
#: For a question about the way to a machine, which sends nothing.
_ANY_PORT = 9
#: Least seconds that Gloo waits for a peer.
_PATIENCE_S = 30


class HorovodRendezvous(Rendezvous):
    """Horovod's own key-value server, in a thread of this process, bound to one address: 127.0.0.1 on one machine.

    Horovod's launcher binds it to every interface without any authentication; its address and the ranks' places are
    all that the launcher tells the ranks, so we do that ourselves. Here a request must name a token, which only the
    ranks are told. Horovod knows of no tokens, but puts what it was given for an address in front of every path.

    Args:
        size: number of ranks.
        timeout_s: after which Gloo gives a silent peer up, if that is more than half a minute.
        places: where the ranks are; ``None``: all on this host. Ranks of one host need not be neighbours.
    """

    def __init__(self, size: int, *, timeout_s: float, places: Sequence[Place] | None = None) -> None:
        _require()
        from horovod.runner.common.util.hosts import get_host_assignments, parse_hosts
        from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer

        token = secrets.token_hex(16)

        class Handler(RendezvousHandler):  # type: ignore[misc]
            path: str

            def parse_request(self) -> bool:
                """Answer no request without the token, and read no more of it than its head."""
                if not super().parse_request():
                    return False
                _, prefix, rest = [*self.path.split("/", 2), "", ""][:3]
                if not secrets.compare_digest(prefix.partition(":")[0].encode(), token.encode()):
                    self.close_connection = True
                    self.send_status_code(404)
                    return False
                self.path = f"/{rest}"
                return True

        class Server(RendezvousHTTPServer):  # type: ignore[misc]  # Horovod has no types
            # Ranks ask for each other's addresses a hundred times a second, each time over a new connection: with the
            # default of 5, a server on a busy machine lets some fall, and a rank tries again after a second or three.
            request_queue_size = 1024
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """A rank that ends in the middle of a request is told of by whoever misses it."""

        self._places = list(places) if places is not None else [Place(_HOST, "127.0.0.1", "lo")] * size
        self._hosts = [place.host for place in self._places]
        self._timeout_s = timeout_s
        self._token = token
        self._server: Any = Server((address_towards(self._places[0].address, _ANY_PORT), 0), Handler, 0)
        slots = ",".join(f"{host}:{self._hosts.count(host)}" for host in dict.fromkeys(self._hosts))
        self._server.init(get_host_assignments(parse_hosts(slots), size))
        # Its end is noticed at the next poll; the default of 0.5 s would be most of a warm start.
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), name="horovod-rendezvous", daemon=True
        )
        self._thread.start()

    def for_rank(self, rank: int) -> dict[str, str]:
        host = self._hosts[rank]
        local = self._hosts[:rank].count(host)
        # The ranks that have this local rank on their machines, one per machine.
        peers = [name for name in dict.fromkeys(self._hosts) if self._hosts.count(name) > local]
        address, port = self._server.server_address[:2]
        return {
            "HOROVOD_RANK": str(rank),
            "HOROVOD_SIZE": str(len(self._hosts)),
            "HOROVOD_LOCAL_RANK": str(local),
            "HOROVOD_LOCAL_SIZE": str(self._hosts.count(host)),
            "HOROVOD_CROSS_RANK": str(peers.index(host)),
            "HOROVOD_CROSS_SIZE": str(len(peers)),
            "HOROVOD_HOSTNAME": host,
            # Horovod asks for http://ADDR:PORT/SCOPE/KEY.
            "HOROVOD_GLOO_RENDEZVOUS_ADDR": f"{address}:{port}/{self._token}",
            "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port),
            "HOROVOD_GLOO_IFACE": self._places[rank].interface,
            # Who is gone is noticed by the signs of life, and its connections end with it; one that a busy machine does
            # not let go on is not gone.
            "HOROVOD_GLOO_TIMEOUT_SECONDS": str(max(_PATIENCE_S, round(self._timeout_s))),
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

    def check_gpus(self, backend_name: str) -> None:
        """Raise LearnerGroupError where every gradient would visit the host: this Horovod was built without NCCL."""
        version = installed_version() or ""
        if _is_ours(version) and not version.endswith("nccl"):
            raise LearnerGroupError(
                f'collective="horovod": the installed Horovod {version} has no NCCL, for learners with GPUs: run '
                f"`{BUILD_COMMAND} --gpu`"
            )

    def preload(self, backend_name: str) -> None:
        """As :meth:`CollectivePlugin.preload`."""
        module = discovery.backend_facts(backend_name).collectives.get(self.name)
        if module is not None:
            importlib.import_module(module)

    def open_rendezvous(self, size: int, *, timeout_s: float, places: Sequence[Place] | None = None) -> Rendezvous:
        """As :meth:`CollectivePlugin.open_rendezvous`."""
        return HorovodRendezvous(size, timeout_s=timeout_s, places=places)

    def create(self, backend: Backend) -> Collective:
        """As :meth:`CollectivePlugin.create`."""
        collective: Collective | None = backend.make_collective(self.name)
        if collective is None:
            raise LearnerGroupError(f"the backend {backend.name!r} has no make_collective({self.name!r})")
        return collective


def _require(backend_name: str | None = None) -> None:
    collectives = {} if backend_name is None else discovery.backend_facts(backend_name).collectives
    others = "".join(f', or use collective="{name}"' for name in collectives if name != HorovodPlugin.name)
    hint = f"run `{BUILD_COMMAND}`{others}"
    if importlib.util.find_spec("horovod") is None:
        raise LearnerGroupError(f'collective="horovod": Horovod is not installed: {hint}')
    framework = framework_of(collectives.get(HorovodPlugin.name, ""))
    if framework is None:
        return  # Horovod is not built for it; whether the backend has an end of its own is seen in the learners
    version = installed_version() or ""
    local = version.partition("+")[2]
    if not _is_ours(version):
        _require_part(framework, version, hint)
        return  # whether it fits the framework's version, importing it will tell
    fits = find_target([framework]).version.partition("+")[2].partition(".")[2]
    if fits not in local:
        raise LearnerGroupError(
            f'collective="horovod": the installed Horovod {version} was not built for the {backend_name} that is '
            f"installed ({fits}): {hint}"
        )


def _is_ours(version: str) -> bool:
    """Whether `learner-core horovod build` has made it: its version then says what it was built for."""
    return version.partition("+")[2].startswith("lc")


def _require_part(framework: str, version: str, hint: str) -> None:
    """Somebody's own build need not have a half for each framework."""
    spec = importlib.util.find_spec("horovod")
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    half = {"torch": "torch", "tf": "tensorflow"}[framework]
    if folders and not any(list(Path(folder, half).glob("mpi_lib*")) for folder in folders):
        raise LearnerGroupError(f'collective="horovod": the installed Horovod {version} has no half for {half}: {hint}')


@hookimpl
def learner_core_collective() -> CollectivePlugin:
    """The collective over Horovod."""
    return HorovodPlugin()
