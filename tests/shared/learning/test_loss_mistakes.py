"""Mistakes in a loss are named at build, alike on every backend."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import learner_core as lc
from learner_core_algorithms import BCConfig


def _build(backend_name: str, learner_class: Any) -> Any:
    space = gym.spaces.Box(-1, 1, (3,), np.float32)
    config = BCConfig().environment(None, observation_space=space, action_space=gym.spaces.Discrete(2))
    config.framework(backend_name, compile=False).rl_module(model={"hidden": [4]})
    return config.learners(learner_class=learner_class).build_learner()


def _logp(learner: Any, module_id: str, batch: Any, fwd_out: Any) -> Any:
    dist = learner.module[module_id].get_train_action_dist_cls().from_logits(fwd_out["action_dist_inputs"])
    return dist.logp(batch["actions"])


class OnePerRow(lc.Learner):
    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: Any, fwd_out: Any) -> Any:
        return -_logp(self, module_id, batch, fwd_out)


class OneOfTwoPerRow(lc.Learner):
    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: Any, fwd_out: Any) -> Any:
        return {"default": -_logp(self, module_id, batch, fwd_out)}


class NearlyAColumn(lc.Learner):
    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: Any, fwd_out: Any) -> Any:
        return -self.mean(_logp(self, module_id, batch, fwd_out) * batch["advantage"])


def test_a_loss_that_is_no_scalar(backend_name: str) -> None:
    with pytest.raises(lc.ConfigError, match=r"OnePerRow: the loss of module 'default_policy' has shape \(\d+,\)"):
        _build(backend_name, OnePerRow)
    with pytest.raises(lc.ConfigError, match=r"OneOfTwoPerRow: the loss of optimizer 'default', module .* self\.mean"):
        _build(backend_name, OneOfTwoPerRow)


def test_a_column_that_is_nearly_one(backend_name: str) -> None:
    with pytest.raises(lc.BatchError, match=r"reads 'advantage'.*Did you mean 'advantages'"):
        _build(backend_name, NearlyAColumn)
