"""Stable-Baselines3: ``PPO.train()`` on a rollout buffer that is filled already."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from ppo_settings import SETTINGS
from serve import serve
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure
from workloads import Workload, first_rows, initial_weights, rollout


class Spaces(gymnasium.Env[Any, Any]):
    """An environment that has spaces and is never stepped."""

    def __init__(self, workload: Workload) -> None:
        if workload.is_image:
            height, width, channels = workload.obs_shape
            self.observation_space = gymnasium.spaces.Box(0, 255, (channels, height, width), np.uint8)
        else:
            self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, workload.obs_shape, np.float32)
        self.action_space = gymnasium.spaces.Discrete(workload.num_actions)
        if workload.continuous:
            self.action_space = gymnasium.spaces.Box(-10, 10, (workload.num_actions,), np.float32)


class StableBaselines:
    """See the module."""

    def build(self, workload: Workload, options: dict[str, Any]) -> dict[str, Any]:
        torch.set_num_threads(1)
        self.workload = workload
        self.columns = rollout(workload)
        if workload.is_image:
            self.columns["obs"] = np.ascontiguousarray(self.columns["obs"].transpose(0, 3, 1, 2))
        self.model = self._model(self.columns, workload.epochs)
        return {"num_parameters": sum(p.numel() for p in self.model.policy.parameters())}

    def _model(self, columns: dict[str, np.ndarray], epochs: int) -> PPO:
        workload = self.workload
        hidden = list(workload.hidden)
        settings: dict[str, Any] = {"optimizer_kwargs": {"eps": SETTINGS["adam_eps"]}, "activation_fn": torch.nn.Tanh}
        if workload.is_image:
            settings |= {"features_extractor_kwargs": {"features_dim": hidden[0]}, "net_arch": []}
        else:
            settings |= {"net_arch": {"pi": hidden, "vf": hidden}}
        model = PPO(
            "CnnPolicy" if workload.is_image else "MlpPolicy",
            Spaces(workload),
            learning_rate=SETTINGS["lr"],
            n_steps=len(columns["obs"]),
            batch_size=workload.minibatch,
            n_epochs=epochs,
            clip_range=SETTINGS["clip_param"],
            vf_coef=SETTINGS["value_coeff"],
            ent_coef=SETTINGS["entropy_coeff"],
            max_grad_norm=SETTINGS["max_grad_norm"],
            policy_kwargs=settings,
            device="cpu",
        )
        model.set_logger(configure(None, []))
        buffer = model.rollout_buffer
        buffer.observations[:, 0] = columns["obs"]
        buffer.actions[:, 0] = columns["actions"].reshape(len(buffer.actions), -1)
        for ours, theirs in (("vf_preds", "values"), ("action_logp", "log_probs"), ("advantages",) * 2):
            getattr(buffer, theirs)[:, 0] = columns[ours]
        buffer.returns[:, 0] = columns["value_targets"]
        buffer.full = True
        _load(model, workload)
        return model

    def check(self) -> dict[str, float]:
        norms: list[float] = []
        clip = torch.nn.utils.clip_grad_norm_

        def spy(*args: Any, **kwargs: Any) -> Any:
            norm = clip(*args, **kwargs)
            norms.append(float(norm))
            return norm

        model = self._model(first_rows(self.columns, self.workload.minibatch), epochs=1)
        torch.nn.utils.clip_grad_norm_ = spy
        try:
            model.train()
        finally:
            torch.nn.utils.clip_grad_norm_ = clip
        return {"loss": float(model.logger.name_to_value["train/loss"]), "gradient_norm": norms[0]}

    def round(self) -> None:
        self.model.train()


def _load(model: PPO, workload: Workload) -> None:
    weights = initial_weights(workload)
    names: dict[str, str] = {}
    if workload.is_image:
        for i, layer in enumerate((0, 2, 4)):
            names[f"encoder.conv.{i}"] = f"features_extractor.cnn.{layer}"
        names |= {"encoder.0": "features_extractor.linear.0", "pi.0": "action_net", "vf.0": "value_net"}
        dense = weights["encoder.0.weight"].reshape(-1, 7, 7, 64).transpose(0, 3, 1, 2)
        weights["encoder.0.weight"] = np.ascontiguousarray(dense).reshape(-1, 3136)
    else:
        depth = len(workload.hidden)
        for ours, theirs, head in (("pi", "policy_net", "action_net"), ("vf", "value_net", "value_net")):
            names |= {f"{ours}.{i}": f"mlp_extractor.{theirs}.{2 * i}" for i in range(depth)}
            names[f"{ours}.{depth}"] = head
    parameters = dict(model.policy.named_parameters())
    used = set()
    with torch.no_grad():
        for ours, value in weights.items():
            layer, _, kind = ours.rpartition(".")
            theirs = f"{names[layer]}.{kind}" if layer else ours
            parameters[theirs].copy_(torch.from_numpy(value))
            used.add(theirs)
    # Extractors that are shared appear under several names, as the same parameters.
    left = {id(parameters[name]) for name in parameters} - {id(parameters[name]) for name in used}
    if left:
        raise RuntimeError(f"{len(left)} parameters were not given their initial weights")


if __name__ == "__main__":
    serve(StableBaselines())
