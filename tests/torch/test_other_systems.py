"""One learner, its environments and its files need nothing that only Linux has; what does says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import mmap, os, sys
for module, names in ((os, ("memfd_create", "MFD_CLOEXEC", "pidfd_open", "posix_fadvise", "POSIX_FADV_DONTNEED",
                            "sched_getaffinity")), (mmap, ("MAP_POPULATE",))):
    for name in names:
        delattr(module, name)
import numpy as np
import learner_core as lc
from learner_core.errors import ConfigError
from learner_core_algorithms import PPOConfig

def config():
    chosen = PPOConfig().framework("torch").environment("CartPole-v1").rl_module(model={"hidden": [8]})
    return chosen.training(train_batch_size=32, minibatch_size=16, num_epochs=1)

algorithm = config().build()
algorithm.train()
algorithm.save(sys.argv[1])
algorithm.restore(sys.argv[1])
large = {"x": np.arange(9_000_000, dtype=np.float32), "y": np.ones(2_000_000, np.float32)}
lc.save_state(sys.argv[2], large)
read = lc.load_state(sys.argv[2])
assert all(np.array_equal(read[name], value) for name, value in large.items())
for settings, door in (({"num_learners": 2}, "learners"), ({"num_env_runners": 2}, "env_runners")):
    try:
        getattr(config(), door)(**settings).build()
    except ConfigError as error:
        print(error)
"""


def test_one_learner_without_what_only_linux_has(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", SCRIPT, str(tmp_path / "checkpoint"), str(tmp_path / "large.lc")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "num_learners=2 needs Linux; take num_learners=0 here",
        "num_env_runners=2 needs Linux; take num_env_runners=0 here",
    ]
