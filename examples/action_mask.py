"""Actions that are not always allowed: the environment says which, and no other is taken, in sampling or in the loss.

Usage: python examples/action_mask.py [torch|tf]
"""

import sys

import gymnasium as gym
import numpy as np

from learner_core_algorithms import PPOConfig


class Doors(gym.Env):
    """Three doors, of which two are open; going through the left one of these is paid."""

    observation_space = gym.spaces.Dict(
        {"observation": gym.spaces.Box(0, 1, (1,)), "action_mask": gym.spaces.MultiBinary(3)}
    )
    action_space = gym.spaces.Discrete(3)

    def __init__(self, config=None):
        self.open, self.round = np.ones(3, np.int8), 0

    def _seen(self):
        self.open = np.ones(3, np.int8)
        self.open[self.np_random.integers(3)] = 0
        return {"observation": np.zeros(1, np.float32), "action_mask": self.open}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.round = 0
        return self._seen(), {}

    def step(self, action):
        assert self.open[action], "a closed door"
        reward, self.round = float(action == np.flatnonzero(self.open)[0]), self.round + 1
        return self._seen(), reward, False, self.round == 10, {}


def main(backend="torch"):
    config = PPOConfig().environment(Doors).framework(backend, compile=False).rl_module(model={"hidden": [16]})
    config.training(train_batch_size=256, minibatch_size=128, num_epochs=4, lr=1e-2)
    with config.build() as algo:
        for _ in range(6):
            results = algo.train()
            print(f"iteration {algo.iteration}: return {results['env_runners']['episode_return_mean']:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
