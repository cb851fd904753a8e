"""A Learner in raw Torch: behaviour cloning. Compiled by default; with debug=True, print and breakpoints work."""

import gymnasium as gym
import numpy as np
import torch

from learner_core_algorithms import BCConfig
from learner_core_torch import TorchLearner


class BCTorchLearner(TorchLearner):
    def compute_loss_for_module(self, *, module_id, config, batch, fwd_out):
        # standard behaviour cloning loss
        action_dist_class = self._module[module_id].get_train_action_dist_cls()
        action_dist = action_dist_class.from_logits(fwd_out["action_dist_inputs"])
        loss = -torch.mean(action_dist.logp(batch["actions"]))
        self.log("loss", loss)
        return loss


def main(debug: bool = False) -> None:
    config = (
        BCConfig()
        .framework("torch", debug=debug)
        .learners(learner_class=BCTorchLearner)
        .training(lr=1e-2, train_batch_size=256, minibatch_size=100, num_epochs=5)
    )
    learner = config.build_learner(env=gym.make("CartPole-v1"))
    # An expert that goes where the pole leans. 256 rows in minibatches of 100 leave a last one of 56: it counts fully.
    obs = np.random.default_rng(0).normal(size=(256, 4)).astype(np.float32)
    batch = {"obs": obs, "actions": (obs[:, 2] > 0).astype(np.int64)}
    for update in range(20):
        results = learner.update_from_batch(batch=batch, timesteps={})
        if update % 5 == 4:
            print(f"update {update + 1:2d}: loss {results['default_policy']['loss']:.4f}")


if __name__ == "__main__":
    main()
