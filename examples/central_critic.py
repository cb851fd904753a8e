"""Two agents act by what each of them sees; the value functions that they learn by see what both do.

Usage: python examples/central_critic.py [torch|tf]"""

import sys

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

from learner_core_algorithms import PPOConfig


class Match(ParallelEnv):
    """Each sees a card of its own, and both are paid if their answers add up to the sum of the cards."""

    metadata = {"name": "match"}
    possible_agents = ["left", "right"]

    def __init__(self, config=None):
        self.rng, self.agents, self.round = np.random.default_rng(0), [], 0

    def observation_space(self, agent):
        return spaces.Discrete(2)

    def action_space(self, agent):
        return spaces.Discrete(2)

    def _dealt(self):
        self.cards = {agent: int(self.rng.integers(2)) for agent in self.agents}
        return dict(self.cards)

    def reset(self, seed=None, options=None):
        self.rng = np.random.default_rng(seed) if seed is not None else self.rng
        self.agents, self.round = list(self.possible_agents), 0
        return self._dealt(), {agent: {} for agent in self.agents}

    def step(self, actions):
        reward = float(sum(actions.values()) == sum(self.cards.values()))
        self.round += 1
        agents, over = self.agents, self.round == 10
        seen = self._dealt()
        self.agents = [] if over else agents
        return (seen, *(dict.fromkeys(agents, value) for value in (reward, over, False, {})))


def main(backend="torch"):
    config = PPOConfig().environment(Match).framework(backend, compile=False).rl_module(model={"hidden": [16]})
    config.multi_agent(policies=["left", "right"], critic_observes="all")
    config.training(train_batch_size=256, minibatch_size=128, num_epochs=4, lr=1e-2, gamma=0.5)
    with config.build() as algo:
        for _ in range(6):
            results = algo.train()
            print(f"iteration {algo.iteration}: return {results['env_runners']['episode_return_mean']:.2f}")
        weights = algo.learner_group.get_weights()["left"]
        print(f"inputs of a policy: {weights['pi.0.weight'].shape[1]}, of a critic: {weights['vf.0.weight'].shape[1]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
