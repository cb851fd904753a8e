"""The loss of behaviour cloning, once for every backend."""

from __future__ import annotations

from learner_core.learning.learner import Learner
from learner_core.xp import Array, Columns, Outputs

from .config import BCConfig

__all__ = ["BCLearner"]


class BCLearner(Learner):
    """Negative log-likelihood of the recorded actions."""

    def compute_loss_for_module(self, *, module_id: str, config: BCConfig, batch: Columns, fwd_out: Outputs) -> Array:
        dist = self.module[module_id].get_train_action_dist_cls().from_logits(fwd_out["action_dist_inputs"])
        logp = self.mean(dist.logp(batch["actions"]))
        self.log("mean_logp", logp)
        return -logp
