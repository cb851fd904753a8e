"""A Learner written once for every backend: PPO with a penalty on large logits, whose weight follows a schedule.

Usage: python examples/own_learner.py [torch|tf]
"""

import sys
from dataclasses import dataclass
from typing import Annotated

import gymnasium as gym
import numpy as np

from learner_core.config import FloatOrSchedule, Range
from learner_core_algorithms import PPOConfig
from learner_core_algorithms.ppo.learner import PPOLearner


class CalmLearner(PPOLearner):
    def compute_loss_for_module(self, *, module_id, config, batch, fwd_out):
        loss = super().compute_loss_for_module(module_id=module_id, config=config, batch=batch, fwd_out=fwd_out)
        penalty = self.mean(self.xp.sum(self.xp.square(fwd_out["action_dist_inputs"]), axis=-1))
        self.log("logit_penalty", penalty)
        return loss + config.calm_coeff * penalty


@dataclass(kw_only=True, repr=False, eq=False)
class CalmConfig(PPOConfig):
    algorithm_name = "calm"
    default_learner_class = CalmLearner

    calm_coeff: Annotated[FloatOrSchedule, Range(0)] = 0.01
    """Weight of the penalty on squared logits."""


def main(backend: str = "torch") -> None:
    config = CalmConfig().framework(backend, compile=False)
    config.training(calm_coeff=[[0, 0.1], [1000, 0.0]], train_batch_size=64, minibatch_size=32, num_epochs=2)
    learner = config.build_learner(env=gym.make("CartPole-v1"))
    rng = np.random.default_rng(0)
    batch = {
        "obs": rng.normal(size=(64, 4)),
        "actions": rng.integers(0, 2, 64),
        "action_logp": np.full(64, np.log(0.5)),
        "action_dist_inputs": np.zeros((64, 2)),
        "advantages": rng.normal(size=64),
        "value_targets": rng.normal(size=64),
    }
    for timestep in (0, 500, 1000):  # a number that changes never recompiles
        results = learner.update_from_batch(batch=batch, timesteps={"num_env_steps_sampled_lifetime": timestep})
        print(f"timestep {timestep:4d}: logit penalty {results['default_policy']['logit_penalty']:.6f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
