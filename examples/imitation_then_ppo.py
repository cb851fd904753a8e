"""Behaviour cloning of a recording, then PPO from there: the weights go over by name, on any framework.

Usage: python examples/imitation_then_ppo.py [torch|tf]
"""

import sys
import tempfile
from pathlib import Path

import gymnasium as gym
import numpy as np

import learner_core as lc
from learner_core_algorithms import BCConfig, PPOConfig

NETWORK = {"hidden": [32], "activation": "tanh"}


def record(path, num_steps=2000):
    """A pole balanced by hand, as `learner-core record` would have written it."""
    env, columns = gym.make("CartPole-v1"), {"obs": [], "actions": []}
    obs, _ = env.reset(seed=0)
    for _ in range(num_steps):
        action = int(obs[2] + 0.3 * obs[3] > 0)
        columns["obs"].append(obs)
        columns["actions"].append(action)
        obs, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            obs, _ = env.reset()
    arrays = {name: np.array(values) for name, values in columns.items()}
    lc.save_state(path, {"format": "learner_core/recording", "columns": arrays})


def main(backend="torch"):
    with tempfile.TemporaryDirectory() as folder:
        record(path := Path(folder) / "cartpole.lcstate")
        cloning = BCConfig().environment("CartPole-v1").framework(backend, compile=False).rl_module(model=NETWORK)
        cloning.training(input_path=str(path), lr=1e-2, train_batch_size=500, minibatch_size=100, num_epochs=1)
        with cloning.build() as algo:
            for _ in range(2):
                algo.train()
            cloned = algo.learner_group.get_weights()["default_policy"]
            print(f"cloned: {algo.evaluate(num_episodes=5)['episode_return_mean']:.1f}")
    config = PPOConfig().environment("CartPole-v1").framework(backend, compile=False).rl_module(model=NETWORK)
    config.env_runners(num_envs_per_env_runner=1).training(train_batch_size=512, num_epochs=2)
    with config.build() as algo:
        print(f"untrained: {algo.evaluate(num_episodes=5)['episode_return_mean']:.1f}")
        weights = algo.learner_group.get_weights()["default_policy"]
        algo.set_weights({"default_policy": {**weights, **cloned}})  # the value function has nothing to take over
        print(f"taken over: {algo.evaluate(num_episodes=5)['episode_return_mean']:.1f}")
        results = algo.train()
        print(f"trained on: {results['env_runners']['episode_return_mean']:.1f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
