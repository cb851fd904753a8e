"""An algorithm that learns nothing but keeps time: returns grow by a fixed amount per iteration.

`python -m support.fake_algorithm ARGUMENTS...` is the `learner-core` command with it registered as "fake".
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar

import numpy as np

import learner_core as lc
from learner_core import AlgorithmConfig
from learner_core.config import FloatOrSchedule, Range, make_env
from learner_core.plugins import discovery
from learner_core.plugins.hookspecs import hookimpl

__all__ = ["FakeAlgorithm", "FakeConfig", "register"]


class FakeAlgorithm:
    """The part of Algorithm's interface that the command line uses."""

    instances: ClassVar[list[FakeAlgorithm]] = []

    def __init__(self, config: FakeConfig) -> None:
        self.config, self.iteration, self.stopped = config, 0, False
        self.learner_group = SimpleNamespace(collective=None)
        if config.env is not None:
            make_env(config).close()
        self.instances.append(self)

    def train(self) -> dict[str, Any]:
        time.sleep(self.config.pause)
        self.iteration += 1
        results: dict[str, Any] = {
            "training_iteration": self.iteration,
            "num_env_steps_sampled_lifetime": 100 * self.iteration,
            "env_runners": {"num_episodes": 0},
            "learners": {"default_policy": {"loss": np.float32(1 / self.iteration)}},
        }
        if self.iteration > 1:  # as with a real one, the first iteration may end no episode
            results["env_runners"] = {
                "episode_return_mean": 10.0 * self.iteration,
                "episode_len_mean": 5.0,
                "num_episodes": 3,
            }
        if self.iteration == self.config.fail_at:
            raise lc.NonFiniteError("the loss is NaN")
        return results

    def evaluate(self, num_episodes: int) -> dict[str, Any]:
        return {"episode_return_mean": 10.0 * self.iteration, "episode_return_std": 0.0, "num_episodes": num_episodes}

    def save(self, path: str) -> None:
        lc.save_state(path, {"iteration": self.iteration, "w": np.ones(3, np.float32)})

    def restore(self, path: str, **options: Any) -> None:
        self.iteration = lc.load_state(path)["iteration"]

    @classmethod
    def from_checkpoint(cls, path: str, framework: str | None = None, **settings: Any) -> FakeAlgorithm:
        algorithm = cls(FakeConfig().framework(framework or "torch"))
        algorithm.restore(path)
        return algorithm

    def stop(self) -> None:
        self.stopped = True


@dataclass(kw_only=True, repr=False, eq=False)
class FakeConfig(AlgorithmConfig):
    """Settings of the fake."""

    algorithm_name: ClassVar[str] = "fake"
    algorithm_class: ClassVar[type | str | None] = FakeAlgorithm

    pause: Annotated[float, Range(0)] = 0.0
    """Seconds an iteration takes."""

    fail_at: int | None = None
    """The iteration that raises."""

    coefficient: Annotated[FloatOrSchedule, Range(0)] = 0.5
    """A schedule or a number."""


@hookimpl
def learner_core_algorithm() -> type:
    return FakeConfig


def register() -> None:
    """Register it in this process, once."""
    if "fake" not in discovery.list_algorithms():
        plugin = SimpleNamespace(learner_core_algorithm=learner_core_algorithm)
        discovery.register("learner_core.algorithms", "fake", plugin)


if __name__ == "__main__":
    register()
    from learner_core.cli.main import main

    sys.exit(main())
