"""Ctrl-C and SIGTERM: as a wish that the training loop grants between two iterations, and as the end of a command.

Who presses twice presses three times. What was obeyed once is therefore not heard again while the command leaves:
learners, runners and files are let go of in order, in bounded time, and nothing prints a traceback meanwhile.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["Interrupt", "Leaving"]

#: Seconds in which a signal that was obeyed is not obeyed again. Leaving takes less; should it hang, or should the
#: exception have been lost (in a finalizer, say), the next one is obeyed.
_LEAVING_S = 8.0


class Leaving:
    """Handler of SIGINT of the command's own process: raises KeyboardInterrupt, but not twice in a row."""

    def __init__(self) -> None:
        self.left: bool = False
        """Whether KeyboardInterrupt was raised, so that whatever exception comes out of the command is its doing."""
        self._until = 0.0

    def install(self) -> None:
        """Handle SIGINT from now on."""
        signal.signal(signal.SIGINT, self)

    def ignore(self) -> None:
        """The command is done: what is left is the interpreter's own end."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def leave(self) -> None:
        """Raise KeyboardInterrupt, unless that was done a moment ago."""
        now = time.monotonic()
        if now >= self._until:
            self.left = True
            self._until = now + _LEAVING_S
            raise KeyboardInterrupt

    def busy(self) -> None:
        """Things are being let go of: for a moment nothing may come between."""
        self._until = time.monotonic() + _LEAVING_S

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.leave()


class Interrupt:
    """Context manager that notes the first signal and lets the second one through as KeyboardInterrupt.

    Args:
        on_first: Called once, in the signal handler, to tell the user that the wish was heard.
    """

    def __init__(self, on_first: Callable[[], None]) -> None:
        self.requested: bool = False
        self.at_once: bool = True
        """While True (nothing worth saving yet) the first signal already leaves at once."""
        self._on_first = on_first
        self._leaving = Leaving()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        before = signal.getsignal(signal.SIGINT)
        if isinstance(before, Leaving):
            self._leaving = before
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        except ValueError:  # not the main thread: the host program handles signals
            pass
        return self

    def __exit__(self, *details: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def end(self) -> None:
        """From here on the run is let go of, which no signal shortens."""
        self.at_once = True
        self._leaving.busy()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested or self.at_once:
            self._leaving.leave()
        else:
            self.requested = True
            self._on_first()
