"""Ctrl-C and SIGTERM as a wish that the training loop grants between two iterations."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["Interrupt"]


class Interrupt:
    """Context manager that notes the first signal and lets the second one through as KeyboardInterrupt.

    Args:
        on_first: Called once, in the signal handler, to tell the user that the wish was heard.
    """

    def __init__(self, on_first: Callable[[], None]) -> None:
        self.requested = False
        self.at_once = True
        """While True (nothing worth saving yet) the first signal already leaves at once."""
        self._on_first = on_first
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        except ValueError:  # not the main thread: the host program handles signals
            pass
        return self

    def __exit__(self, *details: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested or self.at_once:
            raise KeyboardInterrupt
        self.requested = True
        self._on_first()
