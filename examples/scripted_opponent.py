"""A policy learns to beat an opponent that is written by hand, and has nothing to learn.

Usage: python examples/scripted_opponent.py [torch|tf]
"""

import sys

import numpy as np

import learner_core as lc
from learner_core_algorithms import PPOConfig

ROCK, PAPER, SCISSORS = range(3)


class MostlyRock(lc.RLModule):
    """Plays rock, and now and then, where the number of the round says so, scissors."""

    def init(self, rng):
        return {}  # no parameters: it is never trained, nor asked for a loss

    def forward_exploration(self, params, batch):
        last = np.asarray(batch["obs"])  # the other's last move; 3 before the first
        return {"actions": np.where(last == PAPER, SCISSORS, ROCK)}


def main(backend="torch"):
    config = (
        PPOConfig()
        .environment("pettingzoo:classic/rps-v2", env_config={"num_actions": 3, "max_cycles": 15})
        .framework(backend, compile=False)
        .training(train_batch_size=256, minibatch_size=64, num_epochs=3, lr=3e-3, gamma=0.5)
        .rl_module(model={"hidden": [16]})
        .multi_agent(policies={"player_0": None, "player_1": lc.RLModuleSpec(MostlyRock)})
    )
    with config.build() as algo:
        for _ in range(6):
            results = algo.train()
            returns = results["env_runners"]["agent_episode_return_mean"]
            print(f"iteration {algo.iteration}: return against the script {returns['player_0']:.2f}")
        print(f"modules that learn: {results['learners']['__all__']['num_modules_updated']:.0f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
