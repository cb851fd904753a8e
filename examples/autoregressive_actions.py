"""Actions of two numbers, the second of which depends on the first: p(a, b) = p(a) p(b | a).

Usage: python examples/autoregressive_actions.py [torch|tf]"""

import sys

import gymnasium as gym
import numpy as np

import learner_core as lc
from learner_core.learning.actor_critic import ActorCriticModule
from learner_core.maths.distributions import Categorical
from learner_core_algorithms import PPOConfig


class Copies(gym.Env):  # paid where the numbers are equal: independent choices get it right one time in three
    observation_space, action_space = gym.spaces.Box(0, 1, (1,)), gym.spaces.MultiDiscrete([3, 3])

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), float(action[0] == action[1]), True, False, {}


class Pair(Categorical):  # one of nine pairs, from logits of the first number and of the second after each first
    event_shape = (2,)
    noise_shape = staticmethod(lambda space: (2 * 9,))
    input_size = staticmethod(lambda space: 3 + 9)

    @classmethod
    def from_logits(cls, inputs, mask=None):
        xp, rows = cls.xp, tuple(cls.xp.shape(inputs)[:-1])
        first = xp.log_softmax(inputs[..., :3], axis=-1)
        second = xp.log_softmax(xp.reshape(inputs[..., 3:], (*rows, 3, 3)), axis=-1)
        return cls(xp.reshape(xp.expand_dims(first, -1) + second, (*rows, 9)))

    def logp(self, x):
        return super().logp(3 * x[..., 0] + x[..., 1])

    def _action(self, indices):
        return self.xp.stack([indices // 3, indices - 3 * (indices // 3)], axis=-1)


class Autoregressive(ActorCriticModule):
    def get_train_action_dist_cls(self):
        return Pair.bind(self.xp)


def main(backend="torch"):
    config = PPOConfig().environment(lambda env_config: Copies()).framework(backend, compile=False)
    config.training(train_batch_size=256, minibatch_size=128, num_epochs=4, lr=1e-2)
    config.rl_module(rl_module_spec=lc.RLModuleSpec(Autoregressive, model={"hidden": [16]}))
    with config.build() as algo:
        for _ in range(8):
            print(f"share of equal numbers: {algo.train()['env_runners']['episode_return_mean']:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
