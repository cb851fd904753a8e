"""A curriculum: the goal moves away as the policy reaches it.

Usage: python examples/curriculum.py [torch|tf]
"""

import sys

import gymnasium as gym
import numpy as np

from learner_core_algorithms import PPOConfig


class Corridor(gym.Env):
    """Steps to the right until the goal, at most thirty; every step costs."""

    observation_space, action_space = gym.spaces.Box(0, 1, (2,)), gym.spaces.Discrete(2)

    def __init__(self, config=None):
        self.distance, self.place, self.steps = 2, 0, 0

    def _seen(self):
        return np.array([self.place / 12, self.distance / 12], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.steps = 0, 0
        return self._seen(), {}

    def step(self, action):
        self.place, self.steps = min(max(self.place + (1 if action else -1), 0), 12), self.steps + 1
        there = self.place >= self.distance
        return self._seen(), 1.0 if there else -0.02, there, self.steps == 30, {}


def set_distance(runner, distance):
    """On a runner, in whatever process it is: its environments have the new goal from their next step on."""
    for env in runner.lanes.environments():
        env.unwrapped.distance = distance


def main(backend="torch"):
    config = PPOConfig().environment(Corridor).framework(backend, compile=False).rl_module(model={"hidden": [16]})
    config.training(train_batch_size=256, minibatch_size=128, num_epochs=4, lr=1e-2)
    distance = 2
    with config.build() as algo:
        for _ in range(10):
            reached = algo.train()["env_runners"].get("episode_return_mean", 0.0)
            print(f"iteration {algo.iteration}: goal at {distance}, return {reached:.2f}")
            if reached > 0.5 and distance < 12:
                distance += 2
                algo.env_runners.foreach_runner(lambda runner, goal=distance: set_distance(runner, goal))


if __name__ == "__main__":
    main(*sys.argv[1:])
