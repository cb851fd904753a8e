"""The API page's starter example in raw Torch and raw TensorFlow: its loss takes the framework's own plain mean."""

from __future__ import annotations

from typing import Any

__all__ = ["raw_bc_learner"]


def raw_bc_learner(backend_name: str, *, prints: bool = False) -> Any:
    """``BCTorchLearner`` or ``BCTfLearner``; ``prints`` puts a print of the loss's value into the loss."""
    return _torch(prints) if backend_name == "torch" else _tf(prints)


def _torch(prints: bool) -> Any:
    import torch

    from learner_core_torch import TorchLearner

    class BCTorchLearner(TorchLearner):
        def compute_loss_for_module(self, *, module_id: str, config: Any = None, batch: Any, fwd_out: Any) -> Any:
            # standard behavior cloning loss
            action_dist_inputs = fwd_out["action_dist_inputs"]
            action_dist_class = self._module[module_id].get_train_action_dist_cls()
            action_dist = action_dist_class.from_logits(action_dist_inputs)
            loss = -torch.mean(action_dist.logp(batch["actions"]))
            if prints:
                print(f"loss is {loss.item():.6f}")
            return loss

    return BCTorchLearner


def _tf(prints: bool) -> Any:
    import tensorflow as tf

    from learner_core_tf import TfLearner

    class BCTfLearner(TfLearner):
        def compute_loss_for_module(self, *, module_id: str, config: Any = None, batch: Any, fwd_out: Any) -> Any:
            # standard behavior cloning loss
            action_dist_inputs = fwd_out["action_dist_inputs"]
            action_dist_class = self._module[module_id].get_train_action_dist_cls()
            action_dist = action_dist_class.from_logits(action_dist_inputs)
            loss = -tf.reduce_mean(action_dist.logp(batch["actions"]))
            if prints:
                print(f"loss is {float(loss):.6f}")
            return loss

    return BCTfLearner
