"""Start-up messages are held back; everything else written meanwhile comes through, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import os, sys
from learner_core.cli.quiet import without_startup_messages
with without_startup_messages():
    os.write(2, b"I0000 00:00:1.2 3 port.cc:1] oneDNN custom operations are on.\\n")
    os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\\n")
    print("a warning of ours", file=sys.stderr)
    if len(sys.argv) > 1:
        raise RuntimeError("on purpose")
print("after", file=sys.stderr)
"""


def _stderr(*arguments: str) -> str:
    return subprocess.run([sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, check=False).stderr


def test_only_startup_messages_are_dropped() -> None:
    assert _stderr() == "a warning of ours\nafter\n"


def test_an_error_inside_is_seen() -> None:
    text = _stderr("fail")
    assert text.startswith("a warning of ours\n")
    assert text.endswith("RuntimeError: on purpose\n")
