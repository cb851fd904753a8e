"""Peak memory while saving and loading is at most 1.2 times the state, whatever the arrays' layout."""

from __future__ import annotations

import subprocess
import sys

import pytest

MEASURE = """
import gc, sys
import numpy as np
from learner_core import load_state, save_state

def resident(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) / 1024

def start():
    gc.collect()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    return resident("VmRSS:")

path, layout, megabytes = sys.argv[1], sys.argv[2], int(sys.argv[3])
rows = megabytes * 1024 // 4 // 4
make = {
    "plain": lambda: np.ones((rows, 1024), np.float32),
    "fortran": lambda: np.ones((rows, 1024), np.float32, order="F"),
    "big-endian": lambda: np.ones((rows, 1024), ">f4"),
    "strided": lambda: np.ones((rows, 2048), np.float32)[:, ::2],
}[layout]
save_state(path, {"warm": np.ones(10)}); load_state(path)
before = start()
state = {str(i): make() for i in range(4)}
size = resident("VmRSS:") - before
before = start()
save_state(path, state)
saving = resident("VmHWM:") - before
del state
before = start()
state = load_state(path)
loading = resident("VmHWM:") - before
print(1 + saving / size, loading / megabytes)
"""


@pytest.mark.parametrize("layout", ["plain", "fortran", "big-endian", "strided"])
def test_peak_memory(tmp_path, layout, full):
    megabytes = 800 if full else 160
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "a"), layout, str(megabytes)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    saving, loading = map(float, done.stdout.split())
    print(f"{layout}: peak while saving {saving:.2f} times the state, while loading {loading:.2f} times")
    assert saving <= 1.2
    assert loading <= 1.2
