"""What learners that hold different rows tell each other between steps: counts, statistics, refusals, small objects.

Everything rides on one operation, the sum of a float64 vector over all ranks. A rank that has to say something alone
adds its words where all others add zeros. Every round begins with a header of a fixed size that says what the rank has
come for, whether it could, and how much it will say; so ranks that come for different things, or one that cannot go on,
end in the same error everywhere instead of a wait. Needs numpy only. docs/decisions/ranks.md says why.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from ..errors import LearnerGroupError

__all__ = ["Proofs", "RankExchange", "number_of"]

#: Words of the header: operation, failed, number of words to come.
_HEADER = 3
#: Longest vector of one sum, in words: 8 MiB.
_CHUNK = 1 << 20
_SMALLEST = 64
#: Bytes that a float64 carries exactly.
_BYTES = 6
_TEXT_BYTES = 1200
#: More words than any ranks have to say to each other, 8 TiB: who announces so many is none of them.
_MOST_WORDS = 1 << 40


def number_of(words: object) -> float:
    """A number for anything with a ``repr``: equal where that is equal, else different but for a chance of 2**-48."""
    return float(int.from_bytes(hashlib.blake2b(repr(words).encode(), digest_size=_BYTES).digest(), "little"))


class Proofs(Protocol):
    """How ranks see that bytes are a rank's own: whoever has come into the ring unasked has none."""

    def wrap(self, operation: str, number: int, data: bytes) -> bytes:
        """This rank's bytes with their proof, for round ``number``."""

    def unwrap(self, operation: str, number: int, rank: int, sealed: bytes) -> bytes:
        """A rank's bytes; raises LearnerGroupError if it has not sent them in this round."""


