"""Are all ranks given the same? What each was given in a few words a leaf, and in which of them they differ."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import xxhash

__all__ = ["difference_of", "words_of"]

#: Deeper than anything that a call is given; what is below counts as its type's name.
_DEPTH = 32
#: In what Python shows of an object; differs from process to process.
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def words_of(given: object) -> dict[str, str]:
    """{path: what lies there}: of arrays dtype, shape and hash, of functions the name, else what Python shows."""
    return dict(_leaves(given, "", 0))


def difference_of(said: Sequence[Mapping[str, str]]) -> str:
    """Where the ranks' words differ first, in words; "": nowhere.

    Args:
        said: :func:`words_of` of each rank, in rank order.
    """
    for rank, words in enumerate(said):
        for path in sorted(set(said[0]) | set(words)):
            if said[0].get(path) != words.get(path):
                first, other = said[0].get(path, "nothing"), words.get(path, "nothing")
                return f"{path or 'it'}: {first} on rank 0, {other} on rank {rank}"
    return ""


def _leaves(value: object, path: str, depth: int) -> Iterator[tuple[str, str]]:
    if isinstance(value, (Mapping, list, tuple)) and depth >= _DEPTH:
        yield path, type(value).__qualname__
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from _leaves(part, f"{path}/{name}" if path else str(name), depth + 1)
    elif isinstance(value, (list, tuple)):
        yield path, f"{len(value)} values"
        for index, part in enumerate(value):
            yield from _leaves(part, f"{path}[{index}]", depth + 1)
    else:
        yield path, _word(value)


def _word(value: object) -> str:
    if isinstance(value, np.ndarray) and value.dtype != object:
        digest = xxhash.xxh3_128_hexdigest(np.ascontiguousarray(value).view(np.uint8).data if value.size else b"")
        return f"{value.dtype}{list(value.shape)} {digest[:16]}"
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return _ADDRESS.sub("", repr(value))
