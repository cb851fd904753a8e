"""Environments of ranks (``launcher="spmd"``): ``python rank_environments.py BACKEND COLLECTIVE``.

Prints one line of JSON: {what was given: what came of it}.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import gymnasium as gym

from learner_core.errors import LearnerCoreError
from learner_core_algorithms import PPOConfig

from support.rank_script import next_place


def _broken_on_one(env_config: dict[str, Any]) -> Any:
    if os.environ["RANK"] == "1":
        raise ValueError("only here")
    return gym.make("CartPole-v1")


def _run(env: Any, backend: str, collective: str) -> Any:
    config = PPOConfig().environment(env).framework(backend, compile=False).rl_module(model={"hidden": [4]})
    config.learners(launcher="spmd", collective=collective, timeout_s=30.0, launcher_options=next_place())
    config.training(train_batch_size=24, minibatch_size=12, num_epochs=1)
    try:
        with config.build() as algo:
            steps = algo.train()["env_runners"]["num_env_steps_sampled"]
            found = algo.evaluate(3, max_episode_steps=5)
            return [algo.config.num_envs_per_env_runner, steps, found["num_episodes_unfinished"]]
    except LearnerCoreError as error:
        return f"{type(error).__name__}: {error}"


def main(backend: str, collective: str) -> None:
    mode = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}
    environments = {
        "vector": lambda env_config: gym.make_vec(
            "CartPole-v1", num_envs=3, vectorization_mode="sync", vector_kwargs=mode
        ),
        "object": gym.make("CartPole-v1"),
        "broken": _broken_on_one,
    }
    print(json.dumps({name: _run(env, backend, collective) for name, env in environments.items()}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