class RankExchange:
    """One rank's end.

    Args:
        rank: this rank.
        size: number of ranks.
        total: ``total(vector, name) -> vector``: the sum of a float64[n] over all ranks; ``name`` goes with n.
        proofs: for the bytes that ranks send; ``None``: nobody else can be in the ring.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        total: Callable[[np.ndarray, str], np.ndarray],
        proofs: Proofs | None = None,
    ) -> None:
        self.rank = rank
        self.size = size
        self._total = total
        self._proofs = proofs
        self._round = 0
        #: The last error that every rank raised together: nothing is out of step after it.
        self.refusal: Exception | None = None

    def sum(self, array: np.ndarray) -> np.ndarray:
        """The sum over all ranks, float64, of an array that has the same shape on each of them.

        Without a header: for places in an update where a round before has made sure that all come for the same thing.
        """
        flat = np.ascontiguousarray(array, np.float64).reshape(-1)
        return self._sum(flat).reshape(np.shape(array))

    def gather(self, operation: str, words: np.ndarray, *, error: Exception | None = None) -> list[np.ndarray]:
        """What every rank has to say.

        Args:
            operation: what this rank has come for.
            words: float64[n], n as this rank likes.
            error: it could not do what it came for: nothing is said, and every rank raises.

        Returns:
            float64[n of that rank] of every rank, in rank order.

        Raises:
            LearnerGroupError: ranks have come for different things, or another rank failed (its type and text are in
                the message). Where this rank failed itself, its own ``error`` is raised.
        """
        self._round += 1
        if self.size == 1:
            if error is not None:
                raise self._agreed(error)
            return [np.array(words, np.float64)]
        headers = self._place(np.array([number_of(operation), float(error is not None), len(words)]), _HEADER)
        if len(set(headers[:, 0])) > 1:
            others = [r for r in range(self.size) if headers[r, 0] != headers[self.rank, 0]]
            raise LearnerGroupError(
                f"rank {self.rank} of {self.size} has come to {operation}, but {_ranks(others)} to something else: "
                "every rank must make the same calls in the same order"
            ) from error
        failed = [rank for rank in range(self.size) if headers[rank, 1]]
        if failed:
            self._fail(operation, failed, error)
        if not np.all((headers[:, 2] >= 0) & (headers[:, 2] <= _MOST_WORDS)):  # NaN is neither
            raise LearnerGroupError(f"{operation}: what came over the collective is nothing that ranks say")
        counts = headers[:, 2].astype(np.int64)
        ends = np.cumsum(counts)
        own = np.zeros(int(ends[-1]))
        own[ends[self.rank] - counts[self.rank] : ends[self.rank]] = words
        return np.split(self._sum(own), ends[:-1])

    def gather_bytes(self, operation: str, data: bytes, *, error: Exception | None = None) -> list[bytes]:
        """As :meth:`gather`, for bytes: every rank's, in rank order, as it sent them."""
        number, proofs = self._round + 1, self._proofs
        if proofs is None or self.size == 1:
            return [_unpacked(words) for words in self.gather(operation, _packed(data), error=error)]
        sealed = proofs.wrap(operation, number, data)
        answers = self.gather(operation, _packed(sealed), error=error)
        return [proofs.unwrap(operation, number, rank, _unpacked(words)) for rank, words in enumerate(answers)]

    def check_equal(self, operation: str, parts: Mapping[str, object], *, error: Exception | None = None) -> None:
        """Make sure that all ranks have the same ``parts``: name -> anything with a ``repr``.

        Raises:
            LearnerGroupError: they differ; names the part and this rank's value. Or as :meth:`gather`.
        """
        said = self.gather(operation, np.array([number_of(part) for part in parts.values()]), error=error)
        self.compare(operation, parts, said)

    def compare(self, operation: str, parts: Mapping[str, object], said: Sequence[np.ndarray]) -> None:
        """Compare the first words of every rank, which are numbers of ``parts`` in order; as :meth:`check_equal`."""
        for position, (name, value) in enumerate(parts.items()):
            others = [r for r, words in enumerate(said) if words[position] != said[self.rank][position]]
            if len({words[position] for words in said}) > 1:
                own = f"rank {self.rank} has {value!r}, {_ranks(others)} something else"
                raise self._agreed(
                    LearnerGroupError(f"{operation}: {name} must be the same on all {self.size} ranks; {own}")
                )

    # ------------------------------------------------------------------ inside

    def _fail(self, operation: str, failed: Sequence[int], error: Exception | None) -> None:
        text = b"" if error is None else f"{type(error).__name__}: {error}".encode()[:_TEXT_BYTES]
        words = _packed(text)
        texts = self._place(words, -(-_TEXT_BYTES // _BYTES) + 1)
        if error is not None:
            raise self._agreed(error)
        reasons = "; ".join(f"rank {rank}: {_unpacked(texts[rank]).decode(errors='replace')}" for rank in failed)
        raise self._agreed(
            LearnerGroupError(f"{operation} was refused on {_ranks(failed)} of {self.size}, so on all: {reasons}")
        )

    def _agreed(self, error: Exception) -> Exception:
        self.refusal = error
        return error

    def _place(self, words: np.ndarray, width: int) -> np.ndarray:
        """float64[size, width]: every rank's words, zeros behind them."""
        own = np.zeros((self.size, width))
        own[self.rank, : len(words)] = words
        return self._sum(own.reshape(-1)).reshape(self.size, width)

    def _sum(self, flat: np.ndarray) -> np.ndarray:
        if self.size == 1:
            return flat
        out = np.empty(len(flat))
        for start in range(0, len(flat), _CHUNK):
            part = flat[start : start + _CHUNK]
            # Few lengths, each under a name of its own: collectives remember what they know of a name.
            length = max(_SMALLEST, 1 << (len(part) - 1).bit_length())
            padded = np.zeros(length)
            padded[: len(part)] = part
            out[start : start + _CHUNK] = self._total(padded, f"host_{length}")[: len(part)]
        return out


def _packed(data: bytes) -> np.ndarray:
    """Bytes as whole numbers below 2**48, behind their length."""
    if not data:
        return np.zeros(1)
    padded = np.zeros((-(-len(data) // _BYTES), 8), np.uint8)
    whole = np.zeros(padded.shape[0] * _BYTES, np.uint8)
    whole[: len(data)] = np.frombuffer(data, np.uint8)
    padded[:, :_BYTES] = whole.reshape(-1, _BYTES)
    return np.concatenate([[float(len(data))], padded.view("<u8")[:, 0].astype(np.float64)])


def _unpacked(words: np.ndarray) -> bytes:
    """The bytes back; none, if these are no words of bytes."""
    if not len(words) or not np.all((words >= 0) & (words < 1 << (8 * _BYTES))):  # NaN is neither
        return b""
    length = int(words[0])
    numbers = words[1 : 1 + -(-length // _BYTES)].astype("<u8")
    return numbers.view(np.uint8).reshape(-1, 8)[:, :_BYTES].tobytes()[:length]


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
