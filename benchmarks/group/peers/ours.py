"""learner-core: groups of learner processes on one backend, over one collective."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import gymnasium
import numpy as np
from ppo_settings import training
from work import WORKS, batch, memory_mb, serve

from learner_core_algorithms import PPOConfig
from learner_core_algorithms.ppo.learner import PPOLearner


class TimedLearner(PPOLearner):
    """Knows how long its last update took."""

    seconds = 0.0

    def update_from_batch(self, *arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return super().update_from_batch(*arguments, **named)
        finally:
            self.seconds = time.perf_counter() - began


class LearnerCore:
    """See the module.

    Args:
        backend, collective: names.
    """

    def __init__(self, backend: str, collective: str) -> None:
        self._backend, self._collective = backend, collective
        self._groups: dict[int, Any] = {}

    def build(self, work: str, sizes: list[int]) -> dict[str, Any]:
        """A group of each size, each started three times: the first start imports the framework."""
        self._work = WORKS[work]
        self._batch = batch(self._work)
        facts: dict[str, Any] = {"starts": {}, "memory": {}, "submit_ms": {}}
        for size in sizes:
            starts = []
            for turn in range(3):
                began = time.perf_counter()
                group = self._config(size).build_learner_group()
                starts.append(time.perf_counter() - began)
                if turn < 2:
                    group.shutdown()
            self._groups[size] = group
            facts["starts"][size] = starts
            self.round(size)
            facts["memory"][size] = [memory_mb(pid) for pid in group.foreach_learner(_pid)]
            facts["submit_ms"][size] = self._submit(group)
        (weights,) = group.foreach_learner(_weights)[:1]
        facts["num_parameters"] = int(sum(np.size(value) for value in weights["default_policy"].values()))
        return facts

    def _config(self, size: int) -> Any:
        work = self._work
        config = PPOConfig().framework(self._backend, device="cpu")
        config.rl_module(model={"hidden": list(work.hidden), "activation": "tanh"})
        config.environment(
            None,
            observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (work.obs,), np.float32),
            action_space=gymnasium.spaces.Discrete(work.actions),
        )
        sizes = {"batch": work.batch, "minibatch": work.minibatch, "epochs": work.epochs}
        config.training(**training(**sizes, normalize_advantages="off"))
        return config.learners(
            num_learners=size, num_cpus_per_learner=1, collective=self._collective, learner_class=TimedLearner
        )

    def _submit(self, group: Any) -> list[float]:
        """Milliseconds of asynchronous calls into a queue that has room."""
        found = []
        for _ in range(10):
            began = time.perf_counter()
            group.update_from_batch(batch=self._batch, async_update=True)
            found.append(1e3 * (time.perf_counter() - began))
            group.wait()
        return found

    def round(self, size: int) -> dict[str, Any]:
        """One update."""
        group = self._groups[size]
        began = time.perf_counter()
        group.update_from_batch(batch=self._batch)
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "slowest_s": max(group.foreach_learner(_seconds))}

    def close(self) -> None:
        """End the groups."""
        for group in self._groups.values():
            group.shutdown()


def _pid(learner: Any) -> int:
    return os.getpid()


def _seconds(learner: Any) -> float:
    return float(learner.seconds)


def _weights(learner: Any) -> Any:
    return learner.get_module_state()


if __name__ == "__main__":
    # Learners find this class by its module's name.
    from ours import LearnerCore as Peer

    serve(Peer(*sys.argv[1:]))
