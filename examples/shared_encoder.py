"""Two policies on one encoder: one set of weights, which the losses of both move.

Usage: python examples/shared_encoder.py [torch|tf]
"""

import sys

import numpy as np

import learner_core as lc
from learner_core_algorithms import PPOConfig


class Player(lc.RLModule):
    """An encoder, and two heads of its own."""

    def init(self, rng):
        def matrix(rows, columns):
            return (rng.normal(size=(rows, columns)) / np.sqrt(columns)).astype(np.float32)

        return {"encoder.weight": matrix(16, 4), "pi.weight": matrix(3, 16), "vf.weight": matrix(1, 16)}

    def forward_train(self, params, batch):
        xp = self.xp
        seen = xp.one_hot(batch["obs"], 4, dtype=params["pi.weight"].dtype)
        features = xp.tanh(xp.linear(seen, params["encoder.weight"]))
        return {
            "action_dist_inputs": xp.linear(features, params["pi.weight"]),
            "vf_preds": xp.squeeze(xp.linear(features, params["vf.weight"]), -1),
        }


def main(backend="torch"):
    modules = {
        "player_0": lc.RLModuleSpec(Player),
        "player_1": lc.RLModuleSpec(Player),
        "encoder": lc.RLModuleSpec(shares=["encoder.*"], shared_by=["player_0", "player_1"]),
    }
    config = (
        PPOConfig()
        .environment("pettingzoo:classic/rps-v2", env_config={"num_actions": 3, "max_cycles": 15})
        .framework(backend, compile=False)
        .training(train_batch_size=256, minibatch_size=128, num_epochs=2, gamma=0.5)
        .multi_agent(policies=["player_0", "player_1"], settings={"encoder": {"lr": 1e-3}})
        .rl_module(rl_module_spec=lc.MultiRLModuleSpec(modules))
    )
    with config.build() as algo:
        for _ in range(3):
            learners = algo.train()["learners"]
            print(f"iteration {algo.iteration}: gradient of the encoder {learners['encoder']['gradient_norm']:.4f}")
        for module_id, weights in algo.learner_group.get_weights().items():
            print(f"{module_id}: {', '.join(weights)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
