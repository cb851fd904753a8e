"""A rank of ``launcher="spmd"`` on a host of our own: ``python host_script.py SCENARIO BACKEND COLLECTIVE N``.

Prints lines of JSON; the last one is what came out, or the error.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
import time
from typing import Any

import numpy as np
from gymnasium.spaces import Discrete

import learner_core as lc
from learner_core_algorithms import PPOConfig

from support.learners import OBS, ppo_batch

#: A machine that much else runs on may leave a rank without time for long.
TIMEOUT_S = float(os.environ.get("LC_TIMEOUT_S", "60"))


def _say(**words: Any) -> None:
    print(json.dumps(words), flush=True)


def _digest(weights: Any) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(weights["default_policy"].items()):
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def train(backend: str, collective: str, iterations: str) -> None:
    """A run as a user types it: defaults, but for the sizes."""
    config = PPOConfig().environment("CartPole-v1").framework(backend).rl_module(model={"hidden": [16]})
    config.training(train_batch_size=256, minibatch_size=64, num_epochs=2)
    config.learners(launcher="spmd", collective=collective)
    with config.build() as algorithm:
        for _ in range(int(iterations)):
            results = algorithm.train()
        _say(
            host=socket.gethostname(),
            weights=_digest(algorithm.learner_group.get_weights()),
            steps=results["num_env_steps_sampled_lifetime"],
            hosts=algorithm.ranks.gather(socket.gethostname()),
        )


def updates(backend: str, collective: str, count: str) -> None:
    """Updates, told of one by one; something may come between."""
    config = PPOConfig().framework(backend, compile=False)
    config.training(train_batch_size=192, minibatch_size=64, num_epochs=2)
    config.environment(observation_space=OBS, action_space=Discrete(2)).rl_module(model={"hidden": [16, 16]})
    config.learners(
        launcher="spmd", collective=collective, timeout_s=TIMEOUT_S, launcher_options={"start_timeout_s": 240.0}
    )
    with config.build_learner_group() as group:
        assert group.ranks is not None
        for number in range(int(count)):
            group.update_from_batch(batch=ppo_batch(96, Discrete(2), seed=number))
            _say(update=number, time=time.time())
        _say(weights=_digest(group.get_weights()))


def local(backend: str, collective: str, size: str) -> None:
    """A group of processes on this host alone."""
    config = PPOConfig().framework(backend).environment(observation_space=OBS, action_space=Discrete(2))
    config.training(train_batch_size=192, minibatch_size=64).rl_module(model={"hidden": [16, 16]})
    config.learners(num_learners=int(size), collective=collective, restart_failed_learners=True)
    with config.build_learner_group() as group:
        group.update_from_batch(batch=ppo_batch(192, Discrete(2)))
        _say(weights=_digest(group.get_weights()))


def main() -> None:
    begin = time.monotonic()
    try:
        {"train": train, "updates": updates, "local": local}[sys.argv[1]](*sys.argv[2:])
    except lc.LearnerCoreError as error:
        _say(error=f"{type(error).__name__}: {error}", seconds=time.monotonic() - begin, time=time.time())
        sys.stdout.flush()
        os._exit(2)


if __name__ == "__main__":
    main()
