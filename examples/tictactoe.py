"""Self-play in a turn-based game: one network plays both sides of tic-tac-toe, then plays against random moves.

Usage: python examples/tictactoe.py [torch|tf] [TURNS]
"""

import sys
import tempfile

import numpy as np
import pettingzoo

import learner_core as lc
from learner_core_algorithms import PPOConfig

GAMES = 500


class AgainstRandom(pettingzoo.ParallelEnv):
    """One player, whose opponent draws its moves at random; -1 for a lost game, 0 for a won or drawn one."""

    metadata = {"name": "against_random"}
    render_mode = None
    possible_agents = ["player"]

    def __init__(self, env_config):
        self.game = pettingzoo.make("aec", "classic/tictactoe-v3")
        self.agents = []
        self.rng = np.random.default_rng(0)

    def observation_space(self, agent):
        return self.game.observation_space("player_1")

    def action_space(self, agent):
        return self.game.action_space("player_1")

    def reset(self, seed=None, options=None):
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.game.reset()
        self.agents = ["player"]
        self.side = f"player_{self.rng.integers(1, 3)}"
        self._opponent_moves()
        return {"player": self.game.observe(self.side)}, {"player": {}}

    def step(self, actions):
        self.game.step(int(actions["player"]))
        self._opponent_moves()
        over = all(self.game.terminations.values())
        lost = over and self.game.rewards[self.side] < 0
        self.agents = [] if over else ["player"]
        seen = {"player": self.game.observe(self.side)}
        return seen, {"player": -float(lost)}, {"player": over}, {"player": False}, {"player": {}}

    def _opponent_moves(self):
        while self.game.agent_selection != self.side and not any(self.game.terminations.values()):
            mask = self.game.observe(self.game.agent_selection)["action_mask"]
            self.game.step(int(self.rng.choice(np.flatnonzero(mask))))


def main() -> float:
    backend = sys.argv[1] if len(sys.argv) > 1 else "torch"
    turns = int(sys.argv[2]) if len(sys.argv) > 2 else 120_000
    config = (
        PPOConfig()
        .environment("pettingzoo:classic/tictactoe_v3")
        .framework(backend)
        .env_runners(num_envs_per_env_runner=32)
        .training(train_batch_size=2048, minibatch_size=256, num_epochs=6, gamma=1.0, lambda_=0.8)
        # Much entropy: who always plays alike never learns to answer a move that it would not make.
        .training(lr=[[0, 1e-3], [turns, 1e-4]], entropy_coeff=0.1, use_kl_loss=False, grad_clip=0.5)
        .multi_agent(policies=["both"])
        .rl_module(model={"hidden": [128, 128]})
        .debugging(seed=1)
    )
    with config.build() as algo, tempfile.TemporaryDirectory() as folder:
        while algo.num_env_steps_sampled_lifetime < turns:
            results = algo.train()
            if results["training_iteration"] % 10 == 0:
                length = results["env_runners"]["episode_len_mean"]
                print(f"{results['num_env_steps_sampled_lifetime']} turns: games of {length:.1f} moves")
        algo.save(f"{folder}/tictactoe.lcstate")
        with lc.Algorithm.from_checkpoint(f"{folder}/tictactoe.lcstate", env=AgainstRandom) as player:
            lost = -player.evaluate(GAMES)["episode_return_mean"]
    print(f"against random moves: {100 * (1 - lost):.1f} % of {GAMES} games won or drawn")
    return 1 - lost


if __name__ == "__main__":
    main()
