"""Proofs for what travels over the ring: Horovod and Gloo ask nobody who they are, so what they bring proves it.

Every rank's bytes carry HMAC-SHA256 over the sender's rank, the operation, the number of the round and the bytes, with
a key that the ranks of this group alone have. Bytes without a right proof are not decoded, let alone unpickled.
"""

from __future__ import annotations

import hmac
import struct

from learner_core.errors import LearnerGroupError

from .handshake import PROOF_NBYTES

__all__ = ["Seal"]

#: Round, rank, length of the operation's name, which follows.
_PLACE = struct.Struct("<QII")


class Seal:
    """One rank's.

    Args:
        key: uint8[32], the group's.
        rank: this rank.
    """

    def __init__(self, key: bytes, rank: int) -> None:
        self._key, self._rank = key, rank

    def wrap(self, operation: str, number: int, data: bytes) -> bytes:
        """This rank's bytes, with their proof.

        Args:
            operation, number: of the round; the same on every rank.
        """
        return data + self._proof(operation, number, self._rank, data)

    def unwrap(self, operation: str, number: int, rank: int, sealed: bytes) -> bytes:
        """A rank's bytes.

        Raises:
            LearnerGroupError: it has not sent them, or not in this round.
        """
        data, proof = sealed[:-PROOF_NBYTES], sealed[-PROOF_NBYTES:]
        if not hmac.compare_digest(proof, self._proof(operation, number, rank, data)):
            raise LearnerGroupError(
                f"{operation}: what came over the collective as rank {rank}'s is not what rank {rank} of this job has "
                "sent: another process has a place in the ring, or changes what passes (docs/deployment.md, Trust)"
            )
        return data

    def _proof(self, operation: str, number: int, rank: int, data: bytes) -> bytes:
        name = operation.encode()
        proof = hmac.new(self._key, _PLACE.pack(number, rank, len(name)) + name, "sha256")
        proof.update(data)  # of gigabytes there need not be a copy
        return proof.digest()
