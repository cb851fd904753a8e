"""A plugin's code, run so that what it does stays its own affair.

Whatever it raises comes out as an ``Exception``: ``sys.exit()`` in a module is a fault of that module and ends no
process. The user's own Ctrl-C goes through, also where the plugin swallows it. What cannot be held from inside a
process: ``os._exit``, a crash of native code, a signal, a call that never returns. ``learner-core plugins doctor`` and
``check`` therefore try what other distributions bring in processes of their own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

__all__ = ["EscapedError", "contained", "said", "shown", "undisturbed"]

#: Most characters of a plugin's own words that a message repeats.
_MOST_SAID = 2000


class EscapedError(Exception):
    """A plugin raised what is no ``Exception`` (SystemExit, say); ``__cause__`` is that."""


@contextlib.contextmanager
def contained() -> Iterator[None]:
    """Run a plugin's code.

    Raises:
        Exception: what the code raised.
        EscapedError: it raised a BaseException of another kind: SystemExit, GeneratorExit, a KeyboardInterrupt that
            nobody's Ctrl-C has caused.
        KeyboardInterrupt: the user pressed Ctrl-C meanwhile, whatever the code made of it.
    """
    with _CtrlC() as ctrl_c:
        try:
            yield
        except BaseException as error:
            if ctrl_c.pressed:
                raise (error if isinstance(error, KeyboardInterrupt) else KeyboardInterrupt) from None
            if isinstance(error, Exception):
                raise
            raise EscapedError(said(error)) from error
        if ctrl_c.pressed:
            raise KeyboardInterrupt


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Put back what an import may not change for everybody: standard streams, handlers of SIGINT and SIGTERM, the
    working folder, the filters of warnings."""
    streams = {name: getattr(sys, name) for name in ("stdin", "stdout", "stderr")}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    folder = _folder()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        for name, stream in streams.items():
            setattr(sys, name, stream)
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                with contextlib.suppress(ValueError):  # not the main thread, which cannot have changed it either
                    signal.signal(number, handler)
        if folder is not None and _folder() != folder:
            with contextlib.suppress(OSError):
                os.chdir(folder)


def said(error: BaseException) -> str:
    """``Type: message`` of what a plugin raised, fit for a terminal, whatever its ``__str__`` does."""
    if isinstance(error, EscapedError):
        return str(error)
    kind = shown(_words(lambda: type(error).__name__, "an exception without a name"))
    text = shown(_words(lambda: str(error), "(it cannot be printed)"))
    return f"{kind}: {text}" if text else kind


def shown(thing: object) -> str:
    """A plugin's own words, fit for a terminal and of bounded length: control characters are escaped.

    Args:
        thing: a str, or anything with a ``repr``.
    """
    text = thing if type(thing) is str else _words(lambda: repr(thing), f"an object of {type(thing)!r}")
    cut = text[:_MOST_SAID] + ("..." if len(text) > _MOST_SAID else "")
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in cut)


def _words(make: Callable[[], object], otherwise: str) -> str:
    try:
        with contained():
            text = make()
            return str.__str__(text) if isinstance(text, str) else otherwise
    except Exception:
        return otherwise


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None  # it has been removed


class _CtrlC:
    """Tells the user's Ctrl-C from a KeyboardInterrupt that somebody raised by hand."""

    def __enter__(self) -> _CtrlC:
        self.pressed = False
        self._before: Any = signal.getsignal(signal.SIGINT)
        self._installed = False
        if callable(self._before):
            with contextlib.suppress(ValueError):  # not the main thread: no signal is handled in this one
                signal.signal(signal.SIGINT, self._note)
                self._installed = True
        return self

    def __exit__(self, *details: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        try:
            self._before(number, frame)
        except BaseException:
            self.pressed = True
            raise
