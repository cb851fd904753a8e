"""Portable policies of every kind that exports must get right, with weights away from their initialisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete

from learner_core import RLModuleSpec, numpy_xp
from learner_core.exporting.source import ExportedPolicy, sample_state
from learner_core.learning.actor_critic import ActorCriticModule, PolicyModule
from learner_core_algorithms.sac.module import SACModule

__all__ = ["POLICIES", "exported_policy", "state_of"]

_VECTOR = Box(-1, 1, (5,), np.float32)
_IMAGE = Box(0, 255, (36, 40, 3), np.uint8)
_ACTIONS = Box(np.asarray([-2, 0], np.float32), np.asarray([1, 3], np.float32))
_STACKED = Box(0, 255, (4, 12, 10), np.uint8)
_PARTS = Dict({"camera": Box(0, 255, (12, 10), np.float32), "frames": Box(0, 255, (2, 12, 10, 1), np.uint8)})
_NESTED = Dict({"a": _VECTOR, "b": Discrete(4, start=1), "c": MultiDiscrete([2, 3]), "d": MultiBinary(3)})


class Contrary(ActorCriticModule):
    """Acts by itself: the least likely action, or the mean's opposite, moved by what it sees."""

    def forward_train(self, params: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
        xp, out = self.xp, super().forward_train(params, batch)
        inputs = out["action_dist_inputs"]
        if isinstance(self.action_space, Discrete):
            out["actions"] = xp.argmax(-inputs, -1) + int(self.action_space.start)
        else:
            out["actions"] = xp.clip(0.5 - inputs[:, :2], 0.0, 1.0)
        return out


class Reflex(Contrary):
    """Has actions alone to act greedily with."""

    def forward_inference(self, params: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
        return {"actions": self.forward_train(params, batch)["actions"]}


_HEADS = {
    "vf_share_layers": True,
    "hidden": {"encoder": [8], "pi": [6], "vf": [4]},
    "layer_norm": True,
    "log_std_range": [-0.05, 0.05],
}
_TWO = {
    "hidden": {"pi": [8], "qf": [4, 4]},
    "activation": {"pi": "tanh", "qf": "relu"},
    "layer_norm": {"pi": True},
    "log_std_range": [-0.2, 0.1],
}

_TOLD = {"recurrent": "lstm", "recurrent_size": 5, "use_prev_action": True, "use_prev_reward": True}

#: name -> (module class, observation space, action space, model).
POLICIES: dict[str, tuple[Any, Any, Any, dict[str, Any]]] = {
    "discrete": (ActorCriticModule, _VECTOR, Discrete(3, start=2), {}),
    "continuous": (ActorCriticModule, _VECTOR, _ACTIONS, {}),
    "shared": (ActorCriticModule, _VECTOR, Discrete(3), {"vf_share_layers": True, "activation": "gelu"}),
    "image, shared": (ActorCriticModule, _IMAGE, Discrete(3), {"vf_share_layers": True}),
    "image, continuous": (ActorCriticModule, _IMAGE, _ACTIONS, {"conv_filters": [[4, 5, 3, 2], [6, 3, 2]]}),
    "lstm": (ActorCriticModule, _VECTOR, Discrete(3), {"recurrent": "lstm", "recurrent_size": 6}),
    "gru, shared": (ActorCriticModule, _VECTOR, _ACTIONS, {"recurrent": "gru", "vf_share_layers": True}),
    "told, lstm": (ActorCriticModule, _VECTOR, Discrete(3, start=2), _TOLD),
    "told, gru": (PolicyModule, _VECTOR, _ACTIONS, {"recurrent": "gru", "use_prev_action": True}),
    "sac": (SACModule, _VECTOR, _ACTIONS, {"activation": "relu"}),
    "frames first": (ActorCriticModule, _STACKED, Discrete(3), {"hidden": [8], "conv_filters": [[4, 5, 3]]}),
    "layouts": (PolicyModule, _PARTS, Discrete(3), {"hidden": [8], "image_layout": {"camera": "HW"}}),
    "heads": (ActorCriticModule, _VECTOR, _ACTIONS, _HEADS),
    "sac, two networks": (SACModule, _VECTOR, _ACTIONS, _TWO),
    "nested": (PolicyModule, _NESTED, MultiDiscrete([2, 3]), {"activation": "elu"}),
    "own actions": (Contrary, _VECTOR, Discrete(3, start=2), {}),
    "actions alone": (Reflex, _VECTOR, _ACTIONS, {}),
    "binary": (PolicyModule, Discrete(5), MultiBinary(3), {"activation": "leaky_relu"}),
}


def exported_policy(case: str) -> ExportedPolicy:
    """The policy, with normalised observations where they are a float vector."""
    module_class, observations, actions, model = POLICIES[case]
    spec = RLModuleSpec(module_class, observations, actions, model)
    rng = np.random.default_rng(0)
    fresh = spec.build(numpy_xp).init(rng)
    params = {name: (value + 0.1 * rng.normal(size=value.shape)).astype(np.float32) for name, value in fresh.items()}
    normalizer = {"obs": (np.full(5, 0.1), np.full(5, 1.5), 0.8)} if observations is _VECTOR else {}
    return ExportedPolicy("default_policy", spec, params, normalizer)


def state_of(policy: ExportedPolicy, rows: int) -> dict[str, np.ndarray]:
    """States of a policy with a memory that are not zero; ``{}`` of one without."""
    return sample_state(policy.spec.build(numpy_xp), rows)
