"""The note that says where rank 0 listens, on the server that ``horovodrun`` runs for its own ranks.

Everybody may read and write there, over plain HTTP: the note holds an address and a proof that rank 0 has written it. A
wrong one is as good as none.
"""

from __future__ import annotations

import contextlib
import hmac
import http.client
import time

from learner_core.errors import FormatError
from learner_core.state.format import decode, encode

from .handshake import PROOF_NBYTES, derive

__all__ = ["HorovodNote"]

_PATH = "/learner_core/rank0"
_MAX_NBYTES = 4096
_REQUEST_S = 5.0
_AGAIN_S = 1.0
_PURPOSE = "where rank 0 listens"


class HorovodNote:
    """The note; on every rank but the first a ``joining.Place``.

    Args:
        address, port: of the server.
    """

    def __init__(self, address: str, port: int) -> None:
        self._address, self._port = address, port
        self.where: str = f"{address}:{port}"
        self._written = 0.0

    def write(self, secret: bytes, address: str, port: int) -> None:
        """Rank 0: say where it listens, once a second: somebody else may have written over it."""
        if time.monotonic() - self._written < _AGAIN_S:
            return
        body = encode({"address": address, "port": port}).tobytes()
        with contextlib.suppress(OSError, http.client.HTTPException):  # whoever comes does without it, or says so
            self._request("PUT", derive(secret, _PURPOSE, body) + body)
        self._written = time.monotonic()

    def erase(self) -> None:
        """Rank 0: it listens no more."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            self._request("PUT", b"")

    def find(self, secret: bytes) -> tuple[str, int]:
        """As ``joining.Place.find``."""
        try:
            said = self._request("GET", None)
        except http.client.HTTPException as error:
            raise ConnectionError(f"{type(error).__name__}: {error}") from error
        proof, body = said[:PROOF_NBYTES], said[PROOF_NBYTES:]
        if not body:
            raise LookupError(f"rank 0's note on horovodrun's server, {self.where},")
        if not hmac.compare_digest(proof, derive(secret, _PURPOSE, body)):
            raise LookupError(f"a note of rank 0 with this job's secret on horovodrun's server, {self.where},")
        try:
            note = decode(body)
            return str(note["address"]), int(note["port"])
        except (FormatError, LookupError, TypeError, ValueError) as error:
            raise LookupError(f"a note of rank 0 that can be read on horovodrun's server, {self.where},") from error

    def _request(self, method: str, body: bytes | None) -> bytes:
        """The answer's content, at most ``_MAX_NBYTES``; empty unless the status is 200."""
        connection = http.client.HTTPConnection(self._address, self._port, timeout=_REQUEST_S)
        try:
            connection.request(method, _PATH, body)
            answer = connection.getresponse()
            content = answer.read(_MAX_NBYTES)
            return content if answer.status == 200 else b""
        finally:
            connection.close()
