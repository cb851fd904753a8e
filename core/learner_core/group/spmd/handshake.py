"""How two ranks prove to each other that they know the job's secret; arithmetic on bytes alone.

Three messages of fixed length, in which nothing is looked at but their bytes:

1. rank 0 -> rank r: a greeting, 32 fresh random bytes;
2. rank r -> rank 0: a greeting, r, 32 fresh random bytes, its proof over both;
3. rank 0 -> rank r: its own proof; or zeros, if the other's was wrong.

A proof is HMAC-SHA256 with the secret over the prover's role, r, and the random bytes of both sides: one that was
recorded fits no other conversation, and one that is sent back was made for the other role. Both sides then have two
keys that only they know, one for each direction.
"""

from __future__ import annotations

import hmac
import os
import struct
from dataclasses import dataclass

__all__ = ["ANSWER_NBYTES", "CHALLENGE_NBYTES", "PROOF_NBYTES", "Answer", "Challenge", "Keys", "derive", "is_greeting"]

_GREETING = b"learner-core/1\n\0"
_NONCE_NBYTES = 32
_RANK = struct.Struct("<I")
PROOF_NBYTES = 32
CHALLENGE_NBYTES = len(_GREETING) + _NONCE_NBYTES
ANSWER_NBYTES = len(_GREETING) + _RANK.size + _NONCE_NBYTES + PROOF_NBYTES
#: What rank 0 says of itself, and the others of themselves: neither serves as the other's.
_FIRST, _OTHER = "rank 0 knows it", "rank r knows it"


@dataclass(frozen=True)
class Keys:
    """What both sides of one conversation know, and nobody else.

    Attributes:
        rank: who talks with rank 0.
        secret: the job's, which both have proved to know.
        to_first, from_first: keys of what is sent to rank 0 and by it.
    """

    rank: int
    secret: bytes
    to_first: bytes
    from_first: bytes

    @classmethod
    def of(cls, secret: bytes, rank: int, nonces: bytes) -> Keys:
        """The keys of a conversation."""
        conversation = derive(secret, "keys", _RANK.pack(rank) + nonces)
        return cls(rank, secret, derive(conversation, "to rank 0"), derive(conversation, "from rank 0"))


def derive(key: bytes, purpose: str, data: bytes = b"") -> bytes:
    """32 bytes that follow from a key, a purpose and data; without the key they cannot be told from random ones."""
    label = purpose.encode()
    return hmac.digest(key, _RANK.pack(len(label)) + label + data, "sha256")


def is_greeting(said: bytes) -> bool:
    """Whether it begins as these messages do: if not, another program speaks."""
    return said.startswith(_GREETING)


class Challenge:
    """Rank 0's side of one conversation.

    Args:
        secret: the job's.

    Attributes:
        message: the first message.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._nonce = os.urandom(_NONCE_NBYTES)
        self.message: bytes = _GREETING + self._nonce

    def check(self, said: bytes) -> tuple[bytes, Keys | None]:
        """The third message, and the keys if the second one was right.

        Args:
            said: uint8[ANSWER_NBYTES]: the second.
        """
        body, proof = said[len(_GREETING) : -PROOF_NBYTES], said[-PROOF_NBYTES:]
        number, nonces = body[: _RANK.size], self._nonce + body[_RANK.size :]
        expected = derive(self._secret, _OTHER, number + nonces)
        if not hmac.compare_digest(proof, expected) or not is_greeting(said):
            return bytes(PROOF_NBYTES), None
        (rank,) = _RANK.unpack(number)
        return derive(self._secret, _FIRST, number + nonces), Keys.of(self._secret, rank, nonces)


class Answer:
    """The other rank's side of one conversation.

    Args:
        secret: the job's.
        rank: this rank.
        challenge: uint8[CHALLENGE_NBYTES]: the first message.

    Attributes:
        message: the second message.
    """

    def __init__(self, secret: bytes, rank: int, challenge: bytes) -> None:
        number, nonce = _RANK.pack(rank), os.urandom(_NONCE_NBYTES)
        nonces = challenge[len(_GREETING) :] + nonce
        self.message: bytes = _GREETING + number + nonce + derive(secret, _OTHER, number + nonces)
        self._expected = derive(secret, _FIRST, number + nonces)
        self._keys = Keys.of(secret, rank, nonces)

    def check(self, said: bytes) -> Keys | None:
        """The keys, if the other side's proof is right.

        Args:
            said: uint8[PROOF_NBYTES]: the third message.
        """
        return self._keys if hmac.compare_digest(said, self._expected) else None
