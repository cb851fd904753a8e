"""Stacked grey frames, channels first as gymnasium stacks them: recognised, and seen by convolutions.

Usage: python examples/frame_stacks.py [torch|tf]
"""

import sys

import gymnasium as gym
import numpy as np

from learner_core_algorithms import PPOConfig


class Falling(gym.Env):
    """A dot falls or rises, one row a frame: only two frames tell which, and saying so is paid."""

    observation_space, action_space = gym.spaces.Box(0, 255, (20, 20), np.uint8), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.row, self.speed = 10, int(self.np_random.choice([-1, 1]))
        return self._seen(), {}

    def _seen(self):
        frame = np.zeros((20, 20), np.uint8)
        frame[self.row - 1 : self.row + 2, 8:12] = 255
        return frame

    def step(self, action):
        self.row += self.speed
        over = self.row in (2, 17)
        return self._seen(), float(action == (self.speed > 0)), over, False, {}


def make_env(env_config):
    return gym.wrappers.FrameStackObservation(Falling(), 2)  # uint8[2, 20, 20]


def main(backend="torch"):
    config = PPOConfig().environment(make_env).framework(backend, compile=False)
    config.rl_module(model={"conv_filters": [[8, 4, 2]], "hidden": [32]})  # 8 filters of 4 x 4, every 2 pixels
    config.training(train_batch_size=256, minibatch_size=128, num_epochs=4, lr=3e-3, gamma=0.5)
    with config.build() as algo:
        print(f"first layer: {algo.learner_group.get_weights()['default_policy']['pi.conv.0.weight'].shape}")
        for _ in range(5):
            results = algo.train()
            print(f"iteration {algo.iteration}: return {results['env_runners']['episode_return_mean']:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
