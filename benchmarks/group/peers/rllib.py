"""RLlib's LearnerGroup: learners are Ray actors. Runs in the environment ``.venv-rllib``."""

from __future__ import annotations

import os
import time
from typing import Any

import gymnasium
import numpy as np
import ray
from ppo_settings import SETTINGS
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from work import WORKS, batch, memory_mb, serve


class RLlib:
    """See the module."""

    def __init__(self) -> None:
        self._group: Any = None

    def build(self, work: str, size: int, starts: int) -> dict[str, Any]:
        """A group, started twice at most; Ray runs before the clock does."""
        ray.init("local", num_cpus=8, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        self._work, self._size = WORKS[work], size
        self._batch = MultiAgentBatch({"default_policy": SampleBatch(batch(self._work))}, self._work.batch)
        seconds = []
        for _ in range(min(starts, 2)):
            if self._group is not None:
                self._group.shutdown()
            began = time.perf_counter()
            self._group = self._make(size)
            seconds.append(time.perf_counter() - began)
        self.round()
        weights = self._group.get_weights()["default_policy"]
        pids = [each.get() for each in self._group.foreach_learner(_pid)]
        return {
            "starts": seconds,
            "memory": [memory_mb(pid) for pid in pids],
            "num_parameters": int(sum(np.size(value) for value in weights.values())),
        }

    def _make(self, size: int) -> Any:
        work = self._work
        observations = gymnasium.spaces.Box(-np.inf, np.inf, (work.obs,), np.float32)
        actions = gymnasium.spaces.Discrete(work.actions)
        config = PPOConfig().environment(observation_space=observations, action_space=actions)
        config.training(
            lr=SETTINGS["lr"],
            clip_param=SETTINGS["clip_param"],
            vf_loss_coeff=SETTINGS["value_coeff"],
            vf_clip_param=1e6,
            entropy_coeff=SETTINGS["entropy_coeff"],
            use_kl_loss=False,
            grad_clip=SETTINGS["max_grad_norm"],
            grad_clip_by="global_norm",
        )
        config.learners(num_learners=size, num_cpus_per_learner=1)
        config.rl_module(
            model_config=DefaultModelConfig(
                fcnet_hiddens=list(work.hidden), fcnet_activation="tanh", vf_share_layers=False
            )
        )
        spaces = dict.fromkeys(("__env__", "default_policy"), (observations, actions))
        return config.build_learner_group(spaces=spaces)

    def round(self) -> dict[str, Any]:
        """One update; ``minibatch_size`` is each learner's."""
        began = time.perf_counter()
        results = self._group.update(
            batch=self._batch,
            num_epochs=self._work.epochs,
            minibatch_size=self._work.minibatch // self._size,
            shuffle_batch_per_epoch=True,
            timesteps={"num_env_steps_sampled_lifetime": 0},
        )
        seconds = time.perf_counter() - began
        if len(results) != self._size:
            raise RuntimeError(f"{len(results)} learners answered, of {self._size}")
        return {"seconds": seconds}

    def close(self) -> None:
        """End the group and Ray."""
        if self._group is not None:
            self._group.shutdown()
        ray.shutdown()


def _pid(learner: Any, **arguments: Any) -> int:
    return os.getpid()


if __name__ == "__main__":
    serve(RLlib())
