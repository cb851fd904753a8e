"""-mean(log pi(a) * A) - entropy_coeff * H, on a small network of its own."""

from dataclasses import dataclass
from typing import Annotated

import learner_core as lc
from learner_core.config import FloatOrSchedule, Range
from learner_core.maths.networks import MLP


class ReinforceModule(lc.RLModule):
    def setup(self):
        inputs = self.get_train_action_dist_cls().input_size(self.action_space)
        self.pi = MLP("pi", self.observation_space.shape[0], self.model["hidden"], inputs)

    def init(self, rng):
        return self.pi.init(rng)

    def forward_train(self, params, batch):
        return {"action_dist_inputs": self.pi.apply(self.xp, params, batch["obs"])}


class ReinforceLearner(lc.Learner):
    def preprocess_batch(self, *, module_id, batch):
        return {**batch, "advantages": batch["advantages"] - batch["advantages"].mean()}

    def compute_loss_for_module(self, *, module_id, config, batch, fwd_out):
        inputs = fwd_out["action_dist_inputs"]
        actions = self.module[module_id].get_train_action_dist_cls().from_logits(inputs)
        entropy = self.mean(actions.entropy())
        self.log("entropy", entropy)
        return -self.mean(actions.logp(batch["actions"]) * batch["advantages"]) - config.entropy_coeff * entropy


@dataclass(kw_only=True, repr=False, eq=False)
class ReinforceConfig(lc.AlgorithmConfig):
    algorithm_name = "reinforce"
    algorithm_class = "learner_core.algorithm.on_policy:OnPolicyAlgorithm"
    default_learner_class = ReinforceLearner
    default_module_class = ReinforceModule

    entropy_coeff: Annotated[FloatOrSchedule, Range(0)] = 0.01
    """Weight of the entropy bonus."""

    use_critic: bool = False
    """The on-policy loop estimates no values: advantages are discounted returns."""
