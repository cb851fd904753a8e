"""PPO whose policy and value function have optimizers of their own: other rules, other rates, other losses.

Usage: python examples/two_optimizers.py [torch|tf]
"""

import sys
from dataclasses import dataclass
from typing import Annotated

import learner_core as lc
from learner_core.config import FloatOrSchedule, Range
from learner_core_algorithms import PPOConfig
from learner_core_algorithms.ppo.learner import PPOLearner


class TwoOptimizers(PPOLearner):
    def configure_optimizers_for_module(self, module_id, config):
        policy, critic = lc.OptimizerSpec("adam", eps=1e-5), lc.OptimizerSpec("rmsprop", alpha=0.99)
        self.register_optimizer(module_id=module_id, optimizer_name="policy", optimizer=policy, params=["pi.*"])
        self.register_optimizer(
            module_id=module_id,
            optimizer_name="critic",
            optimizer=critic,
            params=["vf.*"],
            lr_or_lr_schedule="critic_lr",  # a setting's name: it follows set_config and schedules
        )

    def compute_loss_for_module(self, *, module_id, config, batch, fwd_out):
        policy = super().compute_loss_for_module(module_id=module_id, config=config, batch=batch, fwd_out=fwd_out)
        error = self.xp.abs(fwd_out["vf_preds"] - batch["value_targets"])
        critic = self.mean(self.xp.where(error < 1.0, 0.5 * error * error, error - 0.5))  # Huber's
        self.log("huber", critic)
        return {"policy": policy, "critic": critic}  # each moves the parameters of its optimizer alone


@dataclass(kw_only=True, repr=False, eq=False)
class TwoOptimizersConfig(PPOConfig):
    algorithm_name = "ppo_two_optimizers"
    default_learner_class = TwoOptimizers
    critic_lr: Annotated[FloatOrSchedule, Range(0)] = 1e-3


def main(backend="torch"):
    config = TwoOptimizersConfig().environment("CartPole-v1").framework(backend, compile=False)
    config.training(train_batch_size=256, num_epochs=2, critic_lr=[[0, 1e-2], [1024, 1e-3]])
    with config.build() as algo:
        for _ in range(3):
            metrics = algo.train()["learners"]["default_policy"]
            print(f"iteration {algo.iteration}: rate of the critic {metrics['learning_rate/critic']:.5f}")
            print(f"iteration {algo.iteration}: loss of the critic {metrics['huber']:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
