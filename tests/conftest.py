"""What holds for every suite: one thread, quiet TensorFlow, Ctrl-C heard, never two frameworks in one process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")
# A job in a shell's background ignores Ctrl-C, and so would all that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the long tier as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    # A `-m slow` by hand is a clear enough wish.
    if "slow" in (config.getoption("-m") or ""):
        return
    long = pytest.mark.skip(reason="long tier: run with --slow (make test-all)")
    fast = pytest.mark.skip(reason="on TensorFlow in the long tier: run with --slow (make test-all)")
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(long)
        elif item.get_closest_marker("fast_on_torch") and os.environ.get("LC_BACKEND") == "tf":
            item.add_marker(fast)


@pytest.fixture(autouse=True, scope="session")
def _one_framework_per_process() -> Iterator[None]:
    yield
    loaded = [name for name in ("torch", "tensorflow") if sys.modules.get(name) is not None]
    if len(loaded) > 1:
        raise AssertionError("torch and tensorflow were both imported: split the suite, or use support.both")
