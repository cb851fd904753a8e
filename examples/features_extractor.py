"""A network of one's own, written once for every framework: a set of objects, and a vote among them.

Usage: python examples/features_extractor.py [torch|tf]"""

import sys

import gymnasium as gym
import numpy as np

import learner_core as lc
from learner_core_algorithms import PPOConfig


class Brightest(gym.Env):
    """Five objects [size, brightness, noise]; naming the brightest is paid."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (5, 3)), gym.spaces.Discrete(5)

    def __init__(self, config=None):
        self.objects = np.zeros((5, 3), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.objects = self.np_random.uniform(-1, 1, (5, 3)).astype(np.float32)
        return self.objects, {}

    def step(self, action):
        return self.objects, float(action == self.objects[:, 1].argmax()), True, False, {}


class Voting(lc.RLModule):  # every object by the same layers: its score is its logit, their mean the state's value
    def init(self, rng):
        size = self.model.get("features", 16)
        return {
            "features.weight": rng.normal(scale=0.5, size=(size, 3)).astype(np.float32),
            "features.bias": np.zeros(size, np.float32),
            "score.weight": rng.normal(scale=0.1, size=(1, size)).astype(np.float32),
            "value.weight": rng.normal(scale=0.1, size=(1, size)).astype(np.float32),
        }

    def forward_train(self, params, batch):
        xp = self.xp
        features = xp.tanh(xp.linear(batch["obs"], params["features.weight"], params["features.bias"]))
        scores = xp.linear(features, params["score.weight"])
        value = xp.linear(xp.mean(features, axis=-2), params["value.weight"])
        return {"action_dist_inputs": xp.squeeze(scores, -1), "vf_preds": xp.squeeze(value, -1)}


def main(backend="torch"):
    config = PPOConfig().environment(Brightest).framework(backend, compile=False)
    config.training(train_batch_size=512, minibatch_size=128, num_epochs=4, lr=1e-2)
    config.rl_module(rl_module_spec=lc.RLModuleSpec(Voting, model={"features": 8}))
    with config.build() as algo:
        for _ in range(5):
            results = algo.train()
            print(f"iteration {algo.iteration}: right {results['env_runners']['episode_return_mean']:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
