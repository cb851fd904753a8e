"""Write the golden models of Stable-Baselines3 and what they answer: run once, with stable-baselines3==2.9.2 installed.

    python tests/golden/make_sb3.py [FOLDER]

For each case ``sb3_<case>.zip``, of which only the tensors and plain settings are kept, and ``sb3_<case>.npz``:
observations, actions and the model's own outputs. Weights are pushed away from their initialisation, so that swapped
terms show.
"""

from __future__ import annotations

import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from stable_baselines3 import PPO, SAC

FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent
VECTOR = Box(-3.0, 3.0, (5,), np.float32)
SETTINGS = ("policy_class", "policy_kwargs", "use_sde", "observation_space", "action_space", "gamma")
IMAGE = Box(0, 255, (44, 52, 2), np.uint8)
ACTIONS = Box(np.asarray([-2.0, 0.5], np.float32), np.asarray([1.0, 4.0], np.float32))


class Still(gym.Env[Any, Any]):
    """An environment of given spaces in which nothing happens."""

    def __init__(self, observation_space: Any, action_space: Any) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {}


def main() -> None:
    torch.manual_seed(0)
    small = {"net_arch": [16, 8]}
    image = {"features_extractor_kwargs": {"features_dim": 8}}
    models = {
        "ppo_discrete": PPO("MlpPolicy", Still(VECTOR, Discrete(3)), policy_kwargs=small),
        "ppo_box": PPO("MlpPolicy", Still(VECTOR, ACTIONS), policy_kwargs=small),
        "ppo_image": PPO("CnnPolicy", Still(IMAGE, Discrete(3)), policy_kwargs=image),
        "sac": SAC("MlpPolicy", Still(VECTOR, ACTIONS), policy_kwargs=small, buffer_size=10),
    }
    for name, model in models.items():
        with torch.no_grad():
            for parameter in model.policy.parameters():
                parameter.add_(torch.randn_like(parameter) * (0.02 if parameter.ndim > 2 else 0.1))
        outputs = answers(name, model)
        file = FOLDER / f"sb3_{name}.zip"
        model.save(file)
        keep_tensors(file)
        np.savez_compressed(FOLDER / f"sb3_{name}.npz", **outputs)


def keep_tensors(file: Path) -> None:
    """Drop what is not read: optimizers, the writer's system, and what is pickled inside of the settings."""
    with zipfile.ZipFile(file) as archive:
        kept = {name: archive.read(name) for name in ("policy.pth", "pytorch_variables.pth")}
        settings = plain(json.loads(archive.read("data")))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in kept.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
        archive.writestr(zipfile.ZipInfo("data"), json.dumps({name: settings[name] for name in SETTINGS}))


def plain(settings: Any) -> Any:
    """Settings without what is pickled, and without memory addresses."""
    if isinstance(settings, dict):
        return {key: plain(value) for key, value in settings.items() if key not in (":serialized:", "__doc__")}
    return re.sub(r" at 0x[0-9a-f]+", "", settings) if isinstance(settings, str) else settings


def answers(name: str, model: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    space = IMAGE if "image" in name else VECTOR
    obs = rng.integers(0, 256, (4, *space.shape)).astype(np.uint8) if space is IMAGE else rng.normal(size=(4, 5))
    obs = obs.astype(space.dtype)
    tensor, _ = model.policy.obs_to_tensor(obs)
    with torch.no_grad():
        if name != "sac":
            distribution = model.policy.get_distribution(tensor).distribution
            values = model.policy.predict_values(tensor).squeeze(-1)
            if "box" in name:
                inputs = torch.cat([distribution.mean, distribution.stddev.log()], -1)
            else:
                # Logits up to a constant: normalised.
                inputs = distribution.logits
            return {"obs": obs, "action_dist_inputs": inputs.numpy(), "vf_preds": values.numpy()}
        mean, log_std, _ = model.actor.get_action_dist_params(tensor)
        actions = rng.uniform(ACTIONS.low, ACTIONS.high, (4, 2)).astype(np.float32)
        scaled = torch.from_numpy(model.policy.scale_action(actions))
        q = [value.squeeze(-1).numpy() for value in model.critic(tensor, scaled)]
        target = [value.squeeze(-1).numpy() for value in model.critic_target(tensor, scaled)]
        greedy, _ = model.predict(obs, deterministic=True)
        return {
            "obs": obs,
            "actions": actions,
            "action_dist_inputs": torch.cat([mean, log_std], -1).numpy(),
            "q": np.stack(q),
            "target_q": np.stack(target),
            "greedy": greedy,
            "log_alpha": model.log_ent_coef.detach().numpy(),
        }


if __name__ == "__main__":
    main()
