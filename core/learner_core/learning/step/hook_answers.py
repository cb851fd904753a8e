"""What hooks give back, where it would be ignored: refused, because whoever returned it meant something by it."""

from __future__ import annotations

from collections.abc import Iterable

from ...errors import ConfigError, did_you_mean

__all__ = ["refuse_answer", "refuse_others", "yes_or_no"]


def refuse_answer(hook: str, answer: object, instead: str) -> None:
    """Refuse what a hook returned that returns nothing.

    Args:
        hook: its name.
        answer: what it returned.
        instead: what to do.
    """
    if answer is not None:
        raise ConfigError(f"{hook} returned {type(answer).__name__}, which nobody would read: {instead}")


def refuse_others(what: str, path: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse entries of names that there are not.

    Args:
        what: where they are, for the message.
        path: of the entries.
        names: those that came.
        known: those there are.
    """
    known = list(known)
    for name in names:
        if name not in known:
            raise ConfigError(f"{what} {path}/{name}, which there is not.{did_you_mean(name, known)}")


def yes_or_no(hook: str, answer: object) -> bool:
    """The answer of a hook that decides; refused unless it is a bool (numpy's, too)."""
    if not isinstance(answer, bool) and type(answer).__name__ not in ("bool", "bool_"):
        raise ConfigError(f"{hook} returned {answer!r:.80}: expected True or False")
    return bool(answer)
