"""PPO's update as a script writes it in plain, eager torch: what CleanRL's single-file style comes to.

Two networks, ``torch.distributions``, ``optim.Adam``, a shuffled index array, one ``.item()`` a minibatch for the
share of clipped ratios.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ppo_settings import SETTINGS
from serve import serve
from torch import nn
from workloads import Workload, first_rows, initial_weights, rollout


class Agent(nn.Module):
    """Policy and value, apart, or as two heads over convolutions."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.continuous = workload.continuous
        self.trunk: nn.Module
        if workload.is_image:
            convolutions = [
                nn.Conv2d(4, 32, 8, 4),
                nn.ReLU(),
                nn.Conv2d(32, 64, 4, 2),
                nn.ReLU(),
                nn.Conv2d(64, 64, 3, 1),
            ]
            self.trunk = nn.Sequential(
                *convolutions, nn.ReLU(), nn.Flatten(), nn.Linear(3136, workload.hidden[0]), nn.ReLU()
            )
            self.actor: nn.Module = nn.Linear(workload.hidden[0], workload.num_actions)
            self.critic: nn.Module = nn.Linear(workload.hidden[0], 1)
        else:
            self.trunk = nn.Identity()
            self.actor = _mlp(workload.obs_shape[0], workload.hidden, workload.num_actions)
            self.critic = _mlp(workload.obs_shape[0], workload.hidden, 1)
        if workload.continuous:
            self.log_std = nn.Parameter(torch.zeros(1, workload.num_actions))
        self.is_image = workload.is_image

    def evaluate(self, obs: Any, actions: Any) -> Any:
        """Log-probability and entropy of the actions, and the values."""
        features = self.trunk(obs / 255.0 if self.is_image else obs)
        outputs = self.actor(features)
        if self.continuous:
            dist: Any = torch.distributions.Normal(outputs, torch.exp(self.log_std.expand_as(outputs)))
            return dist.log_prob(actions).sum(1), dist.entropy().sum(1), self.critic(features)
        dist = torch.distributions.Categorical(logits=outputs)
        return dist.log_prob(actions), dist.entropy(), self.critic(features)


def _mlp(inputs: int, hidden: tuple[int, ...], outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(inputs, size), nn.Tanh()]
        inputs = size
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


class PlainTorch:
    """See the module."""

    def build(self, workload: Workload, options: dict[str, Any]) -> dict[str, Any]:
        torch.set_num_threads(1)
        self.workload = workload
        self.columns = rollout(workload)
        self.random = np.random.default_rng(0)
        if workload.is_image:
            self.columns["obs"] = np.ascontiguousarray(self.columns["obs"].transpose(0, 3, 1, 2))
        self._fresh()
        return {"num_parameters": sum(p.numel() for p in self.agent.parameters())}

    def _fresh(self) -> None:
        self.agent = Agent(self.workload)
        weights = initial_weights(self.workload)
        if self.workload.is_image:
            # Height, width, channel to channel, height, width.
            dense = weights["encoder.0.weight"].reshape(-1, 7, 7, 64).transpose(0, 3, 1, 2)
            weights["encoder.0.weight"] = np.ascontiguousarray(dense).reshape(-1, 3136)
        tail = [weights.pop("log_std")] if self.workload.continuous else []
        values = [*tail, *weights.values()]
        with torch.no_grad():
            for parameter, value in zip(self.agent.parameters(), values, strict=True):
                parameter.copy_(torch.from_numpy(value).view(parameter.shape))
        self.optimizer = torch.optim.Adam(self.agent.parameters(), lr=SETTINGS["lr"], eps=SETTINGS["adam_eps"])

    def check(self) -> dict[str, float]:
        found = self._update(first_rows(self.columns, self.workload.minibatch), epochs=1)
        self._fresh()
        return found

    def round(self) -> None:
        self._update(self.columns, self.workload.epochs)

    def _update(self, columns: dict[str, np.ndarray], epochs: int) -> dict[str, float]:
        data = {name: torch.from_numpy(column) for name, column in columns.items()}
        clip = SETTINGS["clip_param"]
        order = np.arange(len(columns["obs"]))
        clip_fractions = []
        for _ in range(epochs):
            self.random.shuffle(order)
            for start in range(0, len(order), self.workload.minibatch):
                rows = order[start : start + self.workload.minibatch]
                logp, entropy, values = self.agent.evaluate(data["obs"][rows], data["actions"][rows])
                log_ratio = logp - data["action_logp"][rows]
                ratio = log_ratio.exp()
                with torch.no_grad():
                    approx_kl = ((ratio - 1) - log_ratio).mean()
                    clip_fractions.append(((ratio - 1.0).abs() > clip).float().mean().item())
                advantages = data["advantages"][rows]
                advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
                unclipped = -advantages * ratio
                clipped = -advantages * torch.clamp(ratio, 1 - clip, 1 + clip)
                policy_loss = torch.max(unclipped, clipped).mean()
                value_loss = ((values.view(-1) - data["value_targets"][rows]) ** 2).mean()
                loss = policy_loss - SETTINGS["entropy_coeff"] * entropy.mean() + SETTINGS["value_coeff"] * value_loss
                self.optimizer.zero_grad()
                loss.backward()
                norm = nn.utils.clip_grad_norm_(self.agent.parameters(), SETTINGS["max_grad_norm"])
                self.optimizer.step()
        assert np.isfinite(approx_kl.item())
        return {"loss": float(loss.item()), "gradient_norm": float(norm)}


if __name__ == "__main__":
    serve(PlainTorch())
