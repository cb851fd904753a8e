"""A short soak: memory, descriptors and threads stay where they are. The million is in `tests/long/test_soak.py`."""

from __future__ import annotations

import mmap
import os
from typing import Any

import pytest

from support import soak as subject
from support.soak import problems, soak

#: In so few updates a page more or less is much: what is found here is a leak of two kilobytes an update.
MOST_MB = 200.0


def test_updates_leave_nothing_behind(training_backend_name: str) -> None:
    outcome = soak("learner", training_backend_name, 800, compile=training_backend_name == "tf")
    assert not problems(outcome, most_mb=MOST_MB), list(outcome.lines())
    assert outcome.updates >= 800 and len(outcome.series[0].memory_mb) > 50


@pytest.mark.fast_on_torch
def test_a_leak_is_found(training_backend_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of memory, of descriptors, of threads: each is told by its process and its name."""
    kept: list[Any] = []
    updates = subject._updates

    def leaking(one: Any) -> Any:
        update = updates(one)

        def leak() -> Any:
            pages = mmap.mmap(-1, 1 << 16)  # not from the heap, which may have room from earlier tests
            pages.write(b"x" * (1 << 16))
            kept.append((pages, os.open("/dev/null", os.O_RDONLY)))
            return update()

        return leak

    monkeypatch.setattr(subject, "_updates", leaking)
    outcome = soak("learner", training_backend_name, 240, compile=False, steps=8)
    for _, descriptor in kept:
        os.close(descriptor)
    found = problems(outcome, most_mb=MOST_MB)
    assert any(text.startswith("driver: memory grows by") for text in found), list(outcome.lines())
    assert any("descriptors more than after the warm-up" in text for text in found), list(outcome.lines())
