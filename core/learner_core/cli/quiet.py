"""Keeps a framework's start-up messages off the screen, and nothing else."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

__all__ = ["without_startup_messages"]

# What native code logs before TensorFlow has read TF_CPP_MIN_LOG_LEVEL.
_STARTUP = re.compile(rb"(I0000 |WARNING: All log messages before absl::InitializeLog\(\))")


@contextlib.contextmanager
def without_startup_messages() -> Iterator[None]:
    """Hold back what is written to file descriptor 2 and pass it on at the end, without start-up messages.

    Native code writes there directly, so nothing at the level of ``sys.stderr`` would help.
    """
    try:
        sys.stderr.flush()
        kept = os.dup(2)
    except (OSError, ValueError):  # there is no standard error
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            rest = b"".join(line for line in held if not _STARTUP.match(line))
            if rest:
                with contextlib.suppress(OSError):
                    os.write(2, rest)
