"""A board for notes where ranks find each other: set and get by name, over HTTP.

``horovodrun`` serves one (it is how Horovod's own ranks meet); elsewhere rank 0 serves it. Both speak the same few
requests: PUT and GET of /SCOPE/NAME. There is no authentication, as there is none in Horovod's or Torch's: the network
between the ranks has to be a trusted one, and the notes hold addresses only.
"""

from __future__ import annotations

import errno
import http.client
import http.server
import json
import threading
import time
from typing import Any

from learner_core.errors import LearnerGroupError

__all__ = ["NoteServer", "Notes"]

_SCOPE = "learner_core"
_POLL_S = 0.05
_REQUEST_S = 5.0


class Notes:
    """A rank's view of the board.

    Args:
        address, port: where it is.
        deadline: ``time.monotonic()`` by which everything must be there.
        who: this rank, for messages.
    """

    def __init__(self, address: str, port: int, *, deadline: float, who: str) -> None:
        self._address = address
        self._port = port
        self._deadline = deadline
        self._who = who
        self._begin = time.monotonic()
        self._reached = False

    def put(self, name: str, value: Any) -> None:
        """Leave a note of plain values.

        Raises:
            LearnerGroupError: the board could not be reached in time.
        """
        said = json.dumps(value).encode()
        self._until(lambda: self._request("PUT", name, said) is not None, lambda: "waited to be heard")

    def get(self, name: str, of: str) -> Any:
        """Wait for a note.

        Args:
            name: its name.
            of: who must leave it, for the message.

        Raises:
            LearnerGroupError: it was not there in time, or the board could not be reached.
        """
        found: list[bytes] = []

        def look() -> bool:
            answer = self._request("GET", name, None)
            if answer:
                found.append(answer)
            return bool(answer)

        self._until(look, lambda: f"waited for {of}")
        return json.loads(found[0])

    def _until(self, attempt: Any, waited_for: Any) -> None:
        trouble: Exception | None = None
        while True:
            try:
                trouble = None
                if attempt():
                    return
            except (OSError, http.client.HTTPException) as error:
                trouble = error
            if time.monotonic() > self._deadline:
                break
            time.sleep(_POLL_S)
        waited = f"{time.monotonic() - self._begin:.0f} s"
        if trouble is not None and not self._reached:
            raise LearnerGroupError(
                f"{self._who} could not reach {self._address}:{self._port} within {waited} "
                f"({type(trouble).__name__}: {trouble}): does rank 0 run there, and does a firewall let the port "
                "through?"
            )
        at = f" ({self._address}:{self._port} no longer answers: {trouble})" if trouble is not None else ""
        raise LearnerGroupError(f"{self._who} {waited_for()} for {waited}{at}: it did not come; see its own output")

    def _request(self, method: str, name: str, body: bytes | None) -> bytes | None:
        patience = min(_REQUEST_S, max(self._deadline - time.monotonic(), 1.0))
        connection = http.client.HTTPConnection(self._address, self._port, timeout=patience)
        try:
            connection.request(method, f"/{_SCOPE}/{name}", body)
            answer = connection.getresponse()
            content = answer.read()
            self._reached = True
            return content if answer.status == 200 else None
        finally:
            connection.close()


class _Board(http.server.ThreadingHTTPServer):
    """The server, with the notes on it: path -> what was written."""

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__(address, _Handler)
        self.notes: dict[str, bytes] = {}


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Board
    timeout = _REQUEST_S

    def do_GET(self) -> None:
        value = self.server.notes.get(self.path)
        self.send_response(404 if value is None else 200)
        self.send_header("Content-Length", str(len(value or b"")))
        self.end_headers()
        self.wfile.write(value or b"")

    def do_PUT(self) -> None:
        length = min(int(self.headers.get("Content-Length", 0)), 1 << 20)
        self.server.notes[self.path] = self.rfile.read(length)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class NoteServer:
    """The board itself, in a thread of rank 0.

    Raises:
        LearnerGroupError: the port is in use, or the address is not one of this machine.
    """

    def __init__(self, address: str, port: int) -> None:
        try:
            self._server = _Board((address, port))
        except (OSError, OverflowError) as error:
            what = {
                errno.EADDRINUSE: f"port {port} is in use on {address}: choose another MASTER_PORT",
                errno.EADDRNOTAVAIL: f"{address} is not an address of this machine: MASTER_ADDR is one of rank 0's",
            }.get(getattr(error, "errno", 0) or 0, f"cannot listen on {address}:{port}")
            raise LearnerGroupError(
                f"launcher=\"spmd\": {what}, or give launcher_options={{'rendezvous': 'HOST:PORT'}} ({error})"
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="spmd-notes", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)
