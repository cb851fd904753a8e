"""Saving and restoring a run takes at most 1.2 times its state in memory, on top of the run itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

MEASURE = """
import ctypes, gc, json, sys
import gymnasium as gym
import numpy as np
from learner_core_algorithms import PPOConfig, SACConfig

backend, path = sys.argv[1:]

class Wide(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (400,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, env_config=None):
        pass

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}

def large_network():
    # Each vector (parameters, m, v) is over 32 MB: what malloc keeps of smaller ones makes the measurement uncertain.
    config = PPOConfig().framework(backend, compile=False).environment(Wide).env_runners(num_envs_per_env_runner=1)
    config.training(train_batch_size=8, minibatch_size=8, num_epochs=1).rl_module(model={"hidden": [2100, 2100]})
    return config.build()

def filled_replay():
    config = SACConfig().framework(backend, compile=False).environment(Wide).rl_module(model={"hidden": [16]})
    config.training(train_batch_size=8, learning_starts=8, buffer_capacity=40_000, timesteps_per_iteration=4)
    algo = config.build()
    algo.train()
    storage = algo.replay._storage
    rng = np.random.default_rng(0)
    while storage.fill < 40_000:
        columns = {name: np.repeat(column[:1], 500, 0) for name, column in storage.columns.items()}
        columns["obs"] = rng.standard_normal((500, 400)).astype(np.float32)
        columns["next_obs"] = np.roll(columns["obs"], -1, axis=0)
        storage.add(columns, np.ones(500, bool))
    return algo

def resident(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) * 1024

def start():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free must not hide what is taken
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    return resident("VmRSS:")

def nbytes(tree):
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return sum(map(nbytes, parts)) + (tree.nbytes if isinstance(tree, np.ndarray) else 0)

figures = {}
for build in (large_network, filled_replay):
    algo = build()
    algo.train()
    algo.save(path), algo.restore(path)  # whatever is made once
    size = nbytes(algo.get_state())
    before = start()
    algo.save(path)
    saving = resident("VmHWM:") - before
    before = start()
    algo.restore(path)
    restoring = resident("VmHWM:") - before
    algo.stop()
    figures[build.__name__] = {"bytes": size, "saving": saving / size, "restoring": restoring / size}
print(json.dumps(figures))
"""


def test_peak_memory_of_checkpoints(training_backend_name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", MEASURE, training_backend_name, str(tmp_path / "checkpoint")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    print(figures)
    assert set(figures) == {"large_network", "filled_replay"}
    for name, peaks in figures.items():
        assert peaks.pop("bytes") > 60e6, name  # large beside what Python itself takes
        # A measurement that sees nothing would pass too.
        assert all(0.5 < peak <= 1.2 for peak in peaks.values()), (name, peaks)
