"""What an environment raises, as something that may be handled: nothing it raises ends the process.

An environment that calls ``sys.exit()`` has failed like one that raises ValueError. KeyboardInterrupt is the user's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

from ..plugins.containment import EscapedError, said

__all__ = ["closed", "failure"]


def failure(error: BaseException) -> Exception:
    """The exception that stands for what an environment raised.

    Raises:
        KeyboardInterrupt: that is what it was.
    """
    if isinstance(error, KeyboardInterrupt):
        raise error
    if isinstance(error, Exception):
        return error
    escaped = EscapedError(said(error))
    escaped.__cause__ = error
    return escaped


def closed(close: Callable[[], object], *, whose: Callable[[], str]) -> None:
    """Close an environment; what it raises is a warning, for the others are still to be closed."""
    try:
        close()
    except BaseException as error:
        warnings.warn(f"{whose()}: closing it raised {said(failure(error))}", RuntimeWarning, stacklevel=3)
