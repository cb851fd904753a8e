"""Curiosity: a model of the environment learns from the policy's rows, and its errors are paid as rewards.

Usage: python examples/curiosity.py [torch|tf]"""

import sys
from dataclasses import dataclass

import numpy as np

import learner_core as lc
from learner_core.algorithm.on_policy import OnPolicyAlgorithm
from learner_core_algorithms import PPOConfig
from learner_core_algorithms.ppo.learner import PPOLearner


class NextObservation(lc.RLModule):  # predicts what is seen next from what is seen and done
    def init(self, rng):
        return {"weight": rng.normal(scale=0.1, size=(4, 4 + 2)).astype("float32"), "bias": np.zeros(4, "float32")}

    def forward_train(self, params, batch):
        xp = self.xp
        done = xp.one_hot(batch["actions"], 2, dtype=batch["obs"].dtype)
        predicted = xp.linear(xp.concat([batch["obs"], done], -1), params["weight"], params["bias"])
        return {"error": xp.sum(xp.square(predicted - batch["next_obs"]), axis=-1)}


class CuriousLearner(PPOLearner):
    def compute_loss_for_module(self, *, module_id, config, batch, fwd_out):
        if module_id == "model":
            return self.mean(fwd_out["error"])
        return super().compute_loss_for_module(module_id=module_id, config=config, batch=batch, fwd_out=fwd_out)


class CuriousPPO(OnPolicyAlgorithm):
    def process_rollout(self, rollout, *, module_id):
        columns, rewards = rollout.columns, rollout.columns["rewards"]
        rows = {name: columns[name].reshape(-1, *columns[name].shape[2:]) for name in ("obs", "actions", "next_obs")}
        rewards += self.config.curiosity * self.module_outputs("model", rows)["error"].reshape(rewards.shape)
        return rollout


@dataclass(kw_only=True, repr=False, eq=False)
class CuriousConfig(PPOConfig):
    algorithm_name, algorithm_class, default_learner_class = "curious_ppo", CuriousPPO, CuriousLearner
    curiosity: float = 0.1


def main(backend="torch"):
    policy, model = lc.RLModuleSpec(), lc.RLModuleSpec(NextObservation, rows_of="default_policy")
    config = CuriousConfig().environment("CartPole-v1").framework(backend, compile=False)
    config.training(train_batch_size=256, num_epochs=2, lr=3e-3)
    config.rl_module(rl_module_spec=lc.MultiRLModuleSpec({"default_policy": policy, "model": model}))
    with config.build() as algo:
        for _ in range(4):
            results = algo.train()
            print(f"iteration {algo.iteration}: error of the model {results['learners']['model']['total_loss']:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
