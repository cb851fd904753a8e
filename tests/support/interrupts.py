"""A training command in a session of its own, as in a terminal: Ctrl-C goes to the whole group of processes."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["BOUND_S", "Ended", "interrupted"]

#: Longest from the last press to the end of all processes; a machine may be busy.
BOUND_S = 60.0
#: What nobody wants to see in a terminal.
_NOISE = ("Traceback", "Exception", "KeyboardInterrupt", "Error", "terminate called", "core dumped")


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: its exit code; None: it had to be killed.
        text: what it wrote.
        seconds: from the last press to its end.
        left: processes that were still there afterwards.
        checkpoints: the files that it left, oldest first.
    """

    code: int | None
    text: str
    seconds: float
    left: list[int]
    checkpoints: list[Path]

    @property
    def noise(self) -> list[str]:
        """Words of what a user should not see."""
        return [word for word in _NOISE if word in self.text]


def interrupted(
    arguments: Sequence[str],
    *,
    out: Path,
    moment: str | float,
    gap_s: float = 0.2,
    presses: int = 2,
    later_s: float = 0,
) -> Ended:
    """Run ``learner-core train`` and press Ctrl-C.

    Args:
        arguments: of the command, without ``--out``.
        out: the run's folder.
        moment: what it has to have written before, or seconds.
        gap_s: between two presses.
        presses: how often.
        later_s: seconds after the moment.
    """
    mark = f"LC_TEST_MARK={uuid.uuid4().hex}"
    command = [sys.executable, "-c", "import sys; from learner_core.cli.main import main; sys.exit(main())", "train"]
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths, **dict([mark.split("=", 1)])}
    process = subprocess.Popen(
        [*command, *arguments, "--out", str(out)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=environment,
    )
    assert process.stdout is not None
    said = bytearray()

    def listen(seconds: float, until: str = "\0") -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and until.encode() not in said:
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if ready:
                data = os.read(process.stdout.fileno(), 1 << 16)  # type: ignore[union-attr]
                if not data:
                    return
                said.extend(data)

    if isinstance(moment, str):
        listen(300.0, until=moment)
    listen(moment if isinstance(moment, float) else later_s)
    for _ in range(presses):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        listen(gap_s)
    began = time.monotonic()
    listen(BOUND_S)
    try:
        code: int | None = process.wait(max(0.1, BOUND_S - (time.monotonic() - began)))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        code = None
    seconds = time.monotonic() - began
    left = _marked(mark)
    while left and time.monotonic() - began < BOUND_S:
        time.sleep(0.05)
        left = _marked(mark)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.stdout.close()
    text = said.decode(errors="replace")
    return Ended(code, text, seconds, left, sorted((out / "checkpoints").glob("*.lcstate")))


def _marked(mark: str) -> list[int]:
    """Processes that have this in their environment and are no zombies."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if mark.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
    return found
