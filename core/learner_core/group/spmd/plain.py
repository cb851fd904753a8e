"""Values that ranks tell each other, as bytes: what a state file may hold, and tuples.

Refuses objects: what is read back is values and arrays, whoever has sent it.
"""

from __future__ import annotations

from learner_core.errors import FormatError, LearnerGroupError, StateError
from learner_core.state.format import decode, encode
from learner_core.state.tree import Plain

__all__ = ["from_bytes", "to_bytes"]

#: The one key of a dict that stands for a tuple.
_TUPLE = "\0tuple"


def to_bytes(value: Plain, doing: str) -> bytes:
    """A value in the encoding of state files.

    Args:
        value: None, bool, int, float, str, bytes, numpy arrays and scalars, in lists, tuples, dicts.
        doing: for the message.

    Raises:
        LearnerGroupError: something else.
    """
    try:
        return encode(_without_tuples(value)).tobytes()
    except StateError as error:
        raise LearnerGroupError(
            f"{doing}: ranks tell each other plain values and arrays, in lists, tuples and dicts: {error}. Turn "
            "objects into those, or use foreach_learner, which pickles"
        ) from error


def from_bytes(data: bytes) -> Plain:
    """The value back.

    Raises:
        FormatError: the bytes are no such value.
    """
    return _with_tuples(decode(data))


def _without_tuples(value: Plain) -> Plain:
    if type(value) is tuple:
        return {_TUPLE: [_without_tuples(item) for item in value]}
    if type(value) is list:
        return [_without_tuples(item) for item in value]
    if type(value) is dict:
        if _TUPLE in value:
            raise StateError(f"a key {_TUPLE!r}")
        return {key: _without_tuples(item) for key, item in value.items()}
    return value


def _with_tuples(value: Plain) -> Plain:
    if isinstance(value, list):
        return [_with_tuples(item) for item in value]
    if not isinstance(value, dict):
        return value
    if _TUPLE not in value:
        return {key: _with_tuples(item) for key, item in value.items()}
    items = value[_TUPLE]
    if len(value) > 1 or not isinstance(items, list):
        raise FormatError(f"{_TUPLE!r} is no tuple")
    return tuple(_with_tuples(item) for item in items)
